"""Our losses against values and gradients that other people's implementations gave.

Each case of the golden file is either matched, in float64 and within the case's own tolerance, or
it is listed in ``NOT_TARGETS`` with the reason. ``docs/faithfulness.md`` prints the numbers.
"""

import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from golden_cases import (
    Golden,
    as_tensor,
    compute,
    loss_options_of,
    meaningful,
    odds_ratio_losses,
    read_golden,
    token_inputs,
)
from golden_targets import (
    LABELS,
    MATCHED,
    NOT_TARGET,
    NOT_TARGETS,
    OTHER_LABELS,
    RELABELLED,
    label_of,
    reasons_not_target,
)

from prefopt.losses import get_loss


@pytest.fixture(scope="module")
def golden(shared_dir: Path) -> Golden:
    return read_golden(shared_dir / "golden")


def select(golden: Golden, target: bool) -> list[dict]:
    """Return the cases that are targets, or those that are not."""
    return [case for case in golden.cases if (not reasons_not_target(case["name"])) == target]


def divergence_of(case: dict) -> str:
    return loss_options_of(case).f_divergence_type


def loss_name(case: dict) -> str:
    label = label_of(case)
    return LABELS[label].loss if label in LABELS else "other"


def test_every_label_is_of_a_loss_of_ours_or_listed_as_of_none(golden):
    labels = {label_of(case) for case in golden.cases}
    assert labels == {*LABELS, *OTHER_LABELS}
    assert not {*LABELS} & OTHER_LABELS
    assert all(get_loss(target.loss).name == target.loss for target in LABELS.values())
    assert all(label_of(case) in LABELS for case in select(golden, target=True))


def test_every_pattern_that_changes_a_label_does(golden):
    changed = [case for case in golden.cases if label_of(case) != case["loss"]]
    assert {label_of(case) for case in changed} == {*RELABELLED.values()}


def test_every_reason_is_the_only_one_of_its_cases_and_has_as_many_as_it_says(golden):
    reasons = [reasons_not_target(case["name"]) for case in select(golden, target=False)]
    assert all(len(found) == 1 for found in reasons), [found for found in reasons if found[1:]]
    counts = Counter(found[0].reason for found in reasons)
    assert counts == {item.reason: item.cases for item in NOT_TARGETS}


def test_number_of_golden_cases(golden):
    assert Counter(map(loss_name, select(golden, target=True))) == MATCHED
    assert Counter(map(loss_name, select(golden, target=False))) == NOT_TARGET
    assert sum(MATCHED.values()) + sum(NOT_TARGET.values()) == len(golden.cases) == 1287


# Labels of ours with no case that is a target.
NO_TARGETS = {"kto_pair", "lrml_old", "slic_halos_head"}


@pytest.mark.parametrize("label", LABELS)
def test_losses_and_gradients_equal_the_golden_values(golden, label):
    cases = [case for case in select(golden, target=True) if label_of(case) == label]
    assert cases or label in NO_TARGETS
    for case in cases:
        result = compute(case, golden)
        expect = {
            "rtol": case["rtol"],
            "atol": case["atol"],
            "msg": lambda m, c=case: c["name"] + m,
        }
        torch.testing.assert_close(result.mean_loss, as_tensor(case["mean_loss"]), **expect)
        # TRL's sft repeats the batch mean as the loss of each example; ours are not averaged.
        if case["losses"] is not None and label != "sft":
            torch.testing.assert_close(result.losses, as_tensor(case["losses"]), **expect)
        for key, grads in (case["grads"] or {}).items():
            data = golden.sets[case["input_set"]]
            wanted = meaningful(key, as_tensor(grads), data)
            torch.testing.assert_close(meaningful(key, result.grads[key], data), wanted, **expect)


def test_cases_listed_for_an_ignored_option_equal_dpo_without_it(golden):
    cases = [
        case
        for case in select(golden, target=False)
        if "ignores `label_smoothing`" in reasons_not_target(case["name"])[0].reason
        or "whatever `pref_loss`" in reasons_not_target(case["name"])[0].reason
    ]
    assert len(cases) == 10
    for case in cases:
        options = {"beta": case["hyperparameters"]["beta"]}
        plain = {**case, "loss": "dpo", "hyperparameters": options}
        result = compute(plain, golden)
        torch.testing.assert_close(
            result.losses, as_tensor(case["losses"]), rtol=case["rtol"], atol=case["atol"]
        )


def test_orpo_odds_term_equals_trls_whose_likelihood_term_differs(golden):
    cases = [case for case in golden.cases if case["name"].startswith("trl1.16/orpo/e2e/")]
    assert len(cases) == 2
    for case in cases:
        _, inputs = token_inputs(case, golden.sets["tokens"], torch.float64)
        losses = odds_ratio_losses(inputs, lambda_=case["hyperparameters"]["beta"]).detach()
        wanted = as_tensor(case["losses"])
        torch.testing.assert_close(losses, wanted, rtol=case["rtol"], atol=case["atol"])


def test_kl_of_the_kto_cases_is_the_clamped_mean_of_mismatched_log_ratios(golden):
    kls = {
        (case["input_set"], float(case["extra"]["kl"]))
        for case in select(golden, target=True)
        if case["loss"] == "kto" and case["extra"] and case["dtype"] == "float64"
    }
    assert {name for name, _ in kls} >= {"kto_main", "kto_negkl", "kto_extreme"}
    for name, recorded in kls:
        data = golden.sets[name]
        ratios = as_tensor(data["kl_policy_logps"]) - as_tensor(data["kl_ref_logps"])
        assert ratios.mean().clamp(min=0).item() == pytest.approx(recorded, rel=1e-12, abs=1e-12)


# Their exponentials go on along a tangent where float32 cannot hold them; float64 still can.
BENT_IN_FLOAT32 = {"alphapo", "cell"}
BENT_DIVERGENCES = {"forward_kl", "alpha_divergence"}


def test_extreme_sets_are_finite_in_float32_and_close_to_float64(golden):
    seen = set()
    for case in select(golden, target=True):
        if case["input_set"] not in ("pair_extreme", "kto_extreme"):
            continue
        low, high = (compute(case, golden, dtype) for dtype in (torch.float32, torch.float64))
        name = loss_name(case)
        seen.add(name)
        assert low.losses.dtype == torch.float32
        assert low.losses.isfinite().all(), case["name"]
        assert all(grads.isfinite().all() for grads in low.grads.values()), case["name"]
        if name in BENT_IN_FLOAT32 or divergence_of(case) in BENT_DIVERGENCES:
            continue
        # The inputs are rounded to 1e-5 nats; beta = 1 is the steepest case.
        torch.testing.assert_close(low.losses.double(), high.losses, rtol=1e-4, atol=1e-4)
        for key, grads in low.grads.items():
            torch.testing.assert_close(grads.double(), high.grads[key], rtol=1e-3, atol=1e-5)
    # These have cases on token log-probs, small sets or averages only.
    assert {*MATCHED} - seen == {"arpo", "exo_ranked", "infonca", "ld_dpo", "orpo", "simpo_hinge"}


def test_exo_of_its_authors_differs_by_the_missing_normaliser(golden):
    cases = [case for case in golden.cases if case["name"].startswith("exo@a8ab36011e/exo-pref/")]
    assert len(cases) == 2
    epsilon = math.exp(-10)
    for case in cases:
        beta = case["hyperparameters"]["beta_model"]
        _, inputs = token_inputs(case, golden.sets["tokens"], torch.float64)
        exo = get_loss("exo")
        output = exo(
            **{name: inputs[name] for name in exo.inputs}, beta=beta, label_smoothing=epsilon
        )
        margins = output.chosen_rewards - output.rejected_rewards
        theirs = output.losses.detach() + math.log1p(-epsilon) * margins.sigmoid()
        assert theirs.mean().item() == pytest.approx(float(case["mean_loss"]), rel=1e-9)
