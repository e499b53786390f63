"""What several losses share: means over tokens, a safe exponential, checks of hyper-parameters."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

logger = logging.getLogger("prefopt")

# Hyper-parameters already warned about, as (source, name).
_warned: set[tuple[str, str]] = set()


def average_logps(logps: Tensor, lengths: Tensor) -> Tensor:
    """Return summed log-probs, (B,), nats, per token; a completion without tokens keeps its 0."""
    return logps / lengths.clamp(min=1)


def head_and_tail(logps: Tensor, head_logps: Tensor, alpha: float) -> Tensor:
    """Return the log-prob of the first tokens plus alpha times that of the others; (B,), nats."""
    return alpha * logps + (1 - alpha) * head_logps


def require_margin(ref_chosen_logps: Tensor, offsets: Tensor, beta: float) -> Tensor:
    """Return reference log-probs with which the margin of rewards must exceed an offset.

    Log-probs are (B,), in nats; offsets (B,), in units of reward. What a loss calls the reward of
    the chosen completion is then less by the offset.
    """
    return ref_chosen_logps + offsets / beta


def smoothed_logistic(margins: Tensor, label_smoothing: float) -> Tensor:
    """Return -(1 - e) log sigmoid(m) - e log sigmoid(-m), e the probability of a flipped label.

    Margins m of rewards are (B,), as is what is returned.
    """
    return -(1 - label_smoothing) * logsigmoid(margins) - label_smoothing * logsigmoid(-margins)


def exponential(exponents: Tensor) -> Tensor:
    """Return exp(x), continued along its tangent where it leaves the range of the number format.

    The tangent takes over at an exponent of 44.3 in float32 and 665.4 in float64. Beyond it nothing
    overflows, in float32 not even the squares of gradients, which a gradient norm needs.
    """
    limit = math.log(torch.finfo(exponents.dtype).max) - 44.4
    exact = exponents.clamp(max=limit)
    return torch.exp(exact) * (1 + exponents - exact)


def check_positive(**values: float) -> None:
    """Raise ValueError unless every value is greater than 0 and finite."""
    for name, value in values.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be greater than 0 and finite, got {value}")


def check_not_negative(**values: float) -> None:
    """Raise ValueError unless every value is at least 0 and finite."""
    for name, value in values.items():
        if not (value >= 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be at least 0 and finite, got {value}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless the value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, got {value!r}")


def check_label_smoothing(label_smoothing: float) -> None:
    """Raise ValueError unless the probability of a flipped label is at least 0 and below 0.5."""
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must be at least 0 and below 0.5, got {label_smoothing}")


def warn_outside(name: str, value: float, low: float, high: float, source: str) -> None:
    """Log a warning, once per process, if a hyper-parameter is outside its published range.

    A range of one hyper-parameter is declared where the loss is registered (``published``); this is
    for what is no hyper-parameter itself, such as a ratio of two.
    """
    if low <= value <= high or (source, name) in _warned:
        return
    _warned.add((source, name))
    logger.warning(
        "%s=%s is outside the published range: %s used %s",
        name,
        value,
        source,
        published_range(low, high),
    )


def published_range(low: float, high: float) -> str:
    """Return a range of published values in words."""
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


@contextmanager
def without_warnings() -> Iterator[None]:
    """Switch off warnings, for losses that are called with unpublished values on purpose."""
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
