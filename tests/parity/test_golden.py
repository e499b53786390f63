"""Our losses against values and gradients that other people's implementations gave.

The golden file has cases of many losses. Each case of a loss of ours is either matched, in float64
and within the case's own tolerance, or it is listed in ``NOT_TARGETS`` with the reason.
"""

from collections import Counter
from pathlib import Path

import pytest
import torch
from golden_cases import (
    LABELS,
    NOT_TARGETS,
    OTHER_LABELS,
    Golden,
    as_tensor,
    compute,
    meaningful,
    odds_ratio_losses,
    read_golden,
    reasons_not_target,
    token_inputs,
)

# The README quotes these numbers.
MATCHED = {
    "discopop": 30,
    "dpo": 177,
    "hinge": 38,
    "ipo": 78,
    "kto": 120,
    "orpo": 16,
    "sft": 11,
    "slic": 8,
}
NOT_TARGET = {
    "discopop": 12,
    "dpo": 66,
    "hinge": 26,
    "ipo": 30,
    "kto": 24,
    "orpo": 12,
    "sft": 2,
    "slic": 1,
}


@pytest.fixture(scope="module")
def golden(shared_dir: Path) -> Golden:
    return read_golden(shared_dir / "golden")


def ours(golden: Golden, target: bool) -> list[dict]:
    return [
        case
        for case in golden.cases
        if case["loss"] in LABELS and (not reasons_not_target(case["name"])) == target
    ]


def test_every_golden_case_is_matched_listed_or_of_another_loss(golden):
    labels = {case["loss"] for case in golden.cases}
    assert labels == {*LABELS, *OTHER_LABELS}
    assert not {*LABELS} & OTHER_LABELS


def test_every_reason_is_the_only_one_of_its_cases_and_has_some(golden):
    listed = ours(golden, target=False)
    reasons = [reasons_not_target(case["name"]) for case in listed]
    assert all(len(found) == 1 for found in reasons), [found for found in reasons if found[1:]]
    assert {pattern for found in reasons for pattern in found} == {*NOT_TARGETS}


def test_number_of_golden_cases(golden):
    matched = Counter(LABELS[case["loss"]][0] for case in ours(golden, target=True))
    not_target = Counter(LABELS[case["loss"]][0] for case in ours(golden, target=False))
    assert dict(matched) == MATCHED
    assert dict(not_target) == NOT_TARGET
    assert (matched.total(), not_target.total()) == (478, 173)


@pytest.mark.parametrize("label", LABELS)
def test_losses_and_gradients_equal_the_golden_values(golden, label):
    for case in ours(golden, target=True):
        if case["loss"] != label:
            continue
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
        for case in ours(golden, target=False)
        if "ignores label_smoothing" in NOT_TARGETS[reasons_not_target(case["name"])[0]]
        or "whatever pref_loss" in NOT_TARGETS[reasons_not_target(case["name"])[0]]
    ]
    assert len(cases) == 10
    for case in cases:
        plain = {**case, "hyperparameters": {"beta": case["hyperparameters"]["beta"]}}
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
        for case in ours(golden, target=True)
        if case["loss"] == "kto" and case["extra"] and case["dtype"] == "float64"
    }
    assert {name for name, _ in kls} >= {"kto_main", "kto_negkl", "kto_extreme"}
    for name, recorded in kls:
        data = golden.sets[name]
        ratios = as_tensor(data["kl_policy_logps"]) - as_tensor(data["kl_ref_logps"])
        assert ratios.mean().clamp(min=0).item() == pytest.approx(recorded, rel=1e-12, abs=1e-12)


def test_extreme_sets_are_finite_in_float32_and_close_to_float64(golden):
    seen = Counter()
    for case in ours(golden, target=True):
        if case["input_set"] not in ("pair_extreme", "kto_extreme"):
            continue
        low, high = (compute(case, golden, dtype) for dtype in (torch.float32, torch.float64))
        seen[LABELS[case["loss"]][0]] += 1
        assert low.losses.dtype == torch.float32
        assert low.losses.isfinite().all(), case["name"]
        # The inputs are rounded to 1e-5 nats; beta = 1 is the steepest case.
        torch.testing.assert_close(low.losses.double(), high.losses, rtol=1e-4, atol=1e-4)
        for key, grads in low.grads.items():
            assert grads.isfinite().all(), case["name"]
            torch.testing.assert_close(grads.double(), high.grads[key], rtol=1e-3, atol=1e-5)
    assert {*seen} == {"dpo", "ipo", "hinge", "discopop", "kto", "slic", "sft"}
