import pytest
import torch

from prefopt.losses import get_loss
from prefopt.losses.sft import sft_loss


@pytest.fixture
def best(pairs, lengths):
    return {"chosen_logps": pairs["chosen_logps"], "chosen_lengths": lengths["chosen_lengths"]}


def test_mean_over_tokens_weighs_every_token_the_same(best, exact):
    loss = get_loss("sft")
    losses = loss(**best, normalize="token").losses
    mean = losses.sum() / loss.unit_counts(best, {"normalize": "token"}).sum()
    exact(mean, (10.0 + 20.5) / 11)


def test_mean_over_sequences_weighs_every_completion_the_same(best, exact):
    loss = get_loss("sft")
    losses = loss(**best, normalize="sequence").losses
    exact(losses, [2.5, 20.5 / 7])
    assert loss.unit_counts(best, {"normalize": "sequence"}).tolist() == [1, 1]


def test_mean_over_tokens_equals_cross_entropy(exact):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 7, generator=generator, dtype=torch.float64)
    targets = torch.randint(7, (3, 5), generator=generator)
    mask = torch.arange(5) < torch.tensor([[2], [5], [3]])
    logps = logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    inputs = {"chosen_logps": (logps * mask).sum(1), "chosen_lengths": mask.sum(1)}
    loss = get_loss("sft")
    mean = loss(**inputs).losses.sum() / loss.unit_counts(inputs).sum()
    exact(mean, torch.nn.functional.cross_entropy(logits[mask], targets[mask]).item())


@pytest.mark.parametrize(
    ("normalize", "slopes"), [("token", [-1, -1]), ("sequence", [-1 / 4, -1 / 7])]
)
def test_gradient_is_minus_one_per_unit(best, exact, normalize, slopes):
    sft_loss(**best, normalize=normalize).losses.sum().backward()
    exact(best["chosen_logps"].grad, slopes)


@pytest.mark.parametrize("normalize", ["token", "sequence"])
def test_a_certain_completion_costs_nothing(best, normalize):
    certain = {**best, "chosen_logps": torch.zeros(2)}
    assert sft_loss(**certain, normalize=normalize).losses.tolist() == [0, 0]


def test_has_no_rewards(best):
    assert sft_loss(**best)[1:] == (None, None, None)


def test_normalize_must_be_one_of_two_words(best):
    with pytest.raises(ValueError, match="normalize must be 'token' or 'sequence', got 'mean'"):
        sft_loss(**best, normalize="mean")
