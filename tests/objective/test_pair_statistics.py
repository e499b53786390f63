"""Statistics of pairs from sums: those of numpy on the same numbers, however they came."""

import numpy as np
import pytest
import torch

from prefopt.losses import LossOutput
from prefopt.objective import parse_objective
from prefopt.objective.inputs import Completions, term_counts, term_output
from prefopt.objective.metrics import MetricSums
from prefopt.objective.pair_statistics import (
    PAIR_STATISTICS,
    add_pair_statistics,
    pair_margins,
    pair_statistics,
)
from tests.indices import make_index

RNG = np.random.default_rng(0)
COUNT = 12
LOGPS, REFERENCE = (-20 + 6 * RNG.standard_normal(2 * COUNT) for _ in range(2))
LENGTHS = RNG.integers(1, 9, 2 * COUNT)
LABELS = [number % 2 == 0 for number in range(2 * COUNT)]


def add(sums, name, part=slice(None), reference=True, unpaired_only=False):
    """Add some of the completions, chosen and rejected ones in turn."""
    logps, ref_logps, lengths = (torch.tensor(x[part]) for x in (LOGPS, REFERENCE, LENGTHS))
    numbers = list(range(len(logps)))
    pairs = {} if unpaired_only else {"chosen": numbers[::2], "rejected": numbers[1::2]}
    labels = [bool(label) for label in LABELS[part]]
    index = make_index(**pairs, unpaired=numbers, labels=labels, preferred=numbers[::2])
    objective = parse_objective(name)
    ref_logps = ref_logps if reference else None
    completions = Completions(
        logps, lengths, ref_logps, scalars={"kl": torch.tensor(0.2, dtype=torch.float64)}
    )
    outputs = [term_output(term, index, completions) for term in objective.terms]
    counts = torch.stack([term_counts(term, index, lengths) for term in objective.terms])
    add_pair_statistics(sums, objective, outputs, counts, index, logps, ref_logps, lengths)
    return objective


def statistics(name, parts=(slice(None),), **options):
    sums = MetricSums()
    for part in parts:
        objective = add(sums, name, part, **options)
    return pair_statistics(objective, sums.totals())


def expected(beta=0.1):
    """The same by numpy, from the definitions in docs/trainer.md."""
    ratios = (LOGPS - REFERENCE).reshape(-1, 2)
    margins = beta * (ratios[:, 0] - ratios[:, 1])
    gaps = (LENGTHS.reshape(-1, 2) @ [1, -1]).astype(float)
    losses = np.log1p(np.exp(-margins))
    # Each pair in either order: then means are 0, and Pearson's correlation is the one meant.
    both = np.concatenate
    length, margin, label = (both([x, -x]) for x in (gaps, margins, np.ones(COUNT)))
    return {
        "chosen_count": COUNT,
        "chosen_log_ratio": ratios[:, 0].mean(),
        "chosen_log_ratio_std": ratios[:, 0].std(ddof=1),
        "kept_mass": np.minimum(1, np.exp(ratios)).mean(),
        "longer_chosen": ((gaps > 0) + 0.5 * (gaps == 0)).mean(),
        "loss_standard_error": losses.std(ddof=1) / np.sqrt(COUNT),
        "pair_accuracy": (margins > 0).mean(),
        "pairs": COUNT,
        "saturated_pairs": (1 / (1 + np.exp(margins)) < 0.01).mean(),
        "data_length_correlation": np.corrcoef(length, label)[0, 1],
        "reward_label_correlation": np.corrcoef(margin, label)[0, 1],
        "reward_length_correlation": np.corrcoef(margin, length)[0, 1],
    }


HALVES = (slice(0, 10), slice(10, None))


@pytest.mark.parametrize("parts", [(slice(None),), HALVES, (slice(0, 2), slice(2, None))])
def test_statistics_are_those_of_numpy_whatever_the_batches(parts):
    found = statistics("dpo", parts)
    wanted = {f"diagnostics/{name}": value for name, value in expected().items()}
    assert found == pytest.approx(wanted, rel=1e-12)
    assert sorted(found) == sorted(PAIR_STATISTICS)


def test_unpaired_losses_on_pairs_have_margins_too():
    found, wanted = statistics("kto"), expected()
    for name in ("reward_length_correlation", "pair_accuracy", "chosen_log_ratio_std", "pairs"):
        assert found[f"diagnostics/{name}"] == pytest.approx(wanted[name], rel=1e-6)


def test_rows_without_pairs_have_what_a_label_says():
    found = statistics("kto", unpaired_only=True)
    wanted = expected()
    for name in ("chosen_count", "chosen_log_ratio", "kept_mass"):
        assert found[f"diagnostics/{name}"] == pytest.approx(wanted[name], rel=1e-12)
    assert "diagnostics/pairs" not in found


def test_losses_without_a_reference_have_no_log_ratio():
    found = statistics("simpo", reference=False)
    assert "diagnostics/chosen_log_ratio" not in found
    assert "diagnostics/kept_mass" not in found
    assert found["diagnostics/pairs"] == COUNT


def test_other_processes_are_summed_before_anything_is_divided():
    sums = MetricSums()
    objective = add(sums, "dpo", HALVES[0])
    other = MetricSums()
    add(other, "dpo", HALVES[1])
    theirs = torch.tensor([other.state_dict()[name] for name in other.names], dtype=torch.float64)
    found = pair_statistics(objective, sums.totals(lambda table: table + theirs))
    wanted = {f"diagnostics/{name}": value for name, value in expected().items()}
    assert found == pytest.approx(wanted, rel=1e-12)


def test_saturation_is_a_gradient_below_a_hundredth():
    """Of DPO's gradient, sigmoid(-margin), by autograd; a hinge's is 0 beyond its margin."""
    logps = torch.tensor([55.0, 0.0, 40.0, 0.0, 5.0, 0.0], dtype=torch.float64)
    logps.requires_grad_()
    zeros, lengths = torch.zeros(6, dtype=torch.float64), torch.ones(6, dtype=torch.int64)
    index = make_index(chosen=[0, 2, 4], rejected=[1, 3, 5])
    for name, beta in (("dpo", 0.1), ("hinge", 0.05)):
        objective = parse_objective(name)
        (term,) = objective.terms
        output = term_output(term, index, Completions(logps, lengths, zeros))
        (gradient,) = torch.autograd.grad(output.losses.sum(), logps, retain_graph=True)
        wanted = (gradient[::2].abs() / beta < 0.01).double().mean().item()
        sums = MetricSums()
        counts = torch.tensor([3.0])
        known = (counts, index, logps.detach(), zeros, lengths)
        add_pair_statistics(sums, objective, [output], *known)
        found = pair_statistics(objective, sums.totals())
        assert found["diagnostics/saturated_pairs"] == pytest.approx(wanted)
        assert 0 < wanted < 1


def test_the_standard_error_of_a_sum_is_at_most_that_of_its_terms_together():
    found = statistics("dpo + 0.5*sft")["diagnostics/loss_standard_error"]
    chosen = LOGPS[::2]
    # Nats a token: a sum over completions, divided by all their tokens.
    of_sft = chosen.std(ddof=1) * np.sqrt(COUNT) / LENGTHS[::2].sum()
    assert found == pytest.approx(expected()["loss_standard_error"] + 0.5 * of_sft, rel=1e-12)


def test_margins_that_are_rounding_errors_correlate_with_nothing():
    objective, sums = parse_objective("dpo"), MetricSums()
    margins = torch.tensor([1e-6, -1e-6, 1e-6])
    output = LossOutput(torch.ones(3), margins, torch.zeros(3))
    index = make_index(chosen=[0, 2, 4], rejected=[1, 3, 5])
    lengths = torch.tensor([1, 2, 3, 5, 4, 1])
    known = (torch.tensor([3.0]), index, torch.zeros(6), torch.zeros(6), lengths)
    add_pair_statistics(sums, objective, [output], *known)
    found = pair_statistics(objective, sums.totals())
    assert "diagnostics/data_length_correlation" in found
    assert "diagnostics/reward_length_correlation" not in found


def test_margins_of_a_loss_without_rewards_are_unknown():
    index = make_index(chosen=[0], rejected=[1], unpaired=[0, 1])
    assert pair_margins(LossOutput(torch.ones(1)), index, 2) is None
    of_completions = LossOutput(torch.ones(2), rewards=torch.tensor([0.5, -1.0]))
    assert pair_margins(of_completions, index, 2).tolist() == [1.5]


def test_one_batch_without_any_row_says_nothing():
    objective, sums = parse_objective("dpo"), MetricSums()
    nothing = torch.zeros(0)
    output = LossOutput(nothing, nothing, nothing)
    known = (torch.tensor([0.0]), make_index(), nothing, nothing, nothing.long())
    add_pair_statistics(sums, objective, [output], *known)
    assert pair_statistics(objective, sums.totals()) == {}
