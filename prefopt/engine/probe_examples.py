"""Probe a scorer on real data: its layout and attention against the model's plain forward pass.

A scorer probes its layout with a few tokens when it is made. This probe takes texts of the length
and shape of the data, and compares with padded rows and the model's own attention.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from prefopt.engine.layout import Example, LayoutName, build_layout
from prefopt.engine.score import Scorer, Scores

# Nats per token, mean over a completion. Rounding gives less than 1e-5 in float32; a completion
# that does not see its prompt, or sees another one, differs by tenths. Half precision has 8 bits
# for logits of tens.
_TOLERANCE = {True: 1e-3, False: 0.25}


@torch.no_grad()
def probe_examples(
    scorer: Scorer, examples: Sequence[Example], context: Callable[[], Any] = nullcontext
) -> float:
    """Score examples in the scorer's layout and in padded rows with the model's own attention.

    Returns the largest difference of a token's log-prob; nats.

    Raises:
        ValueError: If a completion differs by more than rounding, naming the worst.
    """

    def score(layout: LayoutName) -> Scores:
        batch = scorer.to_device(build_layout(examples, layout))
        return scorer.score(batch, context=context)

    with scorer.evaluating():
        ours = score(scorer.layout)
        with _own_attention(scorer):
            theirs = score("padded")
    differences = (ours.per_token_logps - theirs.per_token_logps).abs()
    by_completion = torch.split(differences, ours.lengths.tolist())
    means = torch.stack([part.sum() / max(len(part), 1) for part in by_completion])
    worst = int(means.nan_to_num(torch.inf).argmax())
    if not means[worst] <= _TOLERANCE[_computes_exactly(scorer, context)]:
        counts = [range(len(example.completion_ids)) for example in examples]
        places = [(example, one) for example, count in enumerate(counts) for one in count]
        example, completion = places[worst]
        largest, mean = float(by_completion[worst].max()), float(means[worst])
        raise ValueError(
            f"the log-probs of example {example}, completion {completion}, differ by up to "
            f"{largest:.2g} nats a token (mean {mean:.2g}) between "
            f"layout={scorer.layout!r} and the model's own plain forward, more than rounding; "
            'train with layout="padded", and report the model to prefopt'
        )
    return float(differences.max()) if len(differences) else 0.0


@contextmanager
def _own_attention(scorer: Scorer) -> Iterator[None]:
    model = scorer.model
    current = model.config._attn_implementation
    model.set_attn_implementation(scorer.own_attention)
    try:
        yield
    finally:
        model.set_attn_implementation(current)


def _computes_exactly(scorer: Scorer, context: Callable[[], Any]) -> bool:
    device = scorer.model.device.type
    with context():
        autocast = torch.is_autocast_enabled(device)
    exact = scorer.model.dtype in (torch.float32, torch.float64)
    quantised = getattr(scorer.model, "is_quantized", False)
    return exact and not autocast and not quantised
