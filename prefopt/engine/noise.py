"""NEFTune: noise on the embeddings of what is trained on, as each text alone would have it.

Source: Jain et al. 2023, arXiv:2310.05914, Alg. 1: uniform noise of at most alpha / sqrt(L * D) on
each of D values of each of L tokens. Departures from it: a token that several texts share gets
noise once, with the mean of their energies, that is with the mean of 1 / L.

It depends on the text, not on the row that the text is in. Only passes that are asked for it have
it: those that train, and those that look ahead for them. Evaluation, probes, the reference and
KTO's KL estimate have none.
"""

import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from prefopt.engine.layout import Example


class Noise(NamedTuple):
    """Noise of one pass.

    Attributes:
        alpha: How much.
        seed: Where it starts from, so that the pass can be had again.
    """

    alpha: float
    seed: int

    @classmethod
    def of(cls, alpha: float, numbers: Iterable[int], examples: Iterable[Example]) -> "Noise":
        """Return the noise of a pass, which follows from these numbers and from its texts."""
        digest = 0
        for example in examples:
            for ids in (example.prompt_ids, *example.completion_ids):
                digest = zlib.crc32(np.ascontiguousarray(ids).tobytes(), digest)
        seed = np.random.SeedSequence([*numbers, digest]).generate_state(1)[0]
        return cls(alpha, int(seed))


@contextmanager
def noisy_embeddings(
    model: Any, inverse_lengths: Tensor | None, noise: Noise | None
) -> Iterator[None]:
    """Have a model's embedding layer return noisy embeddings.

    Args:
        model: A transformers model.
        inverse_lengths: For each token 1 over the length of its text; (R, T).
        noise: None for none.
    """
    if noise is None or inverse_lengths is None:
        yield
        return

    def add(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        generator = torch.Generator(output.device).manual_seed(noise.seed)
        values = torch.empty(output.shape, dtype=torch.float32, device=output.device)
        values.uniform_(-1, 1, generator=generator)
        most = noise.alpha * (inverse_lengths.to(values) / output.shape[-1]).sqrt()
        return output + (values * most[..., None]).to(output.dtype)

    embeddings: nn.Module = model.get_input_embeddings()
    hook = embeddings.register_forward_hook(add)
    try:
        yield
    finally:
        hook.remove()


def inverse_lengths_of(attention_mask: Tensor, left_out: int) -> Tensor:
    """Return for each token of padded rows 1 over the length of its text; (R, T).

    Args:
        attention_mask: True for tokens; (R, T).
        left_out: Tokens of each text that are not in its row.
    """
    lengths = attention_mask.sum(1, keepdim=True) + left_out
    return (1 / lengths).expand(attention_mask.shape)
