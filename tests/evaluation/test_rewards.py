"""Implicit rewards of pairs, worked by hand for each kind of loss."""

import pytest
import torch

from prefopt.evaluation import PairLogps, implicit_rewards
from prefopt.losses import list_losses
from prefopt.objective import parse_objective
from prefopt.objective.options import LossOptions

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


def test_a_loss_on_parts_of_completions_needs_the_log_probs_of_their_tokens():
    # The shorter one has 2 tokens: of the other, what comes after them counts half.
    tokens = torch.tensor([-1.0, -2.0, -3.0, -1.0, -1.0, -2.0])
    policy = PairLogps(
        torch.tensor([-3.0]), torch.tensor([-7.0]), torch.tensor([2]), torch.tensor([4]), tokens
    )
    sums = {"chosen": torch.tensor([-2.0]), "rejected": torch.tensor([-4.0])}
    reference = policy._replace(**sums, per_token=-torch.ones(6))
    objective = parse_objective("dpo", loss_options=LossOptions(ld_alpha=0.5))
    rewards = implicit_rewards(objective, policy, reference)
    assert rewards.chosen.tolist() == pytest.approx([-0.1])
    assert rewards.rejected.tolist() == pytest.approx([0.1 * (-4 - 1.5 + 2 + 1)])
    with pytest.raises(ValueError, match="'dpo' need `per_token` log-probs"):
        implicit_rewards(objective, policy._replace(per_token=None), reference)


def of_four_tokens(logps):
    """Return what a model thinks of completions of 4 equally likely tokens, chosen ones first."""
    chosen, rejected = torch.tensor(logps).split(2)
    four = torch.tensor([4, 4])
    return PairLogps(chosen, rejected, four, four, (torch.tensor(logps) / 4).repeat_interleave(4))


@pytest.mark.parametrize("name", [loss.name for loss in list_losses()])
def test_every_loss_has_rewards_or_says_why_not(name):
    # The policy finds the first chosen completion likelier than the rejected one, not the second.
    policy, reference = of_four_tokens([-4.0, -8.0, -6.0, -4.0]), of_four_tokens([-5.0] * 4)
    unsaid = {"sft": "no rewards", "squared_log_ratio": "no rewards", "tdpo": "only training has"}
    if name in unsaid:
        with pytest.raises(ValueError, match=unsaid[name]):
            implicit_rewards(parse_objective(name), policy, reference)
    else:
        chosen, rejected = implicit_rewards(parse_objective(name), policy, reference)
        assert (chosen > rejected).tolist() == [True, False]
