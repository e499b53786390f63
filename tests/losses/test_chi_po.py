import math

import pytest
import torch

from prefopt.losses.chi_po import chi_po_loss


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def phi(log_ratio: float) -> float:
    return math.exp(log_ratio) + log_ratio


def test_values_are_those_of_the_paper(pairs, exact):
    # Worked with mpmath, 40 digits, at log-ratios 1, -0.75 and -0.5, 1.25.
    output = chi_po_loss(**pairs, beta=0.3)
    exact(output.losses, [0.26356625466595837, 1.6125185594716791])
    exact(output.chosen_rewards, [0.3 * phi(1.0), 0.3 * phi(-0.5)])
    exact(output.rejected_rewards, [0.3 * phi(-0.75), 0.3 * phi(1.25)])


def test_margins_are_clipped_to_twice_the_range_of_rewards(pairs, exact):
    # The same at margins of 0.4 and -0.4, outside of which there is no gradient.
    losses = chi_po_loss(**pairs, beta=0.3, reward_range=0.2).losses
    losses.sum().backward()
    exact(losses, [0.51301525239995262, 0.91301525239995262])
    exact(pairs["chosen_logps"].grad, [0.0, 0.0])


def test_gradient_grows_with_the_ratio_itself(pairs, exact):
    chi_po_loss(**pairs, beta=0.3).losses.sum().backward()
    chosen, rejected = (1.0, -0.5), (-0.75, 1.25)
    pulls = [0.3 * sigmoid(0.3 * (phi(v) - phi(u))) for u, v in zip(chosen, rejected, strict=True)]
    wanted = [-p * (1 + math.exp(u)) for p, u in zip(pulls, chosen, strict=True)]
    exact(pairs["chosen_logps"].grad, wanted)
    wanted = [p * (1 + math.exp(v)) for p, v in zip(pulls, rejected, strict=True)]
    exact(pairs["rejected_logps"].grad, wanted)


def test_policy_equal_to_reference_costs_ln_2(equal_pairs, exact):
    exact(chi_po_loss(**equal_pairs, beta=2.0).losses, [math.log(2)] * 2)


def test_finite_with_finite_gradient_in_float32_at_thousands_of_nats():
    chosen = torch.tensor([-2e3, 2e3, 2e3], requires_grad=True)
    rejected = torch.tensor([2e3, 2e3, -2e3], requires_grad=True)
    zero = torch.zeros(3)
    losses = chi_po_loss(chosen, rejected, zero, zero, beta=1.0).losses
    losses.sum().backward()
    assert losses.isfinite().all()
    assert chosen.grad.square().isfinite().all()
    assert rejected.grad.square().isfinite().all()


def test_hyperparameters_must_be_positive(pairs):
    with pytest.raises(ValueError, match="beta must be greater than 0"):
        chi_po_loss(**pairs, beta=0.0)
    with pytest.raises(ValueError, match="reward_range must be greater than 0"):
        chi_po_loss(**pairs, reward_range=0.0)
