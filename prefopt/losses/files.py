"""Losses from a file: ``own.py:mine`` is the function ``mine`` of ``own.py``, which is run."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from prefopt.losses.registry import Loss, register_loss, registered_losses

# How the name of a loss of a file is written.
FILE_LOSS = r"[^\s:+*{}\[\]]+\.py:[A-Za-z_]\w*"

_modules: dict[Path, ModuleType] = {}


def is_file_loss(name: str) -> bool:
    """Whether a name is that of a function in a file.

    Examples:
        >>> is_file_loss("own.py:mine"), is_file_loss("dpo")
        (True, False)
    """
    return re.fullmatch(FILE_LOSS, name) is not None


def loss_of_file(name: str) -> Loss:
    """Return the loss that a function of a file is, and register it.

    A function that ``register_loss`` decorates keeps the name that it has there; any other is
    called as the function is, without ``_loss`` at its end. A file is run once in a process.

    Args:
        name: ``FILE.py:function``.

    Raises:
        ValueError: If there is no such file or function, the file cannot be run, the name is
            taken, or the signature does not follow the contract of losses.
    """
    place, _, function_name = name.rpartition(":")
    path = Path(place).expanduser().absolute()
    module = _modules.get(path) or _run(path)
    function: Any = getattr(module, function_name, None)
    if not callable(function):
        here = [its for its, value in vars(module).items() if _is_own(value, module)]
        raise ValueError(
            f"{place} has no function {function_name!r}; it has {', '.join(here) or 'none'}"
        )
    known = [loss for loss in registered_losses() if loss.function is function]
    if not known:
        register_loss(function_name.removesuffix("_loss"))(function)
        known = [loss for loss in registered_losses() if loss.function is function]
    return known[0]


def _is_own(value: Any, module: ModuleType) -> bool:
    return callable(value) and getattr(value, "__module__", None) == module.__name__


def _run(path: Path) -> ModuleType:
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    name = f"prefopt_loss_of_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # its name ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where the docstring of a loss is looked up
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a file may raise anything
        raise ValueError(f"{path} cannot be run: {type(error).__name__}: {error}") from error
    _modules[path] = module
    return module
