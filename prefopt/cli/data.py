"""``prefopt data report``: rows and tokens that training would use of a dataset."""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from prefopt.cli.errors import user_errors

if TYPE_CHECKING:
    from prefopt.data import DataReport


def main(argv: Sequence[str]) -> int:
    """Run ``prefopt data report``; return the exit code."""
    options = make_parser().parse_args(list(argv))
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
    parser = argparse.ArgumentParser(
        prog="prefopt data", description="Look at preference data without running a model."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="report")
    report = commands.add_parser(
        "report",
        help="count rows kept, cut and set aside, tokens, and what the layout saves",
        description="Prepare a dataset as training would; print the counts, how its texts differ "
        "from what inference makes, and a row as the model sees it.",
    )
    report.add_argument("dataset", help="Hub id, folder, or json, jsonl, csv, parquet file (.gz)")
    report.add_argument(
        "--tokenizer",
        "--model",
        metavar="MODEL",
        help="folder or Hub id whose tokenizer and chat template to use",
    )
    report.add_argument("--split", help="only this split (default: all)")
    report.add_argument(
        "--max_length",
        type=_length,
        default=1024,
        help="most tokens of prompt + completion, or none (default: 1024)",
    )
    report.add_argument(
        "--trust_remote_code", action="store_true", help="run code that ships with the tokenizer"
    )
    report.add_argument("--json", action="store_true", help="print JSON for programs")
    return parser


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
