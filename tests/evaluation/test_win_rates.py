"""Win rates at equal lengths, against the fit's own equations solved by another method."""

import math
import statistics

import mpmath
import pytest
import torch

from prefopt.evaluation.win_rates import (
    fit_length,
    length_controlled_win_rate,
    win_rate_of_judgements,
)


def drawn(size: int, theta: float, phi: float, seed: int = 0):
    """Return preferences of a judge who likes length, and the lengths."""
    generator = torch.Generator().manual_seed(seed)
    other = torch.randint(100, 1000, (size,), generator=generator).double()
    lengths = (other + 150 * torch.randn(size, generator=generator) + 100).clamp(min=1).round()
    differences = lengths - other
    chances = (theta + phi * torch.tanh(differences / differences.std())).sigmoid()
    wins = (torch.rand(size, generator=generator) < chances).double()
    return wins, lengths, other


def solved(wins, lengths, other) -> tuple[float, float]:
    """Return the weights at which the slope of the penalised likelihood is 0, to 30 digits."""
    differences = [float(a - b) for a, b in zip(lengths, other, strict=True)]
    scale = statistics.stdev(differences)
    features = [math.tanh(difference / scale) for difference in differences]

    def slope(theta, phi):
        errors = [
            float(win) - 1 / (1 + mpmath.exp(-(theta + phi * feature)))
            for win, feature in zip(wins, features, strict=True)
        ]
        of_phi = sum(error * feature for error, feature in zip(errors, features, strict=True))
        return sum(errors) - theta / 100, of_phi - phi / 100

    return tuple(float(value) for value in mpmath.findroot(slope, (0.1, 0.1)))


def test_the_fit_solves_its_equations():
    wins, lengths, other = drawn(60, 0.5, 1.0)
    wins[:10] = 0.5  # ties
    wins[10:14] = 0.75
    theta, phi = solved(wins, lengths, other)
    found = fit_length(wins, lengths, other)
    assert found.theta == pytest.approx(theta, rel=1e-9)
    assert found.phi == pytest.approx(phi, rel=1e-9)
    rate = length_controlled_win_rate(wins, lengths, other, resamples=50)
    assert rate.value == pytest.approx(1 / (1 + math.exp(-theta)), rel=1e-9)
    assert rate.low < rate.value < rate.high
    assert rate.size == 60


def test_with_many_prompts_the_truth_is_found():
    wins, lengths, other = drawn(20_000, -0.4, 2.0)
    found = fit_length(wins, lengths, other)
    assert found.theta == pytest.approx(-0.4, abs=0.05)
    assert found.phi == pytest.approx(2.0, abs=0.1)
    assert wins.mean() > 0.5  # though ours are worse, for they are longer


def test_where_length_explains_all_wins_nobody_is_better():
    differences = torch.tensor([float(d) for d in (-300, -120, -40, -7, 7, 40, 120, 300)])
    other = torch.full((8,), 500.0)
    wins = (differences > 0).double()
    found = length_controlled_win_rate(wins, other + differences, other, resamples=200)
    assert found.value == pytest.approx(0.5, abs=1e-9)
    # A judge who leans to length alone, and a model that is mostly longer.
    wins, lengths, other = drawn(20_000, 0.0, 2.0)
    assert wins.mean() > 0.6
    found = length_controlled_win_rate(wins, lengths, other, resamples=20)
    assert found.value == pytest.approx(0.5, abs=0.015)


def test_equal_lengths_leave_the_win_rate_as_it_is():
    wins = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.5])
    found = length_controlled_win_rate(wins, torch.full((5,), 9.0), torch.full((5,), 9.0))
    assert found.value == pytest.approx(0.7, abs=2e-3)  # the prior draws it towards one half


def test_sides_and_order_do_not_matter():
    wins, lengths, other = drawn(50, 0.7, 0.5)
    rate = length_controlled_win_rate(wins, lengths, other).value
    assert length_controlled_win_rate(1 - wins, other, lengths).value == pytest.approx(1 - rate)
    order = torch.randperm(50)
    again = length_controlled_win_rate(wins[order], lengths[order], other[order]).value
    assert again == pytest.approx(rate)


def test_a_judge_who_always_agrees_has_a_fit():
    lengths, other = torch.tensor([10.0, 40.0, 20.0, 60.0]), torch.tensor([20.0, 30.0, 50.0, 10.0])
    found = length_controlled_win_rate(torch.ones(4), lengths, other)
    assert 0.95 < found.value < 1
    assert found.high <= 1
    # All resamples are alike, but four wins are little: 4 of 4 has Wilson's interval from 0.51.
    assert found.low <= 0.511


def test_the_interval_covers():
    """Of intervals from 60 draws, about 95% hold the truth."""
    held = 0
    for seed in range(60):
        rate = length_controlled_win_rate(*drawn(150, 0.5, 1.0, seed), resamples=300)
        held += rate.low <= 1 / (1 + math.exp(-0.5)) <= rate.high
    assert 52 <= held <= 60


def test_what_judgements_come_to():
    ours, others = ["aaaa", "b", "cc", "d", "e"], ["a", "bb", "ccc", "d", "ee"]
    found = win_rate_of_judgements([1.0, 0.25, None, 0.5, 1.0], ours, others)
    assert found.rate.value == 2.75 / 4
    assert (found.rate.size, found.without_verdict) == (4, 1)
    lengths, other = torch.tensor([4.0, 1, 1, 1]), torch.tensor([1.0, 2, 1, 2])
    expected = length_controlled_win_rate(torch.tensor([1, 0.25, 0.5, 1]), lengths, other)
    assert found.length_controlled == expected


def test_where_length_cannot_be_told_from_quality_there_is_no_control():
    found = win_rate_of_judgements([1.0, 0.0], ["aa", "bb"], ["a", "b"])
    assert found.length_controlled is None
    assert found.rate.value == 0.5
    assert win_rate_of_judgements([1.0], ["aa"], ["a"]).length_controlled is None


def test_wrong_input_is_an_error():
    three = torch.tensor([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="three vectors"):
        length_controlled_win_rate(three[:2], three, three)
    with pytest.raises(ValueError, match="between 0 and 1"):
        length_controlled_win_rate(three, three, three)
    with pytest.raises(ValueError, match="all answers differ in length by 1"):
        length_controlled_win_rate(three / 3, three + 1, three)
    with pytest.raises(ValueError, match="no verdict"):
        win_rate_of_judgements([None], ["a"], ["b"])
