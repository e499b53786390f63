import math

import pytest
import torch

from prefopt.losses.arpo import arpo_loss
from prefopt.losses.cpo import cpo_loss


@pytest.fixture
def policy(pairs, lengths):
    return {name: pairs[name] for name in ("chosen_logps", "rejected_logps")} | lengths


def test_values_follow_the_equation_on_both_sides_of_the_minimum(policy, exact):
    # Worked with mpmath, 40 digits: z is 0.1138 for the first pair, 1 for the second.
    output = arpo_loss(**policy, beta=0.3, eta_1=1.1, eta_2=0.25)
    exact(output.losses, [2.6545757711663466, 1.1368710061148999])
    exact(output.chosen_rewards, [-3.0, -6.15])
    exact(output.rejected_rewards, [-3.675, -5.4])


def test_gradient_flows_through_the_factor_until_it_is_1(policy, exact):
    arpo_loss(**policy, beta=0.3, eta_1=1.1, eta_2=0.25).losses.sum().backward()
    chosen, rejected = -10.0, -12.25
    growth = 1.1 * math.exp(0.25 * 0.05)  # z + 1 at the first pair's gap of -0.05
    margin = 0.3 * (chosen - (growth - 1) * rejected)
    slope = -0.3 / (1 + math.exp(margin))
    # The gap is negative, so that it shrinks as the chosen completion gets more likely.
    first = [slope * (1 + 0.25 * growth / 4 * rejected)]
    other = [slope * (-(growth - 1) - 0.25 * growth / 5 * rejected)]
    plain = 0.3 / (1 + math.exp(0.3 * -2.5))
    exact(policy["chosen_logps"].grad, [*first, -plain])
    exact(policy["rejected_logps"].grad, [*other, plain])


def test_from_a_gap_of_two_nats_per_token_on_it_is_cpo(exact):
    chosen = torch.tensor([-2.0, -30.0], dtype=torch.float64)
    rejected = torch.tensor([-30.0, -2.0], dtype=torch.float64)
    tokens = torch.tensor([10, 10])
    losses = arpo_loss(chosen, rejected, tokens, tokens).losses
    exact(losses, cpo_loss(chosen, rejected).losses.tolist())


def test_equal_completions_are_both_pulled_up(exact):
    logps = torch.tensor([-6.0], dtype=torch.float64, requires_grad=True)
    other = torch.tensor([-6.0], dtype=torch.float64, requires_grad=True)
    tokens = torch.tensor([3])
    losses = arpo_loss(logps, other, tokens, tokens, beta=0.5).losses
    exact(losses, [math.log1p(math.exp(0.5 * 6.6))])  # z = -0.1
    losses.sum().backward()
    assert logps.grad < 0
    assert other.grad < 0


def test_a_gap_beyond_the_range_of_exp_has_a_finite_gradient():
    chosen = torch.tensor([0.0, -1e3], requires_grad=True)
    rejected = torch.tensor([-1e3, 0.0], requires_grad=True)
    one = torch.ones(2, dtype=torch.long)
    arpo_loss(chosen, rejected, one, one, eta_2=1.0).losses.sum().backward()
    assert chosen.grad.isfinite().all()
    assert rejected.grad.isfinite().all()


@pytest.mark.parametrize("name", ["beta", "eta_1"])
def test_beta_and_eta_1_must_be_positive(policy, name):
    with pytest.raises(ValueError, match=f"{name} must be greater than 0"):
        arpo_loss(**policy, **{name: 0.0})


def test_eta_2_must_not_be_negative(policy):
    with pytest.raises(ValueError, match="eta_2 must be at least 0"):
        arpo_loss(**policy, eta_2=-0.1)
