"""``prefopt data``: what training would use of a dataset; prepare it ahead of training."""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from prefopt.cli.errors import user_errors
from prefopt.cli.subcommands import CommandParser

if TYPE_CHECKING:
    from prefopt.data import DataReport


def main(argv: Sequence[str]) -> int:
    """Run ``prefopt data report`` or ``prepare``; return the exit code."""
    options = make_parser().parse_args(list(argv))
    if options.command == "prepare":
        with user_errors():
            prepare(options)
        return 0
    with user_errors():
        reports = make_reports(options)
    if options.json:
        print(json.dumps([asdict(report) for report in reports], indent=2))
        return 0
    for report in reports:
        print(report.render(), end="\n\n")
        show_sample(report)
    units = {report.unit for report in reports} - {"tokens"}
    if units:
        print(
            f"Counted in {' and '.join(units)}, as no tokenizer is named: "
            "--tokenizer MODEL counts the tokens of that model, and what max_length cuts."
        )
    return 0


def show_sample(report: "DataReport") -> None:
    """Print a row as the model sees it; in a terminal what is trained on is green."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
    for place, (title, text) in enumerate(report.sample.parts() if report.sample else []):
        console.print(f"--- {title} ---", style="dim")
        console.print(text, style="green" if place else None)
    if report.sample:
        console.print("---", style="dim", end="\n\n")


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = CommandParser(
        prog="prefopt data",
        description="Look at preference data, or prepare them, without running a model.",
    )
    commands = parser.add_subparsers(
        title="commands", required=True, metavar="COMMAND", dest="command"
    )
    report = commands.add_parser(
        "report",
        help="count rows kept, cut and set aside, tokens, and what the layout saves",
        description="Prepare a dataset as training would; print the counts, how its texts differ "
        "from what inference makes, and a row as the model sees it.",
    )
    _add_source(report, needs_tokenizer=False)
    report.add_argument("--json", action="store_true", help="print JSON for programs")
    ahead = commands.add_parser(
        "prepare",
        help="make token ids ahead of training; goes on where it was ended",
        description="Prepare a dataset as training would, and save the token ids in a folder, "
        "which `prefopt train --dataset FOLDER` takes. Ended before it is done, the same command "
        "goes on. What the model, its chat template and --max_length are must stay for training.",
    )
    _add_source(ahead, needs_tokenizer=True)
    ahead.add_argument("--output", required=True, type=Path, help="a new folder")
    ahead.add_argument("--num_proc", type=int, help="processes that prepare (default: one)")
    return parser


def _add_source(command: argparse.ArgumentParser, needs_tokenizer: bool) -> None:
    command.add_argument("dataset", help="Hub id, folder, or json, jsonl, csv, parquet file (.gz)")
    command.add_argument(
        "--tokenizer",
        "--model",
        metavar="MODEL",
        required=needs_tokenizer,
        help="folder or Hub id whose tokenizer and chat template to use",
    )
    command.add_argument("--split", help="only this split (default: all)")
    command.add_argument(
        "--max_length",
        type=_length,
        default=1024,
        help="most tokens of prompt + completion, or none (default: 1024)",
    )
    command.add_argument(
        "--trust_remote_code", action="store_true", help="run code that ships with the tokenizer"
    )


def prepare(options: argparse.Namespace) -> None:
    """Prepare a dataset and save it in a folder."""
    from prefopt.data import load_rows
    from prefopt.data.resumable import prepare_to_folder
    from prefopt.training.tokenizer import read_tokenizer

    rows = load_rows(options.dataset, options.split)
    tokenizer = read_tokenizer(options.tokenizer, trust_remote_code=options.trust_remote_code)
    reports = prepare_to_folder(
        rows,
        tokenizer,
        options.output.expanduser(),
        max_length=options.max_length,
        num_proc=options.num_proc,
    )
    for report in reports:
        print(report.render(), end="\n\n")
    print(f"Saved to {options.output}; train on it: --dataset {options.output}")


def make_reports(options: argparse.Namespace) -> "list[DataReport]":
    """Return the report of each split that is asked for."""
    from prefopt.data import load_rows, report_for

    splits: list[str | None] = [options.split]
    if options.split is None:
        rows = load_rows(options.dataset)
        splits = list(rows) if isinstance(rows, Mapping) else [None]
    tokenizer = None
    if options.tokenizer is not None:
        from prefopt.training.tokenizer import read_tokenizer

        tokenizer = read_tokenizer(options.tokenizer, trust_remote_code=options.trust_remote_code)
    return [report_for(options.dataset, tokenizer, options.max_length, split) for split in splits]


def _length(text: str) -> int | None:
    if text.lower() == "none":
        return None
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a number of at least 1, or none, got {text!r}")
    return int(text)
