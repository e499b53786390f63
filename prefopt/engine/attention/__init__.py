"""Attention over the packed row: one interface for transformers, several backends."""

from prefopt.engine.attention.backends import (
    BACKENDS,
    Backend,
    check_request,
    choose_backend,
    drops_weights,
)
from prefopt.engine.attention.flex import attend_flex
from prefopt.engine.attention.interface import NAME, planned_forward
from prefopt.engine.attention.plan import (
    Attend,
    AttentionOptions,
    AttentionPlan,
    KVCache,
    LayerFacts,
)
from prefopt.engine.attention.probe import probe_backend
from prefopt.engine.attention.segments import attend_by_segments
from prefopt.engine.attention.varlen import attend_varlen

__all__ = [
    "BACKENDS",
    "NAME",
    "Attend",
    "AttentionOptions",
    "AttentionPlan",
    "Backend",
    "KVCache",
    "LayerFacts",
    "attend_by_segments",
    "attend_flex",
    "attend_varlen",
    "check_request",
    "choose_backend",
    "drops_weights",
    "planned_forward",
    "probe_backend",
]
