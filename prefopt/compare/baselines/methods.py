"""Which baselines are asked for, with which options; checked before anything runs."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from prefopt.compare.baselines.kinds import BASELINES, KINDS, common_options
from prefopt.compare.baselines.trl_config import make_config
from prefopt.compare.methods import Method, named
from prefopt.compare.options import plain_options

__all__ = ["BEST_OF", "read_baselines"]

BEST_OF = 16
"""Answers of which one is picked, if nothing else is said."""

_PICKED_BY = ("reward", "judge", "reward_model")

Given = str | Mapping[str, Any]


def read_baselines(
    given: str | Sequence[Given],
    common: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
) -> tuple[list[Method], list[str]]:
    """Return the baselines that are asked for, and what there is to say of them.

    Args:
        given: Names with commas between them; or a list of names, and of mappings with ``kind``,
            options of its own, and a ``name`` if it should have another.
        common: Options of ``prefopt train`` for all methods.
        evaluation: Options of ``prefopt eval``.

    Raises:
        ValueError: If one is unknown, has a wrong option, or lacks the reward that it needs.

    Examples:
        >>> methods, notes = read_baselines("sft, best_of_n", evaluation={"reward": "r.py:reward"})
        >>> [method.name for method in methods]
        ['sft on the chosen', 'best of 16']
    """
    items = given.split(",") if isinstance(given, str) else given
    found = [_read_one(item) for item in items if not isinstance(item, str) or item.strip()]
    notes = []
    kinds = {method.kind for method in found}
    if "reward_model" not in kinds and any(map(_wants_reward_model, found)):
        found.insert(0, Method("", kind="reward_model"))
        notes.append("a reward model is trained and measured, too: rl or best_of_n needs it")
    found = [_with_defaults(method, evaluation or {}) for method in found]
    for method in found:
        _check(method, common or {}, evaluation or {})
    found = _labelled(found)
    return [_known_reward_model(method, found) for method in found], notes


def _read_one(given: Given) -> Method:
    if isinstance(given, str):
        given = {"kind": given.strip()}
    if not isinstance(given, Mapping) or "kind" not in given:
        raise ValueError(
            "baselines must list kinds, or mappings such as {kind: rl, num_generations: 4}; got "
            f"{given!r}"
        )
    options = {str(name).replace("-", "_"): value for name, value in given.items()}
    kind, name = str(options.pop("kind")), str(options.pop("name", ""))
    if kind not in BASELINES:
        near = difflib.get_close_matches(kind, BASELINES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"no baseline {kind!r}; there are: {', '.join(BASELINES)}{hint}")
    return Method(name, plain_options(options), kind)


def _wants_reward_model(method: Method) -> bool:
    return method.kind == "rl" or method.options.get("by") == "reward_model"


def _with_defaults(method: Method, evaluation: Mapping[str, Any]) -> Method:
    """Return a method with what its kind adds to the options that are given."""
    own = dict(method.options)
    if method.kind == "sft":
        own = {"loss_type": "sft", **own}
    if method.kind in ("rl", "rl_true") and "max_new_tokens" in evaluation:
        own = {"max_completion_length": evaluation["max_new_tokens"], **own}
    if method.kind == "rl_true" and evaluation.get("reward"):
        own = {**own, "reward": evaluation["reward"]}
    if method.kind == "best_of_n":
        by = next((name for name in _PICKED_BY[:2] if evaluation.get(name)), None)
        own = {"n": BEST_OF, **({"by": by} if by else {}), **own}
    return Method(method.name, own, method.kind)


def _labelled(methods: Sequence[Method]) -> list[Method]:
    """Return the methods, each with a name that people read."""
    found = []
    for given, method in zip(methods, named(methods), strict=True):
        label = KINDS[method.kind].label
        if method.kind == "best_of_n":
            by_model = " by reward model" * (method.options["by"] == "reward_model")
            name = f"best of {method.options['n']}{by_model}"
        else:
            name = label + method.name.removeprefix(method.loss)
        found.append(method if given.name else replace(method, name=name))
    return named(found)


def _known_reward_model(method: Method, found: Sequence[Method]) -> Method:
    """Return a method that names its reward model, the first one if it named none."""
    if not _wants_reward_model(method):
        return method
    models = [its.name for its in found if its.kind == "reward_model"]
    wanted = method.options.get("reward_model", models[0])
    if wanted not in models:
        raise ValueError(f"{method.name}: no reward model {wanted!r}; there are: {models}")
    return Method(method.name, {**method.options, "reward_model": wanted}, method.kind)


# Checks -------------------------------------------------------------------------------------------


def _check(method: Method, common: Mapping[str, Any], evaluation: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` if an option is wrong, or what the kind needs is missing."""
    kind = KINDS[method.kind]
    try:
        if method.kind == "sft":
            _ = method.objective(common)
        elif kind.uses_trl:
            _check_known(method.options, (*_trl_options(kind.config or ""), *kind.own_options))
            make_config({**common_options(method.kind, common), **method.options}, kind.config)
        else:
            _check_known(method.options, kind.own_options)
            _check_best_of(method.options, evaluation)
        if method.kind == "rl_true" and not evaluation.get("reward"):
            raise ValueError("the true reward is not known: give it with --reward FILE.py:function")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{method.kind}: {error}") from None


def _check_best_of(options: Mapping[str, Any], evaluation: Mapping[str, Any]) -> None:
    n, by = options["n"], options.get("by")
    if not isinstance(n, int) or isinstance(n, bool) or n < 2:
        raise ValueError(f"n must be a whole number of at least 2, got {n!r}")
    if by is None:
        raise ValueError(
            "what picks the best answer is missing: give --reward or --judge, or take by: "
            "reward_model"
        )
    if by not in _PICKED_BY:
        raise ValueError(f"by must be one of {', '.join(_PICKED_BY)}; got {by!r}")
    if by in _PICKED_BY[:2] and not evaluation.get(by):
        raise ValueError(f"by {by} needs --{by}")


def _trl_options(config: str) -> list[str]:
    import trl

    of = (getattr(trl, config), trl.ModelConfig)
    return [item.name for its in of for item in fields(its) if item.init] + ["reward"]


def _check_known(options: Mapping[str, Any], known: Sequence[str]) -> None:
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise ValueError(f"there is no option {name!r}{hint}")
