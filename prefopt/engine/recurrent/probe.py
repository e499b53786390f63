"""Probe whether texts of one row change each other: state that passes from one to the next."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefopt.engine.forward import Forward
from prefopt.engine.guard import undisturbed
from prefopt.engine.layout import Example, build_layout
from prefopt.engine.probe import close, is_exact, probe_inputs

Ints = NDArray[np.int64]


def probe_trees(forward: Forward) -> list[Example]:
    """Return two small trees, and for recurrent layers a third, with branches of branches."""
    tokens = _tokens(forward)
    examples = [
        Example(tokens[:5], [tokens[5:9], tokens[8:11]]),
        Example(tokens[2:6], [tokens[6:11], np.concatenate([tokens[6:8], tokens[:3]])]),
    ]
    if forward.mixers:
        ends = [np.concatenate([tokens[3:11], end]) for end in (tokens[:2], tokens[5:8])]
        examples.append(Example(tokens[1:4], [*ends, tokens[6:9]]))
    return examples


@torch.no_grad()
def probe_leaks(forward: Forward, mixing: bool) -> str | None:
    """Return what is wrong if the log-probs of a text change with another text of its row.

    They must be the same to the bit, unless two passes over one row differ, or layers that compute
    tokens of several texts as one (``mixing``, of experts) round them together.
    """
    examples, tokens = probe_trees(forward), _tokens(forward)
    others = dict(zip(tokens.tolist(), np.roll(tokens, 1).tolist(), strict=True))
    last = len(examples) - 1
    with undisturbed(forward.model, forward.asked_in_training_mode):
        before, again = _logps(forward, examples), _logps(forward, examples)
        exact = not mixing and all(map(torch.equal, before, again))
        for changed, kept in ((0, slice(1, None)), (last, slice(last))):
            mixed = list(examples)
            mixed[changed] = _renamed(mixed[changed], others)
            after = _logps(forward, mixed)
            for ours, theirs in zip(after[kept], before[kept], strict=True):
                same = close(ours, theirs, is_exact(forward.model))
                if not (torch.equal(ours, theirs) if exact else same):
                    return "log-probs of a text change with another text of its row"
    return None


def _tokens(forward: Forward) -> Ints:
    tokens: Ints = probe_inputs(forward.causal_lm)["input_ids"][0].cpu().numpy()
    return tokens


def _logps(forward: Forward, examples: Sequence[Example]) -> list[Tensor]:
    """Return the log-probs of each example's tokens, completion after completion."""
    batch = build_layout(examples).to(forward.causal_lm.device)
    logps = forward(batch).logps.index_select(0, batch.token_index)
    return list(torch.split(logps, [sum(map(len, one.completion_ids)) for one in examples]))


def _renamed(example: Example, names: dict[int, int]) -> Example:
    """Return an example of the same shape, with other tokens."""

    def rename(ids: Ints) -> Ints:
        return np.array([names[one] for one in ids.tolist()], dtype=ids.dtype)

    return Example(rename(example.prompt_ids), [rename(one) for one in example.completion_ids])
