"""``prefopt losses check``: does a loss, or every loss of a package, hold the contract?"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import entry_points

from rich.console import Console
from rich.table import Table

from prefopt.cli.errors import UserError, user_errors
from prefopt.losses import Loss, list_losses
from prefopt.losses.common import without_warnings
from prefopt.losses.contract import CHECKS, broken_checks, guide_gaps
from prefopt.losses.files import is_file_loss, loss_of_file
from prefopt.losses.registry import ENTRY_POINT_GROUP


def main(argv: Sequence[str]) -> int:
    """Check losses and print a table of the result; return 1 if a check fails."""
    parser = argparse.ArgumentParser(
        prog="prefopt losses check",
        description="Run the checks of prefopt.losses.contract over the losses of a package. "
        "No model is loaded.",
    )
    parser.add_argument(
        "name",
        nargs="+",
        help="a package or module, an entry point, FILE.py:function, or a loss by name",
    )
    options = parser.parse_args(list(argv))
    found = {loss.name: loss for name in options.name for loss in losses_of(name)}
    with without_warnings():  # the checks go beyond published hyper-parameters
        broken = {loss.name: broken_checks(loss) for loss in found.values()}
    print_results(list(found.values()), broken)
    return 1 if any(broken.values()) else 0


def losses_of(name: str) -> list[Loss]:
    """Return the losses of a package, module or entry point, of a file, or by name or alias.

    Raises:
        UserError: If there is no such thing, it cannot be imported, or it registers no loss.
    """
    if is_file_loss(name):
        with user_errors():
            return [loss_of_file(name)]
    module = next((ep.module for ep in entry_points(group=ENTRY_POINT_GROUP, name=name)), name)
    listed = list_losses()  # all that entry points register
    if module == name:
        named = [loss for loss in listed if name in (loss.name, *loss.aliases)]
        if named:
            return named
    try:
        import_module(module)
    except Exception as error:  # any error of another package's module
        raise UserError(
            f"cannot import {module!r}: {type(error).__name__}: {error}. Name a package, an entry "
            f"point of the group {ENTRY_POINT_GROUP}, or a loss: prefopt losses lists them"
        ) from error
    inside = [loss for loss in list_losses() if _is_inside(loss.function.__module__, module)]
    if not inside:
        raise UserError(
            f"{module!r} registers no loss: decorate a function with "
            "prefopt.losses.register_loss, in a module that importing the package imports"
        )
    return inside


def print_results(losses: Sequence[Loss], broken: dict[str, dict[str, str]]) -> None:
    """Print a row per loss, or one per check it does not hold, with what is wrong."""
    failing = sum(map(bool, broken.values()))
    title = f"{len(CHECKS)} checks of each loss; {len(losses) - failing} of {len(losses)} hold all"
    table = Table(title=title, title_justify="left", pad_edge=False)
    for heading in ("loss", "module", "contract", "what is wrong"):
        table.add_column(heading, overflow="fold")
    for loss in losses:
        module = loss.function.__module__
        if not broken[loss.name]:
            gaps = guide_gaps(loss)
            hint = f"nothing; the guide lacks {', '.join(gaps)}" if gaps else ""
            table.add_row(loss.name, module, "holds", hint)
        for check, message in broken[loss.name].items():
            table.add_row(loss.name, module, f"broken: {check.replace('_', ' ')}", message)
    # A pipe has no width of its own: give it one that a message fits into.
    console = Console() if sys.stdout.isatty() else Console(width=160)
    console.print(table, markup=False)


def _is_inside(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")
