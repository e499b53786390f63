"""``prefopt cache``: fill, look at, verify, prune and share the store of reference log-probs."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefopt.cli.subcommands import CommandParser

_DESCRIPTION = """\
Reference log-probs are computed once and kept in a store that all runs share.

  prefopt cache fill --model MODEL --dataset DATA     compute them ahead of training
  prefopt cache info                                  what the store holds
  prefopt cache verify                                check every value against its checksum
  prefopt cache verify --model MODEL --dataset DATA   compute a sample again and compare
  prefopt cache prune --unused-days 90 --yes          delete what no run has used
  prefopt cache export logps.parquet                  to be shared, and back with import
"""

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def main(argv: Sequence[str]) -> int:
    """Run one of the commands on the store; return the exit code."""
    name, rest = "".join(argv[:1]), argv[1:]
    if name == "fill" or (name == "verify" and _names_a_model(rest)):
        from prefopt.cli.cache.runs import fill, verify

        return fill(rest) if name == "fill" else verify(rest)
    options = make_parser().parse_args(list(argv))
    from prefopt.cli.cache.maintain import COMMANDS

    return COMMANDS[options.command](options)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the commands; those that make a trainer have ``prefopt train``'s."""
    parser = CommandParser(
        prog="prefopt cache",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(
        title="commands", required=True, metavar="COMMAND", dest="command"
    )
    commands.add_parser("fill", help="compute what a training run would look up; its options")

    info = _add(commands, "info", "show what the store holds, by reference")
    info.add_argument("--json", action="store_true", help="print JSON for programs")

    _add(
        commands,
        "verify",
        "read all and check it; with --model and the options of `prefopt train`, compute a sample "
        "of the run's log-probs again (--sample N, default 100) and compare",
    )

    prune = _add(commands, "prune", "delete references, and give their space back")
    _add_reference(prune, "delete this one")
    prune.add_argument(
        "--unused-days", type=_days, metavar="DAYS", help="those not used by a run for so long"
    )
    prune.add_argument(
        "--max-bytes",
        type=_size,
        metavar="SIZE",
        help="the longest unused, until the rest takes at most this: 500M, 2G, ...",
    )
    prune.add_argument("--yes", action="store_true", help="do it; without, only say what would go")

    export = _add(commands, "export", "write log-probs to a parquet file")
    export.add_argument("path", type=Path, help="the file to write")
    _add_reference(export, "only this one")

    load = _add(commands, "import", "add log-probs from parquet files")
    load.add_argument("path", type=Path, help="a file, or a folder with some")
    return parser


def _add(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text.split(";")[0], description=f"{text[0].upper()}{text[1:]}."
    )
    parser.add_argument(
        "--cache-dir",
        "--cache_dir",
        "--reference_cache_dir",
        type=Path,
        help="folder of the store; default: PREFOPT_CACHE, else prefopt in the user's cache folder",
    )
    return parser


def _add_reference(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument(
        "--reference",
        action="append",
        default=[],
        metavar="F",
        help=f"{text}: the beginning of its fingerprint; may be given several times",
    )


def _names_a_model(argv: Sequence[str]) -> bool:
    names = {text.split("=")[0] for text in argv}
    return not names.isdisjoint({"--model", "--model_name_or_path", "--config"})


def _size(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?", text.strip().lower())
    if found is None or found[2] not in _UNITS:
        raise argparse.ArgumentTypeError(f"not a size such as 500M, 2G or 1GiB: {text!r}")
    return int(float(found[1]) * _UNITS[found[2]])


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = -1.0
    if not days >= 0:
        raise argparse.ArgumentTypeError(f"not a number of days: {text!r}")
    return days
