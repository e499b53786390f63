import math

import pytest

from prefopt.losses import get_loss
from prefopt.losses.dpo import dpo_loss
from prefopt.losses.robust import robust_loss


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_values_are_those_of_the_paper(pairs, exact):
    # Worked with mpmath, 40 digits, at margins of 0.525 and -0.525.
    output = robust_loss(**pairs, beta=0.3, label_smoothing=0.2)
    exact(output.losses, [0.28971175467299344, 1.1647117546729934])
    exact(output.chosen_rewards, [0.3, -0.15])
    exact(output.rejected_rewards, [-0.225, 0.375])


def test_gradient_adds_a_constant_push_to_that_of_dpo(pairs, exact):
    robust_loss(**pairs, beta=0.3, label_smoothing=0.2).losses.sum().backward()
    slopes = [0.3 * (sigmoid(-m) + 0.2 / 0.6) for m in (0.525, -0.525)]
    exact(pairs["chosen_logps"].grad, [-slope for slope in slopes])
    exact(pairs["rejected_logps"].grad, slopes)


def test_its_mean_over_flipped_labels_is_the_dpo_loss_of_clean_ones(pairs, exact):
    flipped = {
        "chosen_logps": pairs["rejected_logps"],
        "rejected_logps": pairs["chosen_logps"],
        "ref_chosen_logps": pairs["ref_rejected_logps"],
        "ref_rejected_logps": pairs["ref_chosen_logps"],
    }
    kept = robust_loss(**pairs, beta=0.7, label_smoothing=0.3).losses
    swapped = robust_loss(**flipped, beta=0.7, label_smoothing=0.3).losses
    exact(0.7 * kept + 0.3 * swapped, dpo_loss(**pairs, beta=0.7).losses.tolist())


def test_policy_equal_to_reference_costs_ln_2(equal_pairs, exact):
    exact(robust_loss(**equal_pairs, beta=2.0, label_smoothing=0.4).losses, [math.log(2)] * 2)


def test_rdpo_is_another_name():
    assert get_loss("rdpo") is get_loss("robust")


def test_beta_must_be_positive(pairs):
    with pytest.raises(ValueError, match="beta must be greater than 0"):
        robust_loss(**pairs, beta=0.0)


@pytest.mark.parametrize("label_smoothing", [-0.1, 0.5])
def test_label_smoothing_must_be_below_one_half(pairs, label_smoothing):
    with pytest.raises(ValueError, match=r"label_smoothing must be at least 0 and below 0\.5"):
        robust_loss(**pairs, label_smoothing=label_smoothing)
