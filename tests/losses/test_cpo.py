import math

import pytest
import torch

from prefopt.losses.cpo import cpo_hinge_loss, cpo_ipo_loss, cpo_loss
from prefopt.losses.dpo import dpo_loss
from prefopt.losses.slic import slic_loss
from prefopt.objective import parse_objective


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.fixture
def policy(pairs):
    return {name: pairs[name] for name in ("chosen_logps", "rejected_logps")}


def test_values_are_logistic_in_the_difference_of_log_probs(policy, exact):
    # Worked with mpmath, 40 digits, at differences of 2.25 and -2.5 nats.
    output = cpo_loss(**policy, beta=0.3, label_smoothing=0.2)
    exact(output.losses, [0.54655083286785244, 0.98687100611489994])
    exact(output.chosen_rewards, [-3.0, -6.15])
    exact(output.rejected_rewards, [-3.675, -5.4])


def test_gradient_weighs_a_pair_by_the_sigmoid_of_the_reversed_margin(policy, exact):
    cpo_loss(**policy, beta=0.3, label_smoothing=0.2).losses.sum().backward()
    slopes = [0.3 * (0.8 * sigmoid(-m) - 0.2 * sigmoid(m)) for m in (0.675, -0.75)]
    exact(policy["chosen_logps"].grad, [-slope for slope in slopes])
    exact(policy["rejected_logps"].grad, slopes)


def test_cpo_is_dpo_with_a_uniform_reference(policy, exact):
    uniform = {
        "ref_chosen_logps": torch.full((2,), -7.0, dtype=torch.float64),
        "ref_rejected_logps": torch.full((2,), -7.0, dtype=torch.float64),
    }
    options = {"beta": 0.7, "label_smoothing": 0.1}
    dpo = dpo_loss(**policy, **uniform, **options)
    exact(cpo_loss(**policy, **options).losses, dpo.losses.tolist())


def test_equal_log_probs_cost_ln_2_and_a_common_shift_nothing(policy, exact):
    chosen, rejected = policy.values()
    exact(cpo_loss(chosen, chosen, beta=3.0).losses, [math.log(2)] * 2)
    exact(cpo_loss(chosen - 5, rejected - 5).losses, cpo_loss(**policy).losses.tolist())


def test_the_likelihood_term_of_the_paper_is_a_sum():
    assert parse_objective("cpo + sft").inputs == {
        "chosen_logps",
        "rejected_logps",
        "chosen_lengths",
    }


def test_hinge_is_zero_from_one_over_beta_nats_on(policy, exact):
    # By hand: 1 - 0.3 * 2.25 and 1 + 0.3 * 2.5; then a margin of 0.5 * 2.25 > 1.
    output = cpo_hinge_loss(**policy, beta=0.3)
    exact(output.losses, [0.325, 1.75])
    exact(output.chosen_rewards, [-3.0, -6.15])
    exact(output.rejected_rewards, [-3.675, -5.4])
    cpo_hinge_loss(**policy, beta=0.5).losses.sum().backward()
    exact(policy["chosen_logps"].grad, [0.0, -0.5])
    exact(policy["rejected_logps"].grad, [0.0, 0.5])


def test_hinge_is_beta_times_slics_calibration(policy, exact):
    calibration = slic_loss(**policy, delta=1 / 0.3, lambda_=0.0).losses
    exact(cpo_hinge_loss(**policy, beta=0.3).losses, (0.3 * calibration).tolist())


def test_ipo_variant_squares_the_gap_per_token(policy, lengths, exact):
    # Worked with mpmath, 40 digits: gaps of -0.05 and 3.0714 nats per token, target 1/0.6.
    output = cpo_ipo_loss(**policy, **lengths, beta=0.3)
    exact(output.losses, [2.9469444444444444, 1.9733560090702948])
    exact(output.chosen_rewards, [-0.75, 0.3 * -20.5 / 7])
    exact(output.rejected_rewards, [-0.735, -1.8])
    output.losses.sum().backward()
    errors = [-0.05 - 1 / 0.6, 6 - 20.5 / 7 - 1 / 0.6]
    exact(policy["chosen_logps"].grad, [2 * errors[0] / 4, 2 * errors[1] / 7])
    exact(policy["rejected_logps"].grad, [-2 * errors[0] / 5, -2 * errors[1] / 3])


def test_ipo_variant_is_zero_at_its_target_gap(exact):
    chosen = torch.tensor([-4.0], dtype=torch.float64)
    rejected = torch.tensor([-20.0], dtype=torch.float64)
    losses = cpo_ipo_loss(chosen, rejected, torch.tensor([4]), torch.tensor([4]), beta=0.125).losses
    exact(losses, [0.0])


@pytest.mark.parametrize("loss", [cpo_loss, cpo_hinge_loss])
def test_beta_must_be_positive(policy, loss):
    with pytest.raises(ValueError, match="beta must be greater than 0"):
        loss(**policy, beta=0.0)


def test_beta_of_the_ipo_variant_must_be_positive(policy, lengths):
    with pytest.raises(ValueError, match="beta must be greater than 0"):
        cpo_ipo_loss(**policy, **lengths, beta=0.0)


def test_label_smoothing_must_be_below_one_half(policy):
    with pytest.raises(ValueError, match=r"label_smoothing must be at least 0 and below 0\.5"):
        cpo_loss(**policy, label_smoothing=0.5)
