import math

import pytest
import torch

from prefopt.losses.kto import kto_loss


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.fixture
def unpaired(pairs):
    """Four completions with log-ratios 1, -0.5, -0.75, 1.25; the first and last are desirable."""
    logps = torch.cat([pairs["chosen_logps"], pairs["rejected_logps"]]).detach().requires_grad_()
    return {
        "logps": logps,
        "ref_logps": torch.cat([pairs["ref_chosen_logps"], pairs["ref_rejected_logps"]]),
        "desirable": torch.tensor([True, False, False, True]),
        "kl": torch.tensor(0.5, dtype=torch.float64, requires_grad=True),
    }


def test_values_are_weight_minus_weighted_value(unpaired, exact):
    # Worked with mpmath, 40 digits, from Eq. 7 of the paper.
    output = kto_loss(**unpaired, beta=0.3, desirable_weight=1.5, undesirable_weight=0.7)
    exact(
        output.losses,
        [0.69385523198437568, 0.29789023823183871, 0.28513338003215117, 0.66597916418307009],
    )
    exact(output.rewards, [0.3, -0.15, -0.225, 0.375])


def test_gradient_is_the_slope_of_the_sigmoid_with_the_sign_of_the_label(unpaired, exact):
    kto_loss(
        **unpaired, beta=0.3, desirable_weight=1.5, undesirable_weight=0.7
    ).losses.sum().backward()
    slopes = [0.3 * sigmoid(v) * sigmoid(-v) for v in (0.15, -0.3, -0.375, 0.225)]
    exact(
        unpaired["logps"].grad,
        [-1.5 * slopes[0], 0.7 * slopes[1], 0.7 * slopes[2], -1.5 * slopes[3]],
    )


def test_no_gradient_reaches_the_reference_point(unpaired):
    kto_loss(**unpaired).losses.sum().backward()
    assert unpaired["kl"].grad is None


def test_policy_equal_to_reference_costs_half_the_weight(unpaired, exact):
    same = {**unpaired, "ref_logps": unpaired["logps"], "kl": torch.tensor(0.0)}
    losses = kto_loss(**same, desirable_weight=1.5, undesirable_weight=0.7).losses
    exact(losses, [0.75, 0.35, 0.35, 0.75])


def test_losses_lie_between_zero_and_the_weight(unpaired):
    far = {
        **unpaired,
        "ref_logps": unpaired["logps"].detach() + torch.tensor([1e3, 1e3, -1e3, -1e3]),
    }
    losses = kto_loss(**far, desirable_weight=1.5, undesirable_weight=0.7, beta=1.0).losses
    assert losses.tolist() == [1.5, 0.0, 0.7, 0.0]


def test_a_negative_estimate_of_the_reference_point_counts_as_zero(unpaired, exact):
    below = kto_loss(**{**unpaired, "kl": torch.tensor(-3.0)}).losses
    exact(below, kto_loss(**{**unpaired, "kl": torch.tensor(0.0)}).losses.tolist())


def test_beta_must_be_positive(unpaired):
    with pytest.raises(ValueError, match="beta must be greater than 0"):
        kto_loss(**unpaired, beta=0.0)


@pytest.mark.parametrize("name", ["desirable_weight", "undesirable_weight"])
def test_weights_must_not_be_negative(unpaired, name):
    with pytest.raises(ValueError, match=f"{name} must be at least 0"):
        kto_loss(**unpaired, **{name: -1.0})
