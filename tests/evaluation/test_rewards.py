"""Implicit rewards of pairs, worked by hand for each kind of loss."""

import pytest
import torch

from prefopt.evaluation import PairLogps, implicit_rewards
from prefopt.losses import parse_objective

LENGTHS = (torch.tensor([2, 4]), torch.tensor([4, 8]))
POLICY = PairLogps(torch.tensor([-4.0, -8.0]), torch.tensor([-6.0, -4.0]), *LENGTHS)
REFERENCE = PairLogps(torch.tensor([-5.0, -5.0]), torch.tensor([-5.0, -5.0]), *LENGTHS)


@pytest.mark.parametrize("loss", ["dpo", "kto", "dpo + 0.5*sft", "sft + kto"])
def test_losses_with_a_reference_reward_the_log_ratio(loss):
    objective = parse_objective(loss, options={"beta": 0.2})
    rewards = implicit_rewards(objective, POLICY, REFERENCE)
    assert rewards.chosen.tolist() == pytest.approx([0.2, -0.6])
    assert rewards.rejected.tolist() == pytest.approx([-0.2, 0.2])


def test_orpo_rewards_the_mean_log_prob_without_a_reference():
    objective = parse_objective("orpo", options={"lambda": 2.0})
    rewards = implicit_rewards(objective, POLICY)
    assert rewards.chosen.tolist() == pytest.approx([-4.0, -4.0])
    assert rewards.rejected.tolist() == pytest.approx([-3.0, -1.0])


def test_a_missing_reference_and_a_loss_without_rewards_are_errors():
    with pytest.raises(ValueError, match="'dpo' need the log-probs of the reference"):
        implicit_rewards(parse_objective("dpo"), POLICY)
    with pytest.raises(ValueError, match="'sft' defines no rewards"):
        implicit_rewards(parse_objective("sft"), POLICY)
