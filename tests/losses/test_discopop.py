import math

import pytest
import torch

from prefopt.losses import get_loss
from prefopt.losses.discopop import discopop_loss


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_values_are_those_of_the_paper(pairs, exact):
    # Worked with mpmath, 40 digits, from Eq. 5 at margins of 0.525 and -0.525.
    output = discopop_loss(**pairs, beta=0.3, tau=0.2)
    exact(output.losses, [0.58298749823979085, 1.037044902178552])
    exact(output.chosen_rewards, [0.3, -0.15])
    exact(output.rejected_rewards, [-0.225, 0.375])


def test_gradient_is_that_of_the_blend(pairs, exact):
    discopop_loss(**pairs, beta=0.3, tau=0.2).losses.sum().backward()
    slopes = []
    for x in (0.525, -0.525):
        blend = sigmoid(x / 0.2)
        slope = blend * (1 - blend) / 0.2 * (math.exp(-x) + math.log(sigmoid(x)))
        slopes.append(0.3 * (slope - (1 - blend) * sigmoid(-x) - blend * math.exp(-x)))
    exact(pairs["chosen_logps"].grad, slopes)
    exact(pairs["rejected_logps"].grad, [-slope for slope in slopes])


def test_policy_equal_to_reference_costs_the_mean_of_both_parts(pairs, exact):
    same = {**pairs, "ref_chosen_logps": pairs["chosen_logps"]}
    same["ref_rejected_logps"] = pairs["rejected_logps"]
    exact(discopop_loss(**same).losses, [(math.log(2) + 1) / 2] * 2)


def test_far_from_zero_it_is_logistic_on_one_side_and_exponential_on_the_other():
    zero = torch.zeros(2, dtype=torch.float64)
    chosen = torch.tensor([20.0, -20.0], dtype=torch.float64)
    losses = discopop_loss(chosen, zero, zero, zero, beta=1.0, tau=0.05).losses
    wanted = torch.tensor([math.exp(-20), 20 + math.exp(-20)], dtype=torch.float64)
    torch.testing.assert_close(losses, wanted, rtol=1e-8, atol=0)


@pytest.mark.parametrize("tau", [0.05, 0.5, 0.99, 1.0])
def test_finite_with_finite_gradient_in_float32_at_any_margin(tau):
    # exp(-m) overflows float32 from m = -89 on, and the blend there is 0: a product gives NaN.
    margins = torch.tensor([-1e4, -1e3, -100.0, -89.0, 89.0, 1e3, 1e4], requires_grad=True)
    zero = torch.zeros(7)
    losses = discopop_loss(margins, zero, zero, zero, beta=1.0, tau=tau).losses
    losses.sum().backward()
    assert losses.isfinite().all()
    assert margins.grad.isfinite().all()


def test_lrml_is_the_authors_name_with_their_constants():
    assert get_loss("lrml") is get_loss("discopop")
    assert get_loss("lrml").hyperparameters == {"beta": 0.05, "tau": 0.05}


@pytest.mark.parametrize("name", ["beta", "tau"])
def test_hyperparameters_must_be_positive(pairs, name):
    with pytest.raises(ValueError, match=f"{name} must be greater than 0"):
        discopop_loss(**pairs, **{name: 0.0})
