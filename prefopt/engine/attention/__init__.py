"""Attention over the packed row: one interface for transformers, several backends."""

from prefopt.engine.attention.interface import NAME, planned_forward
from prefopt.engine.attention.plan import AttentionOptions, AttentionPlan, LayerFacts, Memory
from prefopt.engine.attention.segments import attend_by_segments

__all__ = [
    "NAME",
    "AttentionOptions",
    "AttentionPlan",
    "LayerFacts",
    "Memory",
    "attend_by_segments",
    "planned_forward",
]
