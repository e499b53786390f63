import math

import pytest
import torch

from prefopt.losses.ld_dpo import ld_dpo_loss


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.fixture
def heads():
    """Log-probs of the first min(length) tokens: of ``pairs``' first rejected and second chosen."""
    values = {
        "chosen_head_logps": [-8.0, -20.0],
        "rejected_head_logps": [-9.0, -18.0],
        "ref_chosen_head_logps": [-8.5, -19.0],
        "ref_rejected_head_logps": [-9.0, -19.25],
    }
    return {
        name: torch.tensor(row, dtype=torch.float64, requires_grad=not name.startswith("ref"))
        for name, row in values.items()
    }


def test_values_with_a_reference_treated_alike(pairs, heads, exact):
    # Worked with mpmath, 40 digits: log-ratios 0.625, -0.1875 and -0.875, 1.25.
    output = ld_dpo_loss(**pairs, **heads, beta=0.3, alpha=0.25)
    exact(output.losses, [0.5786806252925675, 1.0618603331636065])
    exact(output.chosen_rewards, [0.1875, -0.2625])
    exact(output.rejected_rewards, [-0.05625, 0.375])


def test_values_with_a_reference_counted_in_full(pairs, heads, exact):
    # The same with log-ratios 2.5, 1.6875 and -0.125, 1.25.
    output = ld_dpo_loss(**pairs, **heads, beta=0.3, alpha=0.25, reference="full")
    exact(output.losses, [0.5786806252925675, 0.92051760297772665])
    exact(output.chosen_rewards, [0.75, -0.0375])
    exact(output.rejected_rewards, [0.50625, 0.375])


def test_gradient_of_the_tail_is_alpha_times_that_of_the_head(pairs, heads, exact):
    ld_dpo_loss(**pairs, **heads, beta=0.3, alpha=0.25).losses.sum().backward()
    slopes = [0.3 * sigmoid(-0.24375), 0.3 * sigmoid(0.6375)]
    # A nat in the head raises the sum and the head, a nat in the tail the sum alone.
    exact(pairs["chosen_logps"].grad, [-0.25 * slope for slope in slopes])
    exact(heads["chosen_head_logps"].grad, [-0.75 * slope for slope in slopes])
    exact(pairs["rejected_logps"].grad, [0.25 * slope for slope in slopes])
    exact(heads["rejected_head_logps"].grad, [0.75 * slope for slope in slopes])


def test_policy_equal_to_reference_costs_ln_2_only_if_both_are_treated_alike(
    equal_pairs, heads, exact
):
    same = {**heads, "ref_chosen_head_logps": heads["chosen_head_logps"]}
    same["ref_rejected_head_logps"] = heads["rejected_head_logps"]
    exact(ld_dpo_loss(**equal_pairs, **same, alpha=0.3).losses, [math.log(2)] * 2)
    full = ld_dpo_loss(**equal_pairs, **same, beta=1.0, alpha=0.0, reference="full").losses
    # Tails of 2, 3.25 and 0.5, 0 nats: margins of 2 - 3.25 and 0.5.
    exact(full, [math.log1p(math.exp(1.25)), math.log1p(math.exp(-0.5))])


def test_alpha_zero_forgets_the_tails(pairs, heads, exact):
    longer = {**pairs, "chosen_logps": pairs["chosen_logps"] - 7}
    losses = ld_dpo_loss(**longer, **heads, alpha=0.0).losses
    exact(losses, ld_dpo_loss(**pairs, **heads, alpha=0.0).losses.tolist())


def test_hyperparameters_must_be_in_range(pairs, heads):
    with pytest.raises(ValueError, match="beta must be greater than 0"):
        ld_dpo_loss(**pairs, **heads, beta=0.0)
    for alpha in (-0.1, 1.1):
        with pytest.raises(ValueError, match="alpha must be from 0 to 1"):
            ld_dpo_loss(**pairs, **heads, alpha=alpha)
    with pytest.raises(ValueError, match="reference must be 'alike' or 'full', got 'none'"):
        ld_dpo_loss(**pairs, **heads, reference="none")
