"""``prefopt losses``: the zoo, as a table, as JSON, or one loss in full."""

import argparse
import inspect
import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from prefopt.cli import losses_check
from prefopt.cli.errors import user_errors
from prefopt.cli.guide import SITUATIONS, losses_by_family
from prefopt.losses import Loss, get_loss, list_losses
from prefopt.losses.common import published_range

DATA = {"paired": "pairs", "unpaired": "unpaired", "ranked": "rankings", "preferred": "any"}


def main(argv: Sequence[str]) -> int:
    """Print the losses; return the exit code."""
    if argv and argv[0] == "check":
        return losses_check.main(argv[1:])
    parser = argparse.ArgumentParser(
        prog="prefopt losses",
        description="List the losses that --loss_type takes, third parties' included.",
        epilog="prefopt losses check PACKAGE: whether its losses hold the contract.",
    )
    parser.add_argument("name", nargs="*", help="show this loss in full: all if none is named")
    parser.add_argument("--why", action="store_true", help="which loss for which data and problem")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    options = parser.parse_args(list(argv))
    with user_errors():
        losses = [get_loss(name) for name in options.name] or list_losses()
    if options.json:
        print(json.dumps([describe(loss) for loss in losses], indent=2))
    elif options.why:
        print_guide(losses, whole=not options.name)
    elif options.name:
        print("\n\n".join(render(loss) for loss in losses))
    else:
        print_table(losses)
    return 0


def describe(loss: Loss) -> dict[str, Any]:
    """Return what a program may want to know about a loss."""
    return {
        "name": loss.name,
        "aliases": list(loss.aliases),
        "data_kind": loss.data_kind,
        "needs_reference": loss.needs_reference,
        "inputs": list(loss.inputs),
        "hyperparameters": loss.hyperparameters,
        "published": {name: list(ends) for name, ends in loss.published.items()},
        "summary": loss.summary,
        "source": loss.source,
        "departures": loss.departures,
        "family": loss.family,
        "use_when": loss.use_when,
        "not_when": loss.not_when,
        "differs_from": list(loss.differs_from),
    }


def render(loss: Loss) -> str:
    """Return the loss in full, as plain text."""
    facts = {
        "aliases": ", ".join(loss.aliases) or "none",
        "data": loss.data_kind,
        "reference": "needed" if loss.needs_reference else "not needed",
        "inputs": ", ".join(loss.inputs),
        "defaults": _defaults(loss) or "no hyper-parameters",
        "published": _published(loss) or "not known",
        "source": _plain(loss.source),
        "departures": _plain(loss.departures) or "none stated",
        "use it when": _plain(loss.use_when) or "not stated",
        "not when": _plain(loss.not_when) or "not stated",
        "differs from": _plain("; ".join(loss.differs_from)) or "no other implementation known",
    }
    lines = [loss.name, f"  {loss.summary}", ""]
    lines += [f"  {key:<12} {value}" for key, value in facts.items()]
    return "\n".join([*lines, "", inspect.getdoc(loss.function) or ""]).rstrip()


def print_table(losses: Sequence[Loss]) -> None:
    """Print what each loss is in a few words, by family; it fits a terminal of 80 columns."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for heading in ("loss", "data", "ref.", "what it is"):
        table.add_column(heading, no_wrap=heading == "loss")
    for _, members in losses_by_family(losses):
        table.add_row()
        for loss in members:
            reference = "yes" if loss.needs_reference else "no"
            table.add_row(loss.name, DATA[loss.data_kind], reference, in_a_few_words(loss))
    Console(highlight=False).print(table, markup=False)
    print(f"\n{len(losses)} losses. One in full: prefopt losses NAME, in any case")
    print("ref.: whether it compares with a reference model, the policy before training")
    print("Which loss for which data and problem: prefopt losses --why")
    print("A weighted sum: prefopt train --loss_type 'dpo + 0.2*sft'")


def in_a_few_words(loss: Loss) -> str:
    """Return what a loss is, and its other names.

    Examples:
        >>> in_a_few_words(get_loss("hinge"))
        'The RSO hinge on the reward margin, zero once the margin is 1 (also rso)'
    """
    head, _, rest = loss.summary.partition(": ")
    text = rest or head
    also = f" (also {', '.join(loss.aliases)})" if loss.aliases else ""
    return f"{text[:1].upper()}{text[1:]}{also}"


def print_guide(losses: Sequence[Loss], whole: bool) -> None:
    """Print which loss to try for what, every situation or those of these losses, and when."""
    wanted = {loss.name for loss in losses}
    table = _table("Which loss", "the data", "the wish, or what went wrong", "try", "because")
    table.show_lines = True
    for item in SITUATIONS:
        if whole or wanted & item.loss_names():
            table.add_row(item.data, item.wish, "\n".join(item.losses), _plain(item.why))
    if table.rows:
        _print(table)
    for family, members in losses_by_family(losses):
        table = _table(family.title, "loss", "use it when", "not when")
        for loss in members:
            table.add_row(loss.name, _plain(loss.use_when), _plain(loss.not_when))
        _print(table)
    print("One in full: prefopt losses NAME")


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold", no_wrap=heading in ("name", "loss"))
    return table


def _print(table: Table) -> None:
    # A pipe has no width of its own: give it one that folds nothing but the sources.
    console = Console() if sys.stdout.isatty() else Console(width=140)
    console.print(table, markup=False)


def _defaults(loss: Loss) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in loss.hyperparameters.items())


def _published(loss: Loss) -> str:
    return ", ".join(f"{name} {published_range(*ends)}" for name, ends in loss.published.items())


def _plain(text: str) -> str:
    return text.replace("`", "")
