"""A scored batch, for tests of what losses are given of it."""

import torch

from prefopt.objective.inputs import Completions
from prefopt.objective.preference_index import PreferenceIndex, Ranking


def leaf(size, generator, scale=4.0):
    values = -scale * torch.rand(size, generator=generator, dtype=torch.float64)
    return values.requires_grad_()


def batch(seed=0):
    """Return two examples of three completions each, their index, and what is known of them.

    Of 3, 5, 4 and 2, 6, 4 tokens; the log-probs of the tokens are leaves.
    """
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([3, 5, 4, 2, 6, 4])
    per_token, ref_per_token = leaf(24, generator), leaf(24, generator).detach()
    of_completion = torch.arange(6).repeat_interleave(lengths)
    zeros = torch.zeros(6, dtype=torch.float64)
    completions = Completions(
        zeros.index_add(0, of_completion, per_token),
        lengths,
        zeros.index_add(0, of_completion, ref_per_token),
        per_token,
        ref_per_token,
        divergences=leaf(6, generator).abs(),
        log_collisions=leaf(6, generator, scale=12.0).detach(),
        scalars={
            "kl": torch.tensor(0.3, dtype=torch.float64),
            "mean_kl": torch.tensor(0.07, dtype=torch.float64),
            "mean_log_ratio": torch.tensor(0.3, dtype=torch.float64),
            "mean_margin": torch.tensor(-1.0, dtype=torch.float64),
        },
    )
    ranking = Ranking(
        torch.arange(6).view(2, 3),
        torch.tensor([[3.0, 1.5, 1.0], [4.0, 2.0, 0.5]], dtype=torch.float64),
    )
    index = PreferenceIndex(
        chosen=torch.tensor([0, 0, 1, 3, 3, 4]),
        rejected=torch.tensor([1, 2, 2, 4, 5, 5]),
        margins=torch.tensor([1.5, 2.0, 0.5, 2.0, 3.5, 1.5], dtype=torch.float64),
        unpaired=torch.arange(6),
        labels=torch.tensor([True, True, False, True, True, False]),
        preferred=torch.tensor([0, 3]),
        rankings=(ranking,),
    )
    return index, completions
