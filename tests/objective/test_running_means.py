import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import logsigmoid

from prefopt.losses import LossOutput, register_loss
from prefopt.objective import LossOptions, parse_objective
from prefopt.objective.inputs import Completions
from prefopt.objective.running_means import RunningMeans, running_sums
from tests.indices import make_index
from tests.objective.batches import batch


def test_means_are_0_before_the_first_step():
    assert RunningMeans(2).means() == [{"mean_log_ratio": 0.0, "mean_margin": 0.0}] * 2


def test_running_means_count_completions_and_forget_margins_slowly():
    pairs, unpaired = parse_objective({"paired": "beta_dpo", "unpaired": "bco"}).terms
    means = RunningMeans(2)
    log_ratios = torch.tensor([1.0, -1.0, 4.0, 1.0])
    known = Completions(log_ratios, torch.ones(4), torch.zeros(4))
    index = make_index(chosen=[0, 2], rejected=[1, 1], unpaired=[0, 1, 2], labels=[True] * 3)
    sums = [running_sums(term, index, known) for term in (pairs, unpaired)]
    first = means.updated(torch.stack(sums))
    assert float(first[0]["mean_margin"]) == pytest.approx(0.1 * 3.5)
    assert float(first[1]["mean_log_ratio"]) == pytest.approx(4 / 3)
    index = make_index(unpaired=[3], labels=[True])  # a step without pairs
    sums = [running_sums(term, index, known) for term in (pairs, unpaired)]
    second = means.updated(torch.stack(sums))
    assert float(second[0]["mean_margin"]) == pytest.approx(0.1 * 3.5)
    assert float(second[1]["mean_log_ratio"]) == pytest.approx(5 / 4)


def test_a_checkpoint_holds_the_means_of_as_many_losses():
    means = RunningMeans(2)
    means.updated(torch.tensor([[3.0, 2.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]))
    again = RunningMeans(2)
    again.load_state_dict(means.state_dict())
    assert again.means() == means.means() != RunningMeans(2).means()
    with pytest.raises(ValueError, match="means of 2 losses, this objective has 1"):
        RunningMeans(1).load_state_dict(means.state_dict())


def test_a_loss_that_takes_no_running_mean_adds_nothing():
    (term,) = parse_objective("dpo").terms
    assert running_sums(term, *batch()).tolist() == [0.0] * 4


def test_sums_are_of_log_ratios_as_the_loss_is_given_them():
    """Light tails, another divergence, per token: the first pair has 3 and 5 tokens."""
    index, completions = batch()
    index = replace(index, chosen=torch.tensor([0]), rejected=torch.tensor([1]))
    options = LossOptions(ld_alpha=0.5, f_divergence_type="js_divergence", length_normalize=True)
    (term,) = parse_objective("bco_pair", loss_options=options).terms
    ratios = (completions.per_token_logps - completions.ref_per_token_logps).detach()
    chosen = (math.log(2) + logsigmoid(ratios[:3].sum())) / 3
    rejected = (math.log(2) + logsigmoid(ratios[3:6].sum() + 0.5 * ratios[6:8].sum())) / 5
    wanted = torch.stack([chosen + rejected, torch.tensor(2.0), chosen - rejected, torch.tensor(1)])
    found = running_sums(term, index, completions)
    torch.testing.assert_close(found, wanted)
    assert not found.requires_grad


def test_each_loss_of_a_sum_has_running_means_under_its_own_options():
    """BCO on unpaired data has no tails, so its mean stays that of whole completions."""
    index, completions = batch()
    options = LossOptions(ld_alpha=0.5)
    pairs, unpaired = parse_objective("bco_pair + bco", loss_options=options).terms
    whole = (completions.logps - completions.ref_logps).detach()
    of_unpaired = running_sums(unpaired, index, completions)
    torch.testing.assert_close(of_unpaired[:2], torch.stack([whole.sum(), torch.tensor(6.0)]))
    assert of_unpaired[3] == 0
    of_pairs = running_sums(pairs, index, completions)
    twice = whole[index.chosen].sum() + whole[index.rejected].sum()
    assert of_pairs[1] == 12
    assert abs(of_pairs[0] - twice) > 0.1


@pytest.mark.usefixtures("scratch_registry")
def test_a_running_mean_of_log_ratios_that_a_loss_is_not_given_is_an_error():
    @register_loss("shifted")
    def shifted(logps, desirable, mean_log_ratio):
        return LossOutput(mean_log_ratio - logps, rewards=logps.detach())

    (term,) = parse_objective("shifted").terms
    with pytest.raises(ValueError, match="'shifted' takes a running mean of log-ratios, but"):
        running_sums(term, *batch())
