"""Compare the layout and attention that train with the plainest ones, on real data, once.

A scorer proves its layout on a probe of a few tokens when it is made. This asks again with texts of
the length and shape of the data: padded rows, the model's own attention.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from prefopt.engine.layout import Example, LayoutTensors, build_layout
from prefopt.engine.score import Scorer

# Nats per token, mean over a completion. Rounding gives less than 1e-5 in float32; a completion
# that loses its prompt, or sees another one, is off by tenths. Half precision has 8 bits for logits
# of tens.
_TOLERANCE = {True: 1e-3, False: 0.25}


@torch.no_grad()
def check_examples(
    scorer: Scorer, examples: Sequence[Example], context: Callable[[], Any] = nullcontext
) -> float:
    """Score examples in the scorer's layout and in padded rows with the model's own attention.

    Args:
        scorer: What to check.
        examples: A batch of them.
        context: Makes the context of the forward pass, such as ``accelerator.autocast``.

    Returns:
        The largest difference of a token's log-prob; nats.

    Raises:
        ValueError: If a completion differs by more than rounding, naming the worst.
    """

    def score(layout: Any) -> Tensor:
        batch = scorer.to_device(LayoutTensors.of(build_layout(examples, layout)))
        return scorer.score(batch, context=context).per_token_logps

    with scorer.evaluating():
        ours = score(scorer.layout)
        with _own_attention(scorer):
            theirs = score("padded")
    differences = (ours - theirs).abs()
    places = [
        (place, completion)
        for place, example in enumerate(examples)
        for completion in range(len(example.completion_ids))
    ]
    lengths = [int(examples[place].counted(which).sum()) for place, which in places]
    parts = torch.split(differences, lengths)
    means = torch.stack([part.mean() if len(part) else part.sum() for part in parts])
    worst = int(means.nan_to_num(torch.inf).argmax())
    largest, mean = float(parts[worst].max()) if len(parts[worst]) else 0.0, float(means[worst])
    if not mean <= _TOLERANCE[_computes_exactly(scorer, context)]:
        place, completion = places[worst]
        raise ValueError(
            f"the log-probs of example {place}, completion {completion}, differ by up to "
            f"{largest:.2g} nats a token (mean {mean:.2g}) between layout={scorer.layout!r} and "
            "the model's own plain forward, more than rounding; "
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
