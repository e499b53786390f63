import pytest

from prefopt.losses import get_loss
from prefopt.losses.hinge import hinge_loss


def test_values_are_one_minus_the_margin(pairs, exact):
    # By hand: 1 - 0.4 * 1.75 and 1 + 0.4 * 1.75.
    output = hinge_loss(**pairs, beta=0.4)
    exact(output.losses, [0.3, 1.7])
    exact(output.chosen_rewards, [0.4, -0.2])
    exact(output.rejected_rewards, [-0.3, 0.5])


def test_gradient_is_beta_up_to_the_margin_and_zero_beyond(pairs, exact):
    hinge_loss(**pairs, beta=0.8).losses.sum().backward()  # margins 1.4 and -1.4
    exact(pairs["chosen_logps"].grad, [0.0, -0.8])
    exact(pairs["rejected_logps"].grad, [0.0, 0.8])


def test_policy_equal_to_reference_costs_one(pairs, exact):
    same = {**pairs, "ref_chosen_logps": pairs["chosen_logps"]}
    same["ref_rejected_logps"] = pairs["rejected_logps"]
    exact(hinge_loss(**same, beta=0.7).losses, [1.0, 1.0])


def test_rso_is_another_name():
    assert get_loss("rso") is get_loss("hinge")


def test_beta_must_be_positive(pairs):
    with pytest.raises(ValueError, match="beta must be greater than 0"):
        hinge_loss(**pairs, beta=-1.0)
