"""Prefopt: one trainer and a zoo of losses for preference optimisation of language models.

The public names, and the packages such as ``prefopt.losses``, are imported when first used, so
``import prefopt`` touches no file, device or network, and costs no import of torch or transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefopt.config import PreferenceConfig
    from prefopt.losses import Loss, LossOutput, get_loss, list_losses, register_loss
    from prefopt.training.trainer import PreferenceTrainer

__version__ = "0.2.0"

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
    """Import a public name from the module it lives in, or a module of the package, once."""
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    elif name in _modules():
        value = import_module(f"prefopt.{name}")
    else:
        raise AttributeError(f"module 'prefopt' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *_modules()})


def _modules() -> set[str]:
    """Return the names of the modules and packages in this one."""
    from pkgutil import iter_modules  # here: it opens files

    return {module.name for module in iter_modules(__path__) if not module.name.startswith("_")}
