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
from prefopt.engine.attention.plan import AttentionOptions, AttentionPlan, LayerFacts, Memory
from prefopt.engine.attention.probe import kernel_problem
from prefopt.engine.attention.segments import attend_by_segments
from prefopt.engine.attention.varlen import attend_varlen

__all__ = [
    "BACKENDS",
    "NAME",
    "AttentionOptions",
    "AttentionPlan",
    "Backend",
    "LayerFacts",
    "Memory",
    "attend_by_segments",
    "attend_flex",
    "attend_varlen",
    "check_request",
    "choose_backend",
    "drops_weights",
    "kernel_problem",
    "planned_forward",
]
