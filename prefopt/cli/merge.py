"""``prefopt merge``: an adapter merged into its base model, saved as a plain model."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from prefopt.cli.errors import user_errors
from prefopt.cli.inference import add_model_options, model_options


def main(argv: Sequence[str]) -> int:
    """Merge, check and save; return the exit code."""
    options = make_parser().parse_args(list(argv))
    with user_errors():
        from prefopt.evaluation.loading import inference_options, tokenizer_of
        from prefopt.training.merged import merge_to_folder

        given = inference_options(model_options(options))
        tokenizer = tokenizer_of(options.adapter, given)
        report = merge_to_folder(options.adapter, options.output.expanduser(), tokenizer, given)
    print(
        f"Merged {options.adapter} into {report.base}, and saved it to {options.output} in "
        f"{report.dtype}: log-probs differ by up to {report.difference:.1g} nats"
    )
    return 0


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = argparse.ArgumentParser(
        prog="prefopt merge",
        description="Merge an adapter into its base model and save a plain model, with tokenizer "
        "and chat template, which loads without peft. What was saved is loaded again and compared "
        "with the adapter on its base: if it predicts something else, nothing is kept.",
    )
    parser.add_argument("adapter", metavar="ADAPTER", help="folder or Hub id of the adapter")
    parser.add_argument("output", metavar="OUT", type=Path, help="a new folder")
    add_model_options(parser)
    return parser
