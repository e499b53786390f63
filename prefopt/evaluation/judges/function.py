"""A Python function as judge: a reward of each answer, or a comparison of two."""

import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefopt.evaluation.prompts import Prompt, prompt_text

__all__ = ["FunctionJudge", "PairFunctionJudge", "function_judge", "load_function"]


def load_function(name: str) -> Callable[..., Any]:
    """Return a function by the name of its file or module.

    Args:
        name: ``FILE.py:function`` or ``package.module:function``. A file is run.

    Raises:
        ValueError: If there is no such file, module or function.
    """
    place, _, function = name.rpartition(":")
    if not place or not function:
        raise ValueError(
            f"{name!r} names no function: write FILE.py:function or package.module:function"
        )
    module = _load_file(Path(place)) if place.endswith(".py") else _import(place)
    found = getattr(module, function, None)
    if not callable(found):
        here = [its for its, value in vars(module).items() if inspect.isfunction(value)]
        raise ValueError(
            f"{place} has no function {function!r}; it has {', '.join(here) or 'none'}"
        )
    return found  # type: ignore[no-any-return] # it is callable


def _load_file(path: Path) -> Any:
    path = path.expanduser()
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None  # its name ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"{path} cannot be run: {type(error).__name__}: {error}") from error
    return module


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"there is no module {name}: {error}") from error


def function_judge(name: str) -> "FunctionJudge | PairFunctionJudge":
    """Return the judge that a function makes, by what it takes.

    A function that takes ``first`` and ``second`` compares two answers; any other scores one.

    Args:
        name: ``FILE.py:function`` or ``package.module:function``.

    Raises:
        ValueError: If there is no such function.
    """
    function = load_function(name)
    if {"first", "second"} <= _parameters(function).keys():
        return PairFunctionJudge(function, name)
    return FunctionJudge(function, name)


class FunctionJudge:
    """Scores answers by a function.

    It is called once with lists, as TRL calls reward functions: ``score(prompts, completions)``,
    and returns a number for each; one that takes ``prompt`` and ``completion`` is called for each
    answer. Prompts are texts, of a conversation its lines, each with its role.

    Args:
        function: The function.
        name: What to call it.
    """

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self.name = name
        self._function = function

    def scores(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float]:
        """Return the number of each completion.

        Raises:
            ValueError: If the function does not return one finite number for each.
        """
        texts = list(map(prompt_text, prompts))
        found = [_number(value) for value in _called(self._function, texts, [list(completions)])]
        if len(found) != len(completions):
            raise ValueError(
                f"{self.name} returned {len(found)} scores for {len(completions)} completions"
            )
        for value, completion in zip(found, completions, strict=True):
            if value is None or not math.isfinite(value):
                raise ValueError(
                    f"{self.name} returned {value} for the completion {completion[:80]!r}; a score "
                    "is a finite number"
                )
        return found  # type: ignore[return-value] # None was refused


class PairFunctionJudge:
    """Compares answers by a function.

    It is called once with lists: ``prefer(prompts, first, second)``, and returns for each pair 1
    where the first is better, 0 for the second, 0.5 for a tie, None for no verdict; one that takes
    ``prompt`` is called for each pair.

    Args:
        function: The function.
        name: What to call it.
    """

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self.name = name
        self._function = function

    def preferences(
        self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]
    ) -> list[float | None]:
        """Return the verdict on each pair."""
        texts = list(map(prompt_text, prompts))
        found = _called(self._function, texts, [list(first), list(second)])
        return [_number(value) for value in found]


def _called(
    function: Callable[..., Any], prompts: list[str], answers: list[list[str]]
) -> list[Any]:
    """Return what a function says of answers: called with lists, or for each by itself."""
    known = _parameters(function)
    lists = ("prompts", *(("completions",) if len(answers) == 1 else ("first", "second")))
    singly = ("prompt", *(("completion",) if len(answers) == 1 else ("first", "second")))
    one_by_one = "prompts" not in known and bool(known.keys() & set(singly) - set(lists))
    names = singly if one_by_one else lists
    takes_all = any(it.kind is inspect.Parameter.VAR_KEYWORD for it in known.values())
    by_name = takes_all or bool(known.keys() & set(names))

    def call(values: Sequence[Any]) -> Any:
        if not by_name:
            return function(*values)
        given = zip(names, values, strict=True)
        return function(**{name: value for name, value in given if takes_all or name in known})

    if one_by_one:
        return [call(values) for values in zip(prompts, *answers, strict=True)]
    return list(call([prompts, *answers]))


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # of a function written in C
        return {}


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
