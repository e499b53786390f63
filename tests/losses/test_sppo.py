import pytest
import torch

from prefopt.losses import get_loss
from prefopt.losses.sppo import sppo_loss
from prefopt.objective import parse_objective
from prefopt.objective.inputs import Completions, loss_inputs
from tests.indices import make_index
from tests.models import tiny_rows
from tests.runs import steps, trainer

SOFT = torch.tensor([0.8, 0.35], dtype=torch.float64)
HARD = torch.ones(2, dtype=torch.float64)


def wins(probabilities):
    return {"chosen_win_rates": probabilities, "rejected_win_rates": 1 - probabilities}


def test_values_are_those_of_the_paper(pairs, exact):
    # By hand: targets 0.3 / 0.25 = 1.2 and -0.6; half of 0.2^2 + 0.45^2 and of 0.1^2 + 0.65^2.
    output = sppo_loss(**pairs, **wins(SOFT), beta=0.25)
    exact(output.losses, [0.12125, 0.21625])
    exact(output.chosen_rewards, [0.25, -0.125])
    exact(output.rejected_rewards, [-0.1875, 0.3125])


def test_each_completion_has_a_win_rate_of_its_own(pairs, exact):
    # By hand: the rejected ones' targets are 0.05 / 0.25 = 0.2 and -0.23 / 0.25 = -0.92.
    rejected = torch.tensor([0.55, 0.27], dtype=torch.float64)
    rates = {"chosen_win_rates": SOFT, "rejected_win_rates": rejected}
    output = sppo_loss(**pairs, **rates, beta=0.25, reduction="sum")
    exact(output.losses, [0.2**2 + 0.95**2, 0.1**2 + 2.17**2])


def test_the_sum_of_trl_is_twice_the_mean_of_the_authors(pairs, exact):
    output = sppo_loss(**pairs, **wins(SOFT), beta=0.25, reduction="sum")
    exact(output.losses, [0.2425, 0.4325])


def test_gradient_is_the_distance_of_each_log_ratio_from_its_own_target(pairs, exact):
    sppo_loss(**pairs, **wins(SOFT), beta=0.25).losses.sum().backward()
    exact(pairs["chosen_logps"].grad, [1 - 1.2, -0.5 + 0.6])
    exact(pairs["rejected_logps"].grad, [-0.75 + 1.2, 1.25 - 0.6])


def test_policy_equal_to_reference_costs_the_squared_target(equal_pairs, exact):
    output = sppo_loss(**equal_pairs, **wins(HARD), beta=0.1)
    exact(output.losses, [25.0, 25.0])


def test_a_coin_toss_pulls_both_completions_to_the_reference(equal_pairs, exact):
    output = sppo_loss(**equal_pairs, **wins(HARD / 2), beta=0.1)
    exact(output.losses, [0.0, 0.0])


def test_swapping_the_completions_and_the_probability_changes_nothing(pairs, exact):
    swapped = sppo_loss(
        pairs["rejected_logps"],
        pairs["chosen_logps"],
        pairs["ref_rejected_logps"],
        pairs["ref_chosen_logps"],
        **wins(1 - SOFT),
        beta=0.25,
    )
    exact(swapped.losses, [0.12125, 0.21625])


def test_sppo_hard_is_the_name_trl_uses():
    assert get_loss("sppo_hard") is get_loss("sppo")


def test_another_beta_than_the_papers_warns(warned):
    get_loss("sppo").check_hyperparameters({"beta": 0.1})
    assert warned == [
        "sppo: beta=0.1 is outside the published range: "
        "Wu et al. 2024, arXiv:2405.00675, used 0.001"
    ]


def test_beta_must_be_positive(pairs):
    with pytest.raises(ValueError, match="beta must be greater than 0"):
        sppo_loss(**pairs, **wins(HARD), beta=0.0)


def test_reduction_must_be_one_of_two_words(pairs):
    with pytest.raises(ValueError, match="reduction must be 'mean' or 'sum', got 'max'"):
        sppo_loss(**pairs, **wins(HARD), reduction="max")


def test_win_rates_of_the_data_are_the_targets_in_training(tmp_path):
    """Policy is reference: the loss is half the sum of both squared targets."""
    rows = tiny_rows(4).add_column("win_rate_chosen", [0.9, 0.8, 0.7, None])
    rows = rows.add_column("win_rate_rejected", [0.4, 0.5, 0.1, None])
    trained = trainer(tmp_path, rows, loss_type="sppo", beta=0.1, max_steps=1)
    trained.train()
    # The last row has no rates, and no soft label: 1 and 0.
    squares = [4**2 + 1**2, 3**2 + 0**2, 2**2 + 4**2, 5**2 + 5**2]
    assert steps(trained)[0]["loss"] == pytest.approx(sum(squares) / 2 / 4, rel=1e-4)


@pytest.mark.parametrize("given", [{}, {"preference_probabilities": SOFT}])
def test_without_win_rates_they_are_those_of_the_soft_label(given):
    index = make_index(chosen=[0, 2], rejected=[1, 3], **given)
    known = Completions(torch.zeros(4), torch.ones(4), torch.zeros(4))
    (term,) = parse_objective("sppo").terms
    (inputs,) = loss_inputs(term, index, known)
    wanted = given.get("preference_probabilities", torch.ones(2))
    torch.testing.assert_close(inputs["chosen_win_rates"], wanted)
    torch.testing.assert_close(inputs["rejected_win_rates"], 1 - wanted)
