"""What several losses share: averages over tokens and checks of hyper-parameters."""

import math

from torch import Tensor


def average_logps(logps: Tensor, lengths: Tensor) -> Tensor:
    """Return log-probs per token.

    Args:
        logps: Log-prob of a completion, summed over tokens; (B,), nats.
        lengths: Its length; (B,), tokens. A completion without tokens averages to its sum, 0.

    Returns:
        Mean log-probs; (B,), nats per token.
    """
    return logps / lengths.clamp(min=1)


def check_positive(**values: float) -> None:
    """Raise ValueError unless every value is greater than 0 and finite.

    Args:
        **values: Hyper-parameters by name.
    """
    for name, value in values.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be greater than 0 and finite, got {value}")


def check_not_negative(**values: float) -> None:
    """Raise ValueError unless every value is at least 0 and finite.

    Args:
        **values: Hyper-parameters by name.
    """
    for name, value in values.items():
        if not (value >= 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be at least 0 and finite, got {value}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless the value is one of the choices.

    Args:
        name: Name of the hyper-parameter.
        value: Its value.
        choices: The values it can have.
    """
    if value not in choices:
        raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, got {value!r}")
