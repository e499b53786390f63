"""``prefopt convert-config``: a configuration of another program as ours, with comments."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from prefopt.cli.errors import UserError, user_errors
from prefopt.cli.foreign import PROGRAMS, convert
from prefopt.cli.foreign.rendering import render, summary
from prefopt.cli.train import read_yaml


def main(argv: Sequence[str]) -> int:
    """Print or write the converted file; return 1 if something of it cannot be had."""
    options = make_parser().parse_args(list(argv))
    with user_errors():
        conversion = convert(read_yaml(options.config), options.config, options.loss_type)
    if conversion is None:
        known = ", ".join(one.PROGRAM for one in PROGRAMS)
        raise UserError(
            f"{options.config} has no key that only a file of {known} has, or keys of several: it "
            "is one of ours, or of a program that is not known"
        )
    text = render(conversion, options.config)
    if options.output is None:
        print(text, end="")
    else:
        options.output.write_text(text, encoding="utf-8")
        print(summary(conversion, options.config))
        print(f"Written to {options.output}; train: prefopt train --config {options.output}")
    if conversion.lost:
        print(f"prefopt: {conversion.message(options.config)}", file=sys.stderr)
    return 1 if conversion.lost else 0


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    known = ", ".join(one.PROGRAM for one in PROGRAMS)
    parser = argparse.ArgumentParser(
        prog="prefopt convert-config",
        description=f"Convert a YAML file of {known} to one of prefopt. Comments say what each key "
        "became and how it differs. The exit code is 1 if something cannot be had here: it is "
        "listed under not_converted, which prefopt train refuses until it is removed. "
        "`prefopt train --config` reads these files too.",
    )
    parser.add_argument("config", metavar="THEIRS.yaml", help="their file")
    parser.add_argument("-o", "--output", type=Path, metavar="OURS.yaml", help="write it there")
    parser.add_argument("--loss_type", help="the loss, where their file leaves it to a script")
    return parser
