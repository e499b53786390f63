"""What needs no training and stands beside the methods: choosing by length, the data's answers."""

from collections.abc import Mapping
from typing import NamedTuple

from prefopt.evaluation import Estimate

__all__ = ["rule_title", "rules_of"]

_ACCURACIES = ("accuracy", "log_ratio_accuracy")


class _Rule(NamedTuple):
    """What a baseline of the data is, and the metrics that it can be compared with."""

    title: str
    metrics: tuple[str, ...] = _ACCURACIES


_RULES = {
    "longer": _Rule("always the longer answer"),
    "shorter": _Rule("always the shorter answer"),
    "start": _Rule("the start's own log-probs"),
    "chosen_reward": _Rule("the data's chosen answers", ("reward",)),
    "rejected_reward": _Rule("the data's rejected answers", ("reward",)),
}


def rule_title(name: str) -> str:
    """Return what a key of ``Comparison.data_baselines`` means, in words.

    Args:
        name: The key.
    """
    return _RULES.get(name, _Rule(name)).title


def rules_of(metric: str, baselines: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """Return the baselines that stand beside a metric; keys that are not known are accuracies.

    Args:
        metric: Name of the metric.
        baselines: ``Comparison.data_baselines``.
    """
    return {
        name: estimate
        for name, estimate in baselines.items()
        if metric in _RULES.get(name, _Rule(name)).metrics
    }
