"""Tests between methods and what length explains, against enumeration and published values."""

import itertools
import math
from fractions import Fraction

import pytest
import torch

from prefopt.evaluation import mean_interval
from prefopt.evaluation.statistics import (
    agreement,
    cluster_interval,
    correct_pairs,
    correlation,
    holm,
    length_balanced,
    length_baselines,
    mcnemar_test,
    paired_difference,
    paired_test,
    sign_flip_test,
)


def normal(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


# Two methods on the same rows ---------------------------------------------------------------------


def test_the_bootstrap_distribution_of_three_rows_is_the_enumerated_one():
    differences = [0.0, 1.0, 5.0]
    means = sorted(sum(picks) / 3 for picks in itertools.product(differences, repeat=3))
    # The share of resamples at or below each end, of the 27 equally likely ones.
    estimate = paired_difference(
        torch.tensor([1.0, 3.0, 5.0]), torch.tensor([1.0, 2.0, 0.0]), confidence=0.5, seed=1
    )
    assert estimate.value == pytest.approx(2.0)
    low, high = means[len(means) // 4], means[3 * len(means) // 4]
    assert (estimate.low, estimate.high) == pytest.approx((low, high))


def test_what_is_hard_for_both_does_not_widen_the_paired_interval():
    noise, hardness = 0.01 * normal(500, 1), normal(500)
    paired = paired_difference(hardness + 0.1 + noise, hardness)
    expected = mean_interval(0.1 + noise)
    assert paired.value == pytest.approx(expected.value, abs=1e-6)
    assert paired.low == pytest.approx(expected.low, abs=2e-4)
    assert paired.high == pytest.approx(expected.high, abs=2e-4)
    assert paired.high - paired.low < 0.05 * (
        mean_interval(hardness).high - mean_interval(hardness).low
    )
    assert paired == paired_difference(hardness + 0.1 + noise, hardness)
    assert paired != paired_difference(hardness + 0.1 + noise, hardness, seed=1)


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (7, 0), (3, 9), (12, 12), (40, 61)])
def test_mcnemar_is_twice_the_smaller_binomial_tail(wins, losses):
    first = torch.tensor([1] * wins + [0] * losses + [1, 0, 1])
    second = torch.tensor([0] * wins + [1] * losses + [1, 0, 1])
    total = wins + losses
    tail = sum(Fraction(math.comb(total, k), 2**total) for k in range(min(wins, losses) + 1))
    assert mcnemar_test(first, second) == pytest.approx(float(min(Fraction(1), 2 * tail)))
    assert mcnemar_test(second, first) == mcnemar_test(first, second)


def test_few_differences_try_every_pattern_of_signs():
    first = torch.tensor([2.0, 0.5, -1.0, 4.0, 1.5, 7.0])
    second = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.5, 6.5])
    differences = [(a - b).item() for a, b in zip(first, second, strict=True)]
    patterns = list(itertools.product((1, -1), repeat=6))
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in patterns]
    expected = sum(total >= abs(sum(differences)) for total in sums) / len(patterns)
    assert sign_flip_test(first, second) == pytest.approx(expected)


def test_random_signs_agree_with_the_exact_test_on_shares():
    # On numbers that are 0 or 1 the sign flip test is McNemar's.
    first = torch.tensor([1.0] * 30 + [0.0] * 16)
    exact = mcnemar_test(first, 1 - first)
    assert 0.01 < exact < 0.1
    assert sign_flip_test(first, 1 - first, resamples=50_000) == pytest.approx(exact, abs=0.003)
    assert paired_test(first, 1 - first) == exact
    # Ties leave the exact test of shares.
    ties = torch.cat([first, torch.full((4,), 0.5)])
    others = torch.cat([1 - first, torch.ones(4)])
    assert paired_test(ties, others) == sign_flip_test(ties, others)


def test_p_is_uniform_where_methods_do_not_differ_and_never_0():
    p_values = sorted(
        sign_flip_test(normal(40, 2 * run), normal(40, 2 * run + 1), resamples=500)
        for run in range(200)
    )
    # The largest distance to the uniform distribution (Kolmogorov-Smirnov: 0.137 at p = 0.001).
    distance = max(abs(p - (place + 0.5) / 200) for place, p in enumerate(p_values))
    assert distance < 0.137
    assert sign_flip_test(torch.ones(100), torch.zeros(100), resamples=999) == 1 / 1000


def test_holm_follows_its_definition():
    # Holm 1979: the k-th smallest of m is compared with alpha / (m - k + 1), until one fails.
    p_values = [0.01, 0.3, 0.013, 0.04, 0.002]
    adjusted = holm(p_values)
    for alpha in (0.005, 0.011, 0.04, 0.05, 0.06, 0.1, 0.2, 0.5):
        rejected = set()
        for rank, place in enumerate(sorted(range(5), key=p_values.__getitem__)):
            if p_values[place] > alpha / (5 - rank):
                break
            rejected.add(place)
        assert {place for place, p in enumerate(adjusted) if p <= alpha} == rejected
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_grouped_values_have_the_interval_of_their_groups():
    groups = torch.arange(400).repeat_interleave(5)
    of_groups = normal(400)
    estimate = cluster_interval(of_groups.repeat_interleave(5), groups, resamples=4000)
    expected = mean_interval(of_groups)  # copies of a value add nothing
    assert estimate.value == pytest.approx(expected.value, abs=1e-6)
    assert estimate.low == pytest.approx(expected.low, abs=0.01)
    assert estimate.high == pytest.approx(expected.high, abs=0.01)
    assert estimate.size == 400
    # Groups of unequal size: the mean is that of the values, not of the groups.
    uneven = cluster_interval(torch.tensor([1.0, 1.0, 1.0, 5.0]), torch.tensor([7, 7, 7, 2]))
    assert uneven == pytest.approx((2.0, 1.0, 5.0, 2))


# Length -------------------------------------------------------------------------------------------


def test_length_rules_are_the_shares_that_one_counts():
    chosen, rejected = torch.tensor([5, 9, 2, 4, 7]), torch.tensor([3, 4, 6, 4, 1])
    longer, shorter = length_baselines(chosen, rejected)
    assert longer.value == pytest.approx(3.5 / 5)
    assert shorter.value == pytest.approx(1.5 / 5)


def test_in_a_length_balanced_subset_length_says_nothing():
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(1, 120, (3000,), generator=generator)
    rejected = (chosen - torch.randint(-20, 60, (3000,), generator=generator)).clamp(min=1)
    rows = length_balanced(chosen, rejected)
    assert length_baselines(chosen, rejected).longer.value > 0.7
    assert length_baselines(chosen[rows], rejected[rows]).longer.value == 0.5
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert len(rows) > 1000
    # A rule that trusts length more, the larger the difference is, finds nothing either.
    differences = (chosen - rejected)[rows].double()
    assert abs(differences.mean().item()) < 0.25
    for largest in (1, 2, 3, 4, 5):  # these have a bin of their own
        assert differences[differences.abs() == largest].sum() == 0
    # Nothing that could be kept is left out: of each bin, one side is there as a whole.
    kept = set(rows.tolist())
    every = (chosen - rejected).tolist()
    for size in (1, 2, 3, 4, 5):
        sides = [{row for row, d in enumerate(every) if d == sign * size} for sign in (1, -1)]
        assert any(side <= kept for side in sides)


def test_where_the_longer_is_always_chosen_nothing_can_be_balanced():
    assert length_balanced(torch.tensor([5, 6]), torch.tensor([1, 2])).tolist() == []


def test_correlations_are_those_of_their_definitions():
    # Pearson by its sums, Spearman by 1 - 6 sum d^2 / (n (n^2 - 1)), which holds without ties.
    x, y = [1.0, 4.0, 2.0, 8.0, 5.0, 7.0], [2.0, 3.0, 1.0, 900.0, 7.0, 5.0]
    n, mean_x, mean_y = 6, sum(x) / 6, sum(y) / 6
    top = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    below = sum((a - mean_x) ** 2 for a in x) * sum((b - mean_y) ** 2 for b in y)
    pearson = correlation(torch.tensor(x), torch.tensor(y), ranks=False)
    assert pearson.value == pytest.approx(top / math.sqrt(below))
    z, spread = math.atanh(pearson.value), 1.959963984540054 / math.sqrt(n - 3)
    assert pearson.low == pytest.approx(math.tanh(z - spread))
    assert pearson.high == pytest.approx(math.tanh(z + spread))

    of_x, of_y = ([sorted(values).index(value) for value in values] for values in (x, y))
    rho = 1 - 6 * sum((a - b) ** 2 for a, b in zip(of_x, of_y, strict=True)) / (n * (n * n - 1))
    spearman = correlation(torch.tensor(x), torch.tensor(y))
    assert spearman.value == pytest.approx(rho)
    spread = 1.959963984540054 * math.sqrt((1 + rho**2 / 2) / (n - 3))
    assert spearman.low == pytest.approx(math.tanh(math.atanh(rho) - spread))


def test_tied_values_share_their_mean_rank():
    # Ranks 1.5 1.5 3 4 against 1 2 3.5 3.5, and Pearson's correlation of these.
    spearman = correlation(torch.tensor([5.0, 5.0, 6.0, 7.0]), torch.tensor([0.0, 1.0, 2.0, 2.0]))
    a, b = torch.tensor([1.5, 1.5, 3.0, 4.0]), torch.tensor([1.0, 2.0, 3.5, 3.5])
    expected = torch.corrcoef(torch.stack([a.double(), b.double()]))[0, 1].item()
    assert spearman.value == pytest.approx(expected)
    perfect = correlation(torch.arange(5.0), torch.arange(5.0).exp())
    assert perfect[:3] == (1.0, 1.0, 1.0)


def test_the_interval_of_a_correlation_covers_the_truth_as_often_as_it_says():
    covered = 0
    for run in range(300):
        x, noise = normal(80, 2 * run), normal(80, 2 * run + 1)
        estimate = correlation(x, 0.6 * x + 0.8 * noise, ranks=False)
        covered += estimate.low < 0.6 < estimate.high
    assert 0.91 <= covered / 300 <= 0.985


def test_agreement_looks_at_signs_and_halves_ties():
    ours = torch.tensor([1.0, -1.0, 2.0, 0.0, -3.0])
    theirs = torch.tensor([5.0, 1.0, 0.5, 1.0, -0.1])
    assert agreement(ours, theirs).value == pytest.approx(3.5 / 5)


def test_correct_pairs_average_to_the_accuracy():
    scores, others = torch.tensor([1.0, 0.0, 2.0, 5.0]), torch.tensor([0.0, 1.0, 2.0, 4.0])
    assert correct_pairs(scores, others).tolist() == [1.0, 0.0, 0.5, 1.0]


def test_wrong_input_is_an_error():
    two, three = torch.zeros(2), torch.zeros(3)
    for function in (paired_difference, mcnemar_test, sign_flip_test, agreement, correlation):
        with pytest.raises(ValueError, match="same rows"):
            function(two, three)
        with pytest.raises(ValueError, match="no rows"):
            function(two[:0], two[:0])
    for function in (paired_difference, sign_flip_test, agreement, correlation):
        with pytest.raises(ValueError, match="NaN"):
            function(torch.full((5,), math.nan), torch.zeros(5))
    with pytest.raises(ValueError, match="0 and 1"):
        mcnemar_test(torch.tensor([0.5]), torch.tensor([1.0]))
    with pytest.raises(ValueError, match="at least 4"):
        correlation(three, three)
    with pytest.raises(ValueError, match="no correlation"):
        correlation(torch.zeros(5), torch.arange(5.0))
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([0.5, 1.2])
    with pytest.raises(ValueError, match="two vectors"):
        length_balanced(two, three)
    with pytest.raises(ValueError, match="groups"):
        cluster_interval(two, three)
