"""Prefopt: one trainer and a zoo of losses for preference optimisation of language models.

The public names are imported when first used, so ``import prefopt`` touches no file, device or
network, and costs no import of torch or transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefopt.config import PreferenceConfig
    from prefopt.losses import Loss, LossOutput, get_loss, list_losses, register_loss
    from prefopt.training.trainer import PreferenceTrainer

__version__ = "0.1.0"

_HOMES = {
    "PreferenceConfig": "prefopt.config",
    "PreferenceTrainer": "prefopt.training.trainer",
    "Loss": "prefopt.losses",
    "LossOutput": "prefopt.losses",
    "get_loss": "prefopt.losses",
    "list_losses": "prefopt.losses",
    "register_loss": "prefopt.losses",
}

__all__ = [
    "Loss",
    "LossOutput",
    "PreferenceConfig",
    "PreferenceTrainer",
    "__version__",
    "get_loss",
    "list_losses",
    "register_loss",
]


def __getattr__(name: str) -> Any:
    """Import a public name from the module it lives in, once."""
    if name not in _HOMES:
        raise AttributeError(f"module 'prefopt' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
