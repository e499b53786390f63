"""What the commands share that score data with a model: options, rows, model and reference."""

import argparse
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, make_dataclass
from typing import Any, NamedTuple, get_type_hints

from prefopt.cli.errors import UserError, user_errors
from prefopt.cli.help import HelpFormatter
from prefopt.cli.rows import DataArguments, load_splits
from prefopt.cli.train import (
    check_named,
    read_arguments,
    run_arguments,
    with_common_options,
)

# Fields of `PreferenceConfig` that decide what is scored, and how.
_CONFIG = (
    "loss_type",
    "loss_weights",
    "loss_kwargs",
    "beta",
    "label_smoothing",
    "desirable_weight",
    "undesirable_weight",
    "discopop_tau",
    "length_normalize",
    "margin_scale",
    "ld_alpha",
    "f_divergence_type",
    "f_alpha_divergence_coef",
    "max_length",
    "max_tokens_per_batch",
    "dataset_num_proc",
    "seed",
    "pad_token",
    "bf16",
    "fp16",
    "use_cpu",
    "layout",
    "attn_backend",
    "model_init_kwargs",
    "allow_missing_weights",
    "trust_remote_code",
    "reference_cache_dir",
    "disable_tqdm",
)
# Fields of TRL's `ModelConfig` that decide which model is loaded.
_MODEL = (
    "model_name_or_path",
    "model_revision",
    "dtype",
    "attn_implementation",
    "load_in_8bit",
    "load_in_4bit",
    "bnb_4bit_quant_type",
    "use_bnb_nested_quant",
    "bnb_4bit_quant_storage",
)
# The name that means that there is no reference.
_NONE = "none"


@dataclass
class ReferenceArguments:
    """What a model is compared with."""

    ref_model: str | None = field(
        default=None,
        metadata={
            "help": "The reference: a folder or a Hub id, or none. By default what the model was "
            "trained against, as its folder says, or the base of an adapter."
        },
    )


class Asked(NamedTuple):
    """What a command was asked.

    Attributes:
        data: Where the rows are.
        config: A ``PreferenceConfig`` with what decides the scores.
        model: Id or folder of the model.
        ref_model: Id or folder of the reference; None for none.
        own: The command's own options, an instance of the dataclass that it gave.
        has_loss: Whether a loss was named.
    """

    data: DataArguments
    config: Any
    model: str
    ref_model: str | None
    own: Any
    has_loss: bool


def make_parser(command: str, description: str, own: type, data: str = "--dataset DATA") -> Any:
    """Return a ``trl.TrlParser`` of the options of a command that scores data with a model.

    Args:
        command: Its name.
        description: What it says of itself.
        own: A dataclass of the command's own options.
        data: How data are named.
    """
    with user_errors():
        from trl import ModelConfig, TrlParser

        from prefopt.config import PreferenceConfig

    parser = TrlParser(
        (
            own,
            ReferenceArguments,
            DataArguments,
            _some_fields("ModelArguments", ModelConfig, _MODEL),
            _some_fields("ScoringArguments", PreferenceConfig, _CONFIG),
        ),
        prog=f"prefopt {command}",
        usage=f"prefopt {command} --model MODEL {data} [options]",
        description=description,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--split",
        dest="dataset_train_split",
        default=argparse.SUPPRESS,
        help="Split to read, also a part such as test[:1000]. By default the only one, or test.",
    )
    return with_common_options(parser)


def read(parser: Any, argv: Sequence[str]) -> Asked:
    """Return what a command line asks.

    Raises:
        UserError: If an option is unknown or wrong, or the launch has several processes.
    """
    own, reference, data, model, scoring = read_arguments(parser, list(argv))
    check_named(model, data)
    _check_launch()
    if data.dataset_streaming:
        raise UserError("--dataset_streaming: what is scored must be known as a whole")
    with user_errors():
        from trl import ModelConfig

        from prefopt.config import PreferenceConfig

        config = PreferenceConfig("prefopt_output", report_to="none", **vars(scoring))
        arguments = run_arguments(config, ModelConfig(**vars(model)))
        has_loss = scoring.loss_type is not None
        ref_model = _reference(reference.ref_model, arguments["model"], arguments["args"], has_loss)
    return Asked(
        data,
        arguments["args"],
        arguments["model"],
        ref_model,
        own,
        has_loss,
    )


def _check_launch() -> None:
    import os

    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError("this command runs in one process: start it without a launcher")


def _reference(given: str | None, model: str, config: Any, has_loss: bool) -> str | None:
    """Return the reference that is named, or the known one; None for none.

    Raises:
        UserError: If none is named or known, and the reward would need one.
    """
    if given is not None:
        return None if given.lower() == _NONE else given
    from prefopt.evaluation.scoring import known_start

    known = known_start(model, config)
    if known is None and (not has_loss or config.objective.needs_reference):
        raise UserError(
            f"--ref_model is missing: {model} does not say what it was trained against. Name it, "
            "or none: then give a loss_type that needs no reference, or log-probs are the reward"
        )
    return known


def read_rows(data: DataArguments, config: Any) -> Any:
    """Return the rows to score: what training with the same options would hold out, else all.

    Without ``--split`` and options that hold rows out, they are those of the only split, or of
    ``test``.

    Raises:
        UserError: If there are several splits and none is named, or the data cannot be read.
    """
    with user_errors():
        holds_out = (
            data.eval_datasets,
            data.dataset_test_split,
            data.eval_fraction,
            data.eval_rows,
        )
        if any(holds_out):
            return load_splits(data, config)[1]
        if data.datasets is not None:
            from prefopt.data import WeightedDataset

            return [
                WeightedDataset(entry.load(), name=entry.label)  # its weight is of training
                for entry in data.entries
            ]
        (entry,) = data.entries
        rows = entry.renamed(entry.load_all(entry.split))
    return _of_splits(rows, entry.path) if isinstance(rows, Mapping) else rows


def _of_splits(splits: Mapping[str, Any], name: str) -> Any:
    if "test" in splits:
        return splits["test"]
    raise UserError(f"{name} has several splits: name one with --split, of {', '.join(splits)}")


def data_name(data: DataArguments) -> str:
    """Return what the data are called; each of several datasets has its own name behind it."""
    return data.entries[0].label if data.datasets is None else "held-out"


def _some_fields(name: str, of: type, wanted: Collection[str]) -> type:
    """Return a dataclass with some of the fields of another, described as there.

    Raises:
        KeyError: If it has no such field.
    """
    known = {item.name: item for item in fields(of)}
    hints = get_type_hints(of)
    made = []
    for one in wanted:
        item = known[one]
        default: dict[str, Any] = {"default": item.default}
        if item.default_factory is not MISSING:
            default = {"default_factory": item.default_factory}
        made.append((one, hints[one], field(**default, metadata=item.metadata)))
    return make_dataclass(name, made)
