"""Convert a small file of another program in tests."""

from collections.abc import Callable
from typing import Any

from prefopt.cli.foreign import convert
from prefopt.cli.foreign.conversion import Conversion


def converter(program: str, base: dict[str, Any], name: str) -> Callable[..., Conversion]:
    """Return a function that converts a file of a program, with other values than it has."""

    def converted(path: str = name, loss: str | None = None, **values: Any) -> Conversion:
        made = convert({**base, **values}, path, loss)
        assert made is not None
        assert made.program == program
        return made

    return converted


def options_of(made: Conversion) -> dict[str, Any]:
    """Return our options, all of what was said being among them."""
    assert not made.lost, made.message("x.yaml")
    return made.options
