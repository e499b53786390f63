"""The attention function that transformers calls: ours with a plan, the model's own without one.

It is registered through transformers' attention interface under ``NAME``; model classes are never
patched. A forward pass that brings a plan (keyword ``prefopt_plan``) attends as its segments say;
one without a plan (generation, a plain batch) is computed as by the model's own attention.

The plan travels as a keyword argument, which gradient checkpointing keeps, so a layer recomputed in
the backward pass gets the plan of its own forward pass.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask

from prefopt.engine.attention.plan import AttentionOptions, AttentionPlan, LayerFacts
from prefopt.engine.precision import computing_dtype

NAME = "prefopt"


def prefopt_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    prefopt_plan: AttentionPlan | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend in one layer; the function that transformers' ``AttentionInterface`` calls.

    Query (1, heads, T, head_dim), key and value (1, key-value heads, T, head_dim) become the output
    (1, T, heads, head_dim), and None for the weights. A plan replaces the mask.

    Raises:
        NotImplementedError: If the layer adds a position bias to its scores, which no backend does.
    """
    if prefopt_plan is None:
        kwargs |= {"scaling": scaling, "dropout": dropout}
        return _plain(module, query, key, value, attention_mask, **kwargs)
    if kwargs.get("position_bias") is not None:
        raise NotImplementedError("attention with a position bias cannot share prefixes")
    window = kwargs.get("sliding_window")
    options = AttentionOptions(scaling, dropout, window, kwargs.get("softcap"), kwargs.get("s_aux"))
    prefopt_plan.seen.add(LayerFacts.of(query, value, options))
    dtype = computing_dtype(value)
    key, value = prefopt_plan.layer(key.to(dtype), value.to(dtype))
    query = query.to(dtype)
    output = prefopt_plan.attend(query, key, value, prefopt_plan, options)
    return output.transpose(1, 2), None


def _plain(module: nn.Module, *inputs: Tensor | None, **options: Any) -> tuple[Tensor, None]:
    """Attend as the model's own attention would: by SDPA, or eagerly for what SDPA lacks."""
    needs_eager = options.get("softcap") is not None or options.get("s_aux") is not None
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    attend = eager if needs_eager and eager is not None else sdpa_attention_forward
    output, _ = attend(module, *inputs, **options)
    return output, None


_planned = False


@contextmanager
def planned_forward() -> Iterator[None]:
    """Keep models from building attention masks until the context ends: the plan replaces them."""
    global _planned
    outer, _planned = _planned, True
    try:
        yield
    finally:
        _planned = outer


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    # Both SDPA and the eager functions that `_plain` may call take additive masks.
    return None if _planned else eager_mask(*args, **kwargs)


AttentionInterface.register(NAME, prefopt_attention)
AttentionMaskInterface.register(NAME, _mask)
