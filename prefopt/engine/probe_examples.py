"""Probe a scorer on real data: its layout and attention against the model's plain forward pass.

A scorer probes its layout with a few tokens when it is made. This probe takes texts of the length
and shape of the data, and compares with the model's own forward pass of each text alone.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from prefopt.engine.layout import Example, build_layout
from prefopt.engine.score import Scorer

# Nats per token, mean over a completion. Rounding gives less than 1e-5 in float32; a completion
# that does not see its prompt, or sees another one, differs by tenths. Half precision has 8 bits
# for logits of tens.
_TOLERANCE = {True: 1e-3, False: 0.25}


@torch.no_grad()
def probe_examples(
    scorer: Scorer, examples: Sequence[Example], context: Callable[[], Any] = nullcontext
) -> float:
    """Score examples in the scorer's layout, and each text alone by the model's plain forward pass.

    Returns the largest difference of a token's log-prob; nats.

    Raises:
        ValueError: If a completion differs by more than rounding, naming the worst.
    """
    with scorer.evaluating():
        batch = scorer.to_device(build_layout(examples, scorer.layout))
        scores = scorer.score(batch, context=context)
        plain = torch.cat(
            [part for example in examples for part in _plain_logps(scorer, example, context)]
        )
    differences = (scores.per_token_logps - plain).abs()
    by_completion = torch.split(differences, scores.lengths.tolist())
    means = torch.stack([part.sum() / max(len(part), 1) for part in by_completion])
    worst = int(means.nan_to_num(torch.inf).argmax())
    if not means[worst] <= _TOLERANCE[_computes_exactly(scorer, context)]:
        counts = [range(len(example.completion_ids)) for example in examples]
        places = [(example, one) for example, count in enumerate(counts) for one in count]
        example, completion = places[worst]
        largest, mean = float(by_completion[worst].max()), float(means[worst])
        advice = '; train with layout="padded"' if scorer.layout != "padded" else ""
        raise ValueError(
            f"the log-probs of example {example}, completion {completion}, differ by up to "
            f"{largest:.2g} nats a token (mean {mean:.2g}) between "
            f"layout={scorer.layout!r} and the model's own plain forward, more than rounding"
            f"{advice}; and report the model to prefopt"
        )
    return float(differences.max()) if len(differences) else 0.0


def _plain_logps(scorer: Scorer, example: Example, context: Callable[[], Any]) -> list[Tensor]:
    """Return the log-probs of the scored tokens of each completion, each text computed alone."""
    plain = []
    for text, counted in zip(example.texts(), example.counted_masks(), strict=True):
        prompt_length = len(example.prompt_ids)
        logps = scorer.plain_logps(torch.from_numpy(text), prompt_length, context)
        every = torch.cat([logps.new_zeros(1), logps])  # nothing predicts the first token
        plain.append(every[prompt_length:][torch.from_numpy(counted).to(logps.device)])
    return plain


def _computes_exactly(scorer: Scorer, context: Callable[[], Any]) -> bool:
    device = scorer.model.device.type
    with context():
        autocast = torch.is_autocast_enabled(device)
    exact = scorer.model.dtype in (torch.float32, torch.float64)
    quantised = getattr(scorer.model, "is_quantized", False)
    return exact and not autocast and not quantised
