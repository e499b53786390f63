"""Options that there are not: what is meant, where another program or a loss has that name."""

import difflib
import re
from collections.abc import Collection, Mapping
from typing import Any

from prefopt.cli.errors import UserError

_MOST = 3  # losses that are named


def known_only(
    values: Mapping[str, Any],
    options: Collection[str],
    path: str | None = None,
    losses: str = "",
) -> dict[str, Any]:
    """Return the options that there are, without old ones that change nothing.

    Args:
        values: What was given, by name.
        options: The names of the options that there are, in every spelling.
        path: The file that says so; None for the command line.
        losses: The losses that are named, as they are.

    Raises:
        UserError: Of all that never existed, or are gone, each with what to use instead.
    """
    others = {name: value for name, value in values.items() if name not in options}
    known = sorted(option for option in options if "-" not in option)
    found = [_problem(name, value, known, path, losses) for name, value in others.items()]
    problems = [text for text in found if text]
    if len(problems) == 1:
        raise UserError(f"{path}: {problems[0]}" if path else problems[0])
    if problems:
        raise UserError(f"{path or 'the command line'}:\n  " + "\n  ".join(problems))
    return {name: value for name, value in values.items() if name in options}


def _problem(name: str, value: Any, known: Collection[str], path: str | None, losses: str) -> str:
    """Return what is wrong with an option that there is not; nothing where it changes nothing."""
    from prefopt.cli.foreign import meaning_of
    from prefopt.migration import OLD_FIELDS, refuse

    if name in OLD_FIELDS:
        try:
            refuse({name: value}, OLD_FIELDS)
        except ValueError as error:
            return str(error)
        return ""
    dashes = "" if path else "--"
    meant = _of_a_loss(name, value, path, losses) or meaning_of(name, dashes)
    if meant:
        return f"unknown option {dashes + name!r}; {meant}"
    # Without the dashes, which make short names look alike.
    near = difflib.get_close_matches(name, {*known, *_hyperparameters(losses)}, n=1)
    if near and near[0] not in known:
        own = _of_a_loss(near[0], value, path, losses)
        return f"unknown option {dashes + name!r}; did you mean {near[0]!r}? {own}"
    return str(UserError.unknown("option", dashes + name, [dashes + one for one in known]))


def _hyperparameters(losses: str) -> set[str]:
    """Return the hyper-parameters of the losses that are named, or of all if none is."""
    from prefopt.losses import list_losses

    words = re.findall(r"[\w-]+", losses)
    named = [loss for loss in list_losses() if any(map(loss.is_called, words))]
    return {name for loss in named or list_losses() for name in loss.hyperparameters}


def _of_a_loss(name: str, value: Any, path: str | None, losses: str) -> str:
    """Return how a hyper-parameter of losses is given; nothing if none has that name."""
    from prefopt.config import LOSS_OPTIONS
    from prefopt.losses import list_losses

    has_it = [loss for loss in list_losses() if name in loss.hyperparameters]
    named = [loss for loss in has_it if any(map(loss.is_called, re.findall(r"[\w-]+", losses)))]
    if not has_it:
        return ""
    names = [loss.name for loss in named or has_it]
    more = ", ..." if len(names) > _MOST else ""
    of = f"{name} is a hyper-parameter of {', '.join(names[:_MOST])}{more}"
    shown = "..." if value is True else value
    if path:
        return f"{of}: loss_kwargs: {{{name}: {shown}}}"
    fields = [
        f", or --{field} {shown}"
        for field, option in LOSS_OPTIONS.items()
        if option == name and any(field.startswith(loss.name) for loss in named)
    ]
    return f"{of}: --loss_kwargs {name}={shown}{''.join(fields)}"
