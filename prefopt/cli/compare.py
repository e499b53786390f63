"""``prefopt compare``: train several methods from one start on the same rows, and measure them.

Its own options are below. Any other is an option of ``prefopt train`` and goes to all runs. A YAML
file can hold any of them; ``methods`` there lists methods with options of their own.
"""

import argparse
import contextlib
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, fields
from typing import Any, get_args, get_origin, get_type_hints

from prefopt.cli.errors import UserError, user_errors
from prefopt.cli.eval import EvalArguments
from prefopt.cli.train import given_options, make_parser, read_config_file

_DESCRIPTION = """\
Train several methods from one start on the same rows, measure them alike on rows that none of
them saw, and say which differ.

  prefopt compare --model M --dataset D --losses "dpo, ipo, kto" --betas 0.05,0.1 --seeds 3 \\
      --output_dir OUT
  prefopt compare --config compare.yaml --output_dir OUT --dry-run

Any option of `prefopt train` goes to all runs, such as --learning_rate, --max_steps, --use_peft.
Started again with the same options it goes on: what is done is not done again.
"""

# Options of `prefopt eval` that the comparison sets.
_SET_OF_EVAL = ("output_dir", "start_samples")


def eval_fields() -> dict[str, Field[Any]]:
    """Return the own options of ``prefopt eval``, which are taken here too, by name."""
    return {item.name: item for item in fields(EvalArguments) if item.name not in _SET_OF_EVAL}


def main(argv: Sequence[str]) -> int:
    """Run a comparison; return the exit code, 1 if a run failed."""
    from rich.console import Console

    own, options = read(list(argv))
    data = {name: options.pop(name) for name in [*options] if name in DATA_OPTIONS}
    command = shlex.join(["prefopt", "compare", *argv])
    with user_errors(), _told_how_to_go_on(command):
        from prefopt.compare import Resources, compare

        rows, held_out = load(data, own)
        resources = Resources(own.executor, own.jobs, own.submitit or {})
        found = compare(
            data["model_name_or_path"],
            rows,
            own.output_dir,
            losses=own.losses or (),
            betas=own.betas or (),
            methods=own.methods or (),
            baselines=own.baselines or (),
            seeds=own.seeds if len(own.seeds) > 1 else own.seeds[0],
            eval_dataset=held_out,
            held_out=own.held_out,
            validation=own.validation,
            options=options,
            evaluation=own.evaluation,
            search_trials=own.search_trials,
            search_rates=own.search_rates or (),
            search_metric=own.search_metric,
            resources=resources,
            title=own.title,
            command=command,
            dry_run=own.dry_run,
            console=Console(highlight=False),
        )
    return 1 if any(run.state == "failed" for run in found.runs) else 0


@contextlib.contextmanager
def _told_how_to_go_on(command: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as stopped:
        raise KeyboardInterrupt(
            f"interrupted; what is done stays done. The same command goes on:\n  {command}"
        ) from stopped


# Options of `prefopt train` that say what the data and the model are.
DATA_OPTIONS = (
    *("model_name_or_path", "dataset_name", "datasets", "dataset_config", "dataset_train_split"),
    *("dataset_test_split", "eval_datasets", "columns"),
)


def read(argv: list[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Return the options of this command, and those of ``prefopt train``.

    Raises:
        UserError: If one is missing, unknown or wrong.
    """
    parser = make_own_parser()
    own, rest = parser.parse_known_args(argv)
    options: dict[str, Any] = {}
    if own.config is not None:
        options = read_config_file(own.config)
        names = {action.dest for action in parser._actions} - {"config", "help"}
        names |= {"methods", "evaluation"}
        values = {name: options.pop(name) for name in [*options] if name in names}
        for name in [*options]:
            if name in eval_fields():
                values.setdefault("evaluation", {})
                values["evaluation"] = {**values["evaluation"], name: options.pop(name)}
        _set_defaults(parser, values, own.config)
        own, rest = parser.parse_known_args(argv)
    options |= given_options(make_parser(), rest)
    given = {name: getattr(own, name) for name in eval_fields()}
    own.evaluation = {
        **(own.evaluation or {}),
        **{name: value for name, value in given.items() if value is not None},
    }
    own.output_dir = options.pop("output_dir", None)
    _check(own, options)
    return own, options


def make_own_parser() -> argparse.ArgumentParser:
    """Return the parser of the options that ``prefopt train`` has not."""
    parser = argparse.ArgumentParser(
        prog="prefopt compare",
        usage="prefopt compare --model MODEL --dataset DATA --losses LOSSES --output_dir OUT",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", help="YAML file with any of the options, without the dashes")
    add("--losses", help="losses and sums, with commas: 'dpo, kto, dpo + 0.2*sft'")
    add(
        "--baselines",
        help="what stands beside them: any of sft, reward_model, rl, rl_true, best_of_n",
    )
    add("--betas", type=_numbers, help="values of beta for each loss that has one: 0.05,0.1")
    add("--seeds", type=_whole, default=[3], help="how many, or which, as 0,5,7; default: 3")
    add(
        "--held_out",
        type=float,
        default=0.1,
        help="share of the rows, or their number, to measure with; default: 0.1",
    )
    add(
        "--validation", type=float, default=0.05, help="the same, to make choices by; default: 0.05"
    )
    add("--search_trials", type=int, default=0, help="learning rates to try for each method")
    add("--search_rates", type=_numbers, help="those rates; default: around the method's own")
    add("--search_metric", default="accuracy", help="what they are judged by on validation rows")
    add("--executor", default="processes", help="processes, slurm, local or debug (submitit)")
    add("--jobs", type=int, help="runs at once; default: as many as fit")
    add("--submitit", type=_object, help="parameters of the cluster's jobs, as a JSON object")
    add("--title", default="", help="headline of the report")
    add("--dry-run", "--dry_run", action="store_true", help="only print the runs")
    parser.set_defaults(methods=None, evaluation=None)
    group = parser.add_argument_group("measuring", "options of `prefopt eval`")
    hints = get_type_hints(EvalArguments)
    for name, item in eval_fields().items():
        parts = _parts(hints[name])
        several = any(get_origin(part) is list for part in parts)
        kind = next((kind for kind in (float, int) if kind in parts), str)
        told = item.metadata["help"]
        group.add_argument(f"--{name}", type=kind, nargs="+" if several else None, help=told)
    parser.error = _fail  # type: ignore[method-assign,assignment]
    return parser


def _parts(hint: Any) -> list[Any]:
    """Return a type and all that it is made of: of ``list[int] | None`` that, list[int] and int."""
    return [hint, *(inner for part in get_args(hint) for inner in _parts(part))]


def load(data: Mapping[str, Any], own: argparse.Namespace) -> tuple[Any, Any]:
    """Return the rows to divide, and those held out if they are given."""
    from prefopt.cli.rows import DataArguments, load_splits

    given = {name: value for name, value in data.items() if name != "model_name_or_path"}
    arguments = DataArguments(**given)
    rows, held_out = load_splits(arguments, _NoEvaluation())
    return _together(rows), None if held_out is None else _together(held_out)


class _NoEvaluation:
    """What ``load_splits`` asks of a configuration: nothing is held out by it here."""

    eval_strategy = "no"
    seed = 0


def _together(rows: Any) -> Any:
    """Return several datasets as one, each row as often as its weight says."""
    if not isinstance(rows, list):
        return rows
    from datasets import concatenate_datasets

    from prefopt.data.mixture import rows_used

    parts = []
    for place, part in enumerate(rows):
        used = rows_used(len(part.dataset), part.weight, (0, place))
        parts.append(part.dataset.select(used))
    columns = {tuple(sorted(part.column_names)) for part in parts}
    if len(columns) > 1:
        raise UserError(
            "several datasets need the same columns to be compared on; give each entry its columns "
            "and what to rename"
        )
    return concatenate_datasets(parts)


def _check(own: argparse.Namespace, options: Mapping[str, Any]) -> None:
    if own.output_dir is None:
        raise UserError("--output_dir is missing: the folder of the comparison")
    if options.get("model_name_or_path") is None:
        raise UserError("--model is missing: a folder or a Hub id")
    if options.get("dataset_name") is None and options.get("datasets") is None:
        raise UserError("--dataset is missing: a Hub id, a folder, or a file")
    if not own.losses and not own.methods:
        raise UserError("--losses is missing: such as 'dpo, ipo, kto'")
    for name in own.evaluation:
        if name not in eval_fields():
            raise UserError.unknown("option of prefopt eval", name, eval_fields())
    if own.search_trials < 0:
        raise UserError(f"--search_trials must be at least 0, got {own.search_trials}")


def _set_defaults(parser: argparse.ArgumentParser, values: dict[str, Any], path: str) -> None:
    """Take values of a file for defaults, read as on the command line where they are text."""
    for name in ("betas", "seeds", "search_rates"):
        if name in values and not isinstance(values[name], str):
            one = values[name]
            values[name] = ",".join(map(str, one if isinstance(one, list) else [one]))
    if isinstance(values.get("losses"), list):
        values["losses"] = ",".join(map(str, values["losses"]))
    for name in ("evaluation", "submitit"):
        if name in values and not isinstance(values[name], dict):
            raise UserError(f"{path}: {name} must map options to values")
    if not isinstance(values.get("methods", []), list):
        raise UserError(f"{path}: methods must be a list, each with a loss_type and its options")
    if not isinstance(values.get("baselines", ""), str | list):
        raise UserError(f"{path}: baselines must be a list of kinds, or of mappings with a kind")
    parser.set_defaults(**values)


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",") if part.strip()]


def _whole(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part.strip()]


def _object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _fail(message: str) -> None:
    raise UserError(message)
