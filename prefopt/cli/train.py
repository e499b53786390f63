"""``prefopt train``: from a model and a dataset by name to a saved model.

Options are the fields of ``PreferenceConfig`` (the loss and everything of
``transformers.TrainingArguments``), of TRL's ``ModelConfig`` (the model, LoRA, 4 and 8 bit) and
of ``DataArguments``; a YAML file can hold any of them.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, field, fields, make_dataclass
from pathlib import Path
from textwrap import indent
from typing import Any, NoReturn, get_args, get_type_hints

from prefopt.cli import help, is_main_process, unknown
from prefopt.cli.errors import UserError, user_errors
from prefopt.cli.foreign import convert
from prefopt.cli.foreign.rendering import summary
from prefopt.cli.model_options import check_model_options
from prefopt.cli.next_steps import next_steps
from prefopt.cli.rows import DataArguments, load_splits

_ALIASES = {
    "model": "model_name_or_path",
    "dataset": "dataset_name",
    "test_split_size": "eval_fraction",
}

# Environment variables that a file of options may not set, beside those of loaders.
_CHOOSE_CODE = ("PATH", "CC", "CXX", "CUDA_HOME", "BASH_ENV", "SHELL")

_DESCRIPTION = """\
Train a model on preference data with a loss picked by name.

  prefopt train --model MODEL --dataset DATA --loss_type ipo --output_dir OUT
  prefopt train --config run.yaml --learning_rate 1e-6
  accelerate launch -m prefopt train --config run.yaml

MODEL is a folder or a Hub id. DATA is a Hub id, a folder, or a file: json, jsonl, csv, parquet,
also .gz; several, with weights, go to --datasets. An option on the command line overrides the same
option in the file.
`prefopt losses` lists the losses; hyper-parameters beside --beta and --label_smoothing are given
as --loss_kwargs tau=0.1,gamma=0.5 or as a JSON object. `prefopt train --help-all` shows it all.
"""


def main(argv: Sequence[str]) -> int:
    """Train, save, and evaluate where there is data for it; return the exit code."""
    parser = make_parser()
    data_args, config, model_args = parse(parser, list(argv))
    with user_errors():
        train_rows, eval_rows = load_splits(data_args, config)
        from prefopt.training.adapter import is_peft
        from prefopt.training.checkpoints import checkpoint_folder
        from prefopt.training.model import loading_options
        from prefopt.training.saved import loading_code
        from prefopt.training.trainer import PreferenceTrainer

        arguments = run_arguments(config, model_args)
        checkpoint_folder(checkpoint_of(config.resume_from_checkpoint), config.output_dir)
        trainer = PreferenceTrainer(train_dataset=train_rows, eval_dataset=eval_rows, **arguments)
    metrics = run(trainer, data_args)
    if trainer.is_world_process_zero():
        code = loading_code(trainer.model, config.output_dir, loading_options(trainer.args))
        steps = next_steps(data_args, config, model_args, is_peft(trainer.model))
        print_metrics(metrics, config.output_dir, str(code), steps)
        if config.push_to_hub:
            print(f"Shared as https://huggingface.co/{trainer.hub_model_id}")
    if hasattr(trainer, "end"):  # transformers >= 5.18: closes trackers and the process group
        trainer.end()
    return 0


def make_parser() -> Any:
    """Return a ``trl.TrlParser`` of all options; its errors are ``UserError``."""
    with user_errors():
        from trl import ModelConfig, TrlParser

        from prefopt.config import PreferenceConfig

    parser = TrlParser(
        (DataArguments, PreferenceConfig, _without_fields_of(ModelConfig, PreferenceConfig)),
        prog="prefopt train",
        usage="prefopt train --model MODEL --dataset DATA [--loss_type NAME] [options]",
        description=_DESCRIPTION,
        formatter_class=help.HelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    help.add_help(parser)
    return with_common_options(parser)


def with_common_options(parser: Any) -> Any:
    """Add ``--model`` and ``--config`` to a ``TrlParser``, and let it read what YAML says too."""
    from prefopt.config import PreferenceConfig

    parser.add_argument(
        "--model",
        dest="model_name_or_path",
        default=argparse.SUPPRESS,
        help="Folder or Hub id of the model; the same as --model_name_or_path.",
    )
    parser.add_argument("--config", help="YAML file with any of the options, without the dashes.")
    hints = get_type_hints(PreferenceConfig)
    for action in parser._actions:
        if action.const is False or "--model_name_or_path" in action.option_strings:
            action.help = argparse.SUPPRESS  # told once, as --name false and --model
        if action.dest == "loss_type":
            action.nargs = "+"  # `--loss_type sigmoid sft`, as in TRL, beside 'dpo + 0.2*sft'
        elif action.dest == "datasets":
            action.type = _json_object  # `--datasets a.jsonl '{"path": "b.jsonl", "weight": 2}'`
        elif action.dest == "loss_kwargs":
            action.type = _settings
        elif action.dest in (*PreferenceConfig._VALID_DICT_FIELDS, "parallelism_config"):
            action.type = _json_object
        elif action.type in (int, float) and type(None) in get_args(hints.get(action.dest)):
            action.type = _or_none(action.type)  # `--max_length none`; later TRLs do it themselves
    parser.error = _fail  # argparse would print the usage: hundreds of options
    return parser


def parse(parser: Any, argv: list[str]) -> tuple[DataArguments, Any, Any]:
    """Return data arguments, ``PreferenceConfig`` and TRL's ``ModelConfig`` of a command line."""
    data_args, config, model_args = read_arguments(parser, argv)
    check_model_options(model_args, argv)
    check_named(model_args, data_args)
    return data_args, config, model_args


def check_named(model_args: Any, data_args: DataArguments) -> None:
    """Raise where no model or no data are named.

    Raises:
        UserError: Saying which.
    """
    if model_args.model_name_or_path is None:
        raise UserError("--model is missing: a folder or a Hub id")
    if data_args.dataset_name is None and data_args.datasets is None:
        raise UserError("--dataset is missing: a Hub id, a folder, or a file")


def read_arguments(parser: Any, argv: list[str]) -> list[Any]:
    """Return the dataclasses of a parser; a file of options comes before their defaults.

    Args:
        parser: From ``with_common_options``.
        argv: The command line.

    Raises:
        UserError: If an option is unknown, or has a wrong value.
    """
    dests = {
        name.removeprefix("--"): action.dest
        for action in parser._actions
        for name in action.option_strings
        if action.const is not False  # `--no_...`, whose value is the other one
    }
    given = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    given.add_argument("--config")
    given.add_argument("--loss_type", nargs="+")
    given.error = _fail  # type: ignore[method-assign]
    known = given.parse_known_args(argv)[0]
    path = known.config
    losses = " ".join(known.loss_type or [])
    if path is not None:
        values = read_config_file(path, losses or None)
        losses = losses or str(values.get("loss_type", ""))
        options = unknown.known_only(values, dests, path, losses)
        parser.set_defaults_with_config(**{dests[name]: its for name, its in options.items()})
    with user_errors():
        *arguments, rest = parser.parse_args_into_dataclasses(
            argv, return_remaining_strings=True, look_for_args_file=False
        )
    unknown.known_only(_values_of(rest), dests, losses=losses)
    # Options that belong to no dataclass are returned in a namespace.
    return [one for one in arguments if not isinstance(one, argparse.Namespace)]


def given_options(parser: Any, argv: list[str]) -> dict[str, Any]:
    """Return the options of a command line, and none that it leaves at its default.

    Args:
        parser: From ``make_parser``; it is not used again.
        argv: The words; ``--config`` is not read.

    Raises:
        UserError: If there is no such option, or its value is wrong.
    """
    options = {
        name.removeprefix("--") for action in parser._actions for name in action.option_strings
    }
    for action in parser._actions:
        action.default, action.required = argparse.SUPPRESS, False
    found, rest = argparse.ArgumentParser.parse_known_args(parser, argv, argparse.Namespace())
    unknown.known_only(_values_of(rest), options)
    return vars(found)


def _values_of(rest: Sequence[str]) -> dict[str, Any]:
    """Return the values of options that the parser does not know, by the option's name.

    Raises:
        UserError: If a word belongs to no option.
    """
    words: dict[str, list[str]] = {}
    for word in rest:
        if word.startswith("--"):
            name, given, value = word.removeprefix("--").partition("=")
            words[name.replace("-", "_")] = its = [value] if given else []
        elif not words:
            raise UserError(f"{word!r} belongs to no option")
        else:
            its.append(word)
    values = {name: [_read_word(word) for word in its] for name, its in words.items()}
    return {name: its[0] if len(its) == 1 else (its or True) for name, its in values.items()}


def _read_word(word: str) -> Any:
    """Return what a word of the command line says: a number, a truth value, none, or itself."""
    import yaml

    try:
        return yaml.safe_load(word)
    except yaml.YAMLError:
        return word


def read_config_file(path: str, loss: str | None = None) -> dict[str, Any]:
    """Return the options of a YAML file; its ``env`` mapping sets environment variables.

    A file of another program is converted, and what differs is told.

    Args:
        path: The file.
        loss: The loss of the command line, if it names one.

    Raises:
        UserError: If it cannot be read, or says what cannot be had here.
    """
    values = read_yaml(path)
    with user_errors():
        conversion = convert(values, path, loss)
    if conversion is not None:
        if conversion.lost:
            raise UserError(conversion.message(path))
        if is_main_process():
            print(f"prefopt: {summary(conversion, path)}", file=sys.stderr)
        values = conversion.options
    values = {key.replace("-", "_"): value for key, value in values.items()}
    environment = values.pop("env", None) or {}
    if not isinstance(environment, dict):
        raise UserError(f"{path}: env must map names of environment variables to values")
    _set_environment({str(key): str(value) for key, value in environment.items()}, path)
    for alias, name in _ALIASES.items():
        if alias in values and name in values:
            raise UserError(f"{path}: {alias} and {name} are the same option; give one")
        if alias in values:
            values[name] = values.pop(alias)
    return values


def read_yaml(path: str) -> dict[str, Any]:
    """Return what a YAML file says, by key.

    Raises:
        UserError: If it cannot be read, or is no mapping.
    """
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the config file: {error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"{path} must map option names to values, such as `loss_type: ipo`")
    return values


def _set_environment(values: Mapping[str, str], path: str) -> None:
    """Set environment variables, and say which; those that choose what code runs are refused."""
    for name in values:
        if name in _CHOOSE_CODE or name.startswith(("LD_", "DYLD_", "PYTHON")):
            raise UserError(
                f"{path}: env sets {name}, which chooses the code that this and other programs "
                "run; set it outside, in your shell"
            )
    os.environ.update(values)
    if values and is_main_process():
        print(f"prefopt: {path} sets {', '.join(sorted(values))}", file=sys.stderr)


def run_arguments(config: Any, model_args: Any) -> dict[str, Any]:
    """Return what a command line says of model and options, as ``PreferenceTrainer`` takes it."""
    from trl import get_peft_config, get_quantization_config

    from prefopt.training.quantisation import with_quantization

    from_flags = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
    }
    given = config.model_init_kwargs or {}
    if given.get("torch_dtype") is not None:  # the older name of the same option
        del from_flags["dtype"]
    config.model_init_kwargs = {
        **{name: value for name, value in from_flags.items() if value is not None},
        **given,
    }
    quantization_config = get_quantization_config(model_args)
    if quantization_config is not None:
        config = with_quantization(config, quantization_config)
    return {
        "model": model_args.model_name_or_path,
        "args": config,
        "peft_config": get_peft_config(model_args),
    }


def run(trainer: Any, data_args: DataArguments) -> dict[str, float]:
    """Train, save model, tokenizer, state and metrics, evaluate; return the metrics."""
    config = trainer.args
    names = [entry.path for entry in data_args.entries]
    trainer.card_details = trainer.card_details.updated(dataset_name=names)
    result = trainer.train(resume_from_checkpoint=checkpoint_of(config.resume_from_checkpoint))
    metrics = dict(result.metrics)
    trainer.save_metrics("train", result.metrics, combined=False)
    trainer.save_model(config.output_dir)
    trainer.save_state()
    if trainer.eval_dataset is not None:
        held_out = trainer.evaluate()
        trainer.save_metrics("eval", held_out, combined=False)
        metrics |= held_out
        trainer.create_model_card()  # with the evaluation
    if config.push_to_hub:
        trainer.push_to_hub()
    return metrics


def checkpoint_of(value: str | None) -> str | bool | None:
    """Return the checkpoint to resume from; True means the latest."""
    return {"true": True, "false": None}.get(str(value).lower(), value)


def print_metrics(
    metrics: Mapping[str, float],
    output_dir: str,
    code: str,
    steps: Sequence[tuple[str, str]] = (),
) -> None:
    """Print the final metrics as a table, how to load what was saved, and what to do with it."""
    from rich.console import Console
    from rich.table import Table

    table = Table("metric", title="After training", title_justify="left", pad_edge=False)
    table.add_column("value", justify="right")
    for name, value in metrics.items():
        table.add_row(name, f"{value:,.4g}" if isinstance(value, float) else f"{value:,}")
    console = Console(soft_wrap=True)
    console.print(table)
    told = [(f"Saved to {output_dir}. Load it in Python", code), *steps]
    for title, text in told:
        console.print(f"{title}:\n{indent(text, '  ')}", markup=False, highlight=False)


def _fail(message: str) -> NoReturn:
    # argparse names every spelling of an option: `argument --lora_r/--lora-r: ...`
    message = re.sub(r"^(argument --\w+)/\S+?:", r"\1:", message)
    choice = re.fullmatch(r"(.*: invalid choice: )'(.*)' \(choose from (.*)\)", message)
    if choice:  # of which there may be dozens
        names = [name.strip("' ") for name in choice[3].split(",")]
        told = str(UserError.unknown("", choice[2], names))
        raise UserError(told.replace("unknown  ", choice[1]))
    raise UserError(message)


def _or_none(number: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a parser of a number or the word none."""

    def parse(text: str) -> Any:
        return None if text.lower() in ("none", "null") else number(text)

    parse.__name__ = number.__name__  # argparse names it: `invalid int value`
    return parse


def _settings(text: str) -> Any:
    """Return hyper-parameters by name: those of a JSON object, or of ``tau=0.1,gamma=0.5``."""
    if text.lstrip().startswith("{"):
        return _json_object(text)
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(name.strip() and given for name, given, _ in pairs):
        raise argparse.ArgumentTypeError(f"not a JSON object, nor like tau=0.1,gamma=0.5: {text!r}")
    return {name.strip(): _read_word(value) for name, _, value in pairs}


def _json_object(text: str) -> Any:
    """Return a JSON object; other text, such as the path of a file, as it is."""
    if not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"not a JSON object: {error}") from None


def _without_fields_of(wanted: type, other: type) -> type:
    """Return a dataclass like ``wanted`` whose options are only those that ``other`` lacks.

    argparse refuses an option that both have (``trust_remote_code``, until TRL 1.5): that of
    ``other`` is used.
    """
    taken = {item.name for item in fields(other)}
    shared = [item for item in fields(wanted) if item.name in taken]
    hidden = [
        (
            item.name,
            item.type,
            field(default=None if item.default is MISSING else item.default, init=False),
        )
        for item in shared
    ]
    return make_dataclass("ModelArguments", hidden, bases=(wanted,))
