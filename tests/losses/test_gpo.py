import math

import pytest
import torch

from prefopt.losses.dpo import dpo_loss
from prefopt.losses.gpo import gpo_loss
from prefopt.losses.hinge import hinge_loss
from prefopt.losses.ipo import ipo_loss

# Worked with mpmath, 40 digits, from the surrogates at margins of 1.4 and -1.4.
VALUES = {
    "logistic": [0.22041740991845093, 1.6204174099184509],
    "hinge": [0.0, 2.4],
    "squared": [0.16, 5.76],
    "exponential": [0.24659696394160648, 4.0551999668446746],
    "truncated_quadratic": [0.0, 5.76],
    "savage": [0.039131213945803605, 0.6434989910629671],
}
# Value and slope at a margin of 0.
AT_ZERO = {
    "logistic": (math.log(2), -1 / 2),
    "hinge": (1.0, -1.0),
    "squared": (1.0, -2.0),
    "exponential": (1.0, -1.0),
    "truncated_quadratic": (1.0, -2.0),
    "savage": (1 / 4, -1 / 4),
}
MEMBERS = pytest.mark.parametrize("f", VALUES)


@MEMBERS
def test_values_are_those_of_the_surrogates(pairs, exact, f):
    output = gpo_loss(**pairs, beta=0.8, f=f)
    exact(output.losses, VALUES[f])
    exact(output.chosen_rewards, [0.8, -0.4])
    exact(output.rejected_rewards, [-0.6, 1.0])


@MEMBERS
def test_policy_equal_to_reference_costs_f_of_zero_with_its_slope(equal_pairs, exact, f):
    value, slope = AT_ZERO[f]
    losses = gpo_loss(**equal_pairs, beta=0.8, f=f).losses
    losses.sum().backward()
    exact(losses, [value] * 2)
    exact(equal_pairs["chosen_logps"].grad, [0.8 * slope] * 2)
    exact(equal_pairs["rejected_logps"].grad, [-0.8 * slope] * 2)


def test_gradients_away_from_zero_are_those_of_the_surrogates(pairs, exact):
    slopes = {
        "squared": [-2 * (1 - m) for m in (1.4, -1.4)],
        "exponential": [-math.exp(-m) for m in (1.4, -1.4)],
        "truncated_quadratic": [0.0, -2 * 2.4],
        "savage": [-2 * math.exp(m) / (1 + math.exp(m)) ** 3 for m in (1.4, -1.4)],
    }
    for f, wanted in slopes.items():
        pairs["chosen_logps"].grad = None
        gpo_loss(**pairs, beta=0.8, f=f).losses.sum().backward()
        exact(pairs["chosen_logps"].grad, [0.8 * slope for slope in wanted])


def test_three_members_are_dpo_hinge_and_ipo(pairs, lengths):
    def same(first, second):
        torch.testing.assert_close(first, second, rtol=1e-14, atol=0)

    same(gpo_loss(**pairs, beta=0.7).losses, dpo_loss(**pairs, beta=0.7).losses)
    same(gpo_loss(**pairs, beta=0.7, f="hinge").losses, hinge_loss(**pairs, beta=0.7).losses)
    ipo = ipo_loss(**pairs, **lengths, beta=0.35, normalize="sum").losses
    same(gpo_loss(**pairs, beta=0.7, f="squared").losses, 0.7**2 * ipo)


@MEMBERS
def test_finite_with_finite_gradient_in_float32_at_thousands_of_nats(f):
    chosen = torch.tensor([-2e3, -100.0, 100.0, 2e3], requires_grad=True)
    zero = torch.zeros(4)
    losses = gpo_loss(chosen, zero, zero, zero, beta=1.0, f=f).losses
    losses.sum().backward()
    assert losses.isfinite().all()
    assert chosen.grad.square().isfinite().all()


@MEMBERS
def test_a_larger_margin_never_costs_more_below_one(f):
    chosen = torch.linspace(-60, 1, 500)
    zero = torch.zeros(500)
    assert (gpo_loss(chosen, zero, zero, zero, beta=1.0, f=f).losses.diff() <= 0).all()


def test_beta_must_be_positive(pairs):
    with pytest.raises(ValueError, match="beta must be greater than 0"):
        gpo_loss(**pairs, beta=0.0)


def test_f_must_be_one_of_the_surrogates(pairs):
    with pytest.raises(ValueError, match=r"f must be 'logistic' or .*, got 'cubic'"):
        gpo_loss(**pairs, f="cubic")
