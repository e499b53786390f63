"""``compare``: divide the rows, run the matrix, collect what was measured, say what it shows."""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from datasets import Dataset
from rich.console import Console

from prefopt.compare import collect
from prefopt.compare.baselines import KINDS, read_baselines
from prefopt.compare.budget import row_tokens
from prefopt.compare.executors import Executor, make_executor, model_bytes
from prefopt.compare.methods import Method, named, read_methods
from prefopt.compare.options import check_options, plain_options
from prefopt.compare.plan import Plan, Run, Spec, in_phases, model_digest
from prefopt.compare.report import write_report
from prefopt.compare.results import Comparison
from prefopt.compare.search import Search
from prefopt.compare.split import split_rows, write_split
from prefopt.compare.tables import print_plan, print_results
from prefopt.compare.tasks import Task, retry, state_of
from prefopt.compare.verdict import write_verdict
from prefopt.compare.watch import Watch
from prefopt.data import load_rows
from prefopt.evaluation import FrontierPoint
from prefopt.versions import versions

__all__ = ["Resources", "compare"]

_PACKAGES = ("prefopt", "torch", "transformers", "trl", "peft", "datasets")


@dataclass(frozen=True)
class Resources:
    """Where and how the runs are computed; no result depends on it.

    Attributes:
        executor: ``processes`` of this machine; or, through submitit, ``slurm``, ``local``
            or ``debug``.
        jobs: Runs at once; None for as many as fit by cores and memory, or one for each GPU.
        parameters: Of submitit: ``timeout_min``, ``gpus_per_node``, ``slurm_partition``, ...
    """

    executor: str = "processes"
    jobs: int | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)


def compare(
    model: str,
    dataset: str | Dataset,
    output_dir: str | Path,
    *,
    losses: str | Sequence[str] = (),
    betas: Sequence[float] = (),
    methods: Sequence[str | Mapping[str, Any]] = (),
    baselines: str | Sequence[str | Mapping[str, Any]] = (),
    seeds: int | Sequence[int] = 3,
    eval_dataset: str | Dataset | None = None,
    held_out: float = 0.1,
    validation: float = 0.05,
    options: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    search_trials: int = 0,
    search_rates: Sequence[float] = (),
    search_metric: str = "accuracy",
    frontier: Sequence[FrontierPoint] = (),
    resources: Resources | None = None,
    title: str = "",
    command: str = "",
    dry_run: bool = False,
    print_table: bool = True,
    console: Console | None = None,
) -> Comparison:
    """Train methods from one start on the same rows, measure them alike, and say what that shows.

    Called again with the same arguments and folder, it resumes: finished runs are not repeated.

    Args:
        model: Folder or Hub id of the start.
        dataset: Rows, or what ``prefopt.data.load_rows`` reads; divided once by prompt.
        output_dir: Folder of the comparison.
        losses: Losses and sums, as a list or with commas between them.
        betas: Values of ``beta`` for each loss that has one.
        methods: Further methods: mappings with ``loss_type`` and any options of ``prefopt train``.
        baselines: What stands beside them, as a list or with commas: ``sft``, ``reward_model``,
            ``rl``, ``rl_true``, ``best_of_n``; or mappings with ``kind`` and options of their own.
        seeds: How many, or which.
        eval_dataset: Rows to measure with; else ``held_out`` of the others are.
        held_out: A share below 1, or a number of rows.
        validation: The same, of rows to make choices by.
        options: Options of ``prefopt train`` for all methods.
        evaluation: Options of ``prefopt eval``, such as ``reward`` or ``judge``.
        search_trials: Learning rates to try for each method, around its own; 0 for none, or for
            as many as ``search_rates``.
        search_rates: Those rates, if they are to be others.
        search_metric: What they are judged by on the validation rows: a metric of ``prefopt eval``.
        frontier: Best reachable reward by KL, where it is known; for the report.
        resources: Where runs are computed; None for processes of this machine.
        title: Headline of the report.
        command: What repeats this; for the report.
        dry_run: Only print the runs.
        print_table: Whether to print the numbers and the verdict at the end.
        console: Where to print; None for stderr.

    Returns:
        What was found, also in ``results.json`` and the report; of a dry run, the runs alone.

    Raises:
        ValueError: If an option, a loss or the data are wrong.
        KeyboardInterrupt: If it was asked to stop; started again, it goes on.
    """
    spec, notes = _read_spec(
        model, losses, betas, methods, baselines, seeds, held_out, validation, options, evaluation
    )
    spec = replace(
        spec,
        search_trials=search_trials or len(search_rates),
        search_rates=tuple(search_rates),
        search_metric=search_metric,
    )
    about = _About(title or "Which loss for these data?", command, tuple(frontier), print_table)
    work = _Work(
        spec,
        Path(output_dir).absolute(),
        resources or Resources(),
        console or Console(stderr=True, highlight=False),
        about,
    )
    for note in notes:
        work.say(note)
    work.prepare(_rows(dataset), None if eval_dataset is None else _rows(eval_dataset))
    return work.plan_only() if dry_run else work.run()


@dataclass(frozen=True)
class _About:
    """What the report says of the comparison.

    Attributes:
        title: Its headline.
        command: What repeats it.
        frontier: Best reachable reward by KL.
        print_table: Whether it is printed, too.
    """

    title: str
    command: str
    frontier: tuple[FrontierPoint, ...]
    print_table: bool


class _Work:
    """One comparison at work; ``compare`` says what its arguments are."""

    def __init__(
        self, spec: Spec, root: Path, resources: Resources, console: Console, about: _About
    ) -> None:
        self._spec, self._root, self._resources = spec, root, resources
        self._console, self._about = console, about

    def say(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, markup=False, soft_wrap=True)

    def prepare(self, rows: Dataset, held_out: Dataset | None) -> None:
        """Divide the rows, write them, and count their tokens."""
        from transformers import AutoTokenizer

        spec = self._spec
        split = split_rows(
            rows, held_out, held_out_size=spec.held_out, validation_size=spec.validation
        )
        for note in split.notes:
            self.say(note)
        data = write_split(split, self._root / "data")
        self.say(
            f"{data.sizes['train']:,} rows to train on, {data.sizes['validation']:,} for choices, "
            f"{data.sizes['held_out']:,} held out, divided by prompt"
        )
        revision = spec.options.get("model_revision")
        tokenizer = AutoTokenizer.from_pretrained(spec.model, revision=revision)
        max_length = check_options({"loss_type": "dpo", **spec.options}).max_length
        tokens = row_tokens(data.train, tokenizer, max_length)
        self._plan = Plan(spec, self._root, data, tokens, model_digest(spec.model, revision))
        self._write_spec()

    def plan_only(self) -> Comparison:
        """Print the runs and what they take."""
        runs = self._plan.runs(self._spec.methods)
        print_plan(self._console, runs)
        if self._spec.search_trials:
            asked = sum(not KINDS[method.kind].is_special for method in self._spec.methods)
            self.say(
                f"before them {asked * self._spec.search_trials} trials of learning rates, each "
                "like a run with the first seed; one for each method is a run of the matrix"
            )
        return self._comparison(runs)

    def run(self) -> Comparison:
        """Run everything that is not done, and collect it."""
        executor = make_executor(
            self._resources.executor,
            self._root / "submitit",
            jobs=self._resources.jobs,
            needed_bytes=model_bytes(self._spec.model),
            use_gpus=not self._spec.options.get("use_cpu"),
            parameters=self._resources.parameters,
        )
        self._fill_references(executor)
        runs = self._plan.runs(self._chosen(executor))
        steps = {run.task.name: run.budget.steps for run in runs if run.budget}
        tasks = [run.task for run in runs]
        for task in tasks:
            retry(task)
        with Watch(tasks, steps, self._console) as watch:
            for group in in_phases(runs):
                asked = [task for task in group if state_of(task).state == "waiting"]
                if asked:
                    executor.run(asked, watch.update)
        return self._finish(runs)

    def _chosen(self, executor: Executor) -> list[Method]:
        """Return the methods, with the learning rates that a search chose if it is asked for."""
        methods = list(self._spec.methods)
        if not self._spec.search_trials:
            return methods
        asked = [method for method in methods if not KINDS[method.kind].is_special]
        search = Search(self._plan, executor, self.say, self._trials)
        chosen = dict(zip([its.name for its in asked], search.choose(asked), strict=True))
        return [chosen.get(method.name, method) for method in methods]

    def _trials(self, tasks: Sequence[Task]) -> Watch:
        return Watch(tasks, {}, self._console, "Learning rates")

    def _fill_references(self, executor: Executor) -> None:
        """Compute once the log-probs of the start that training needs."""
        tasks = self._plan.references(self._spec.methods)
        waiting = [task for task in tasks if state_of(task).state != "done"]
        for task in waiting:
            retry(task)
        if waiting:
            with Watch(waiting, {}, self._console, "References, once for all runs") as watch:
                executor.run(waiting, watch.update)
        for task in waiting:
            if (state := state_of(task)).state == "failed":
                self.say(f"{task.name}: {state.error}; each run does it by itself")

    def _finish(self, runs: Sequence[Run]) -> Comparison:
        """Collect, print and save what was found."""
        comparison = self._comparison(runs)
        comparison.save(self._root / "results.json")
        if self._about.print_table:
            print_results(self._console, comparison)
        for run in comparison.runs:
            if run.state == "failed":
                self.say(
                    f"{run.name} failed: {run.error}; see {self._root}/runs/{run.name}/log.txt"
                )
        try:
            write_report(comparison, self._root)
        except ImportError as error:
            self.say(f"no report: {error}")
            return comparison
        if self._about.print_table:
            self.say(f"Report: {self._root / 'report.html'}")
        return comparison

    def _comparison(self, runs: Sequence[Run]) -> Comparison:
        methods = collect.method_results(runs)
        tests = collect.paired_tests(runs)
        rules = collect.data_baselines(runs)
        return Comparison(
            title=self._about.title,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            command=self._about.command,
            spec=self._written_spec(),
            versions=_versions(),
            verdict=write_verdict(methods, tests, rules),
            methods=methods,
            data_baselines=rules,
            tests=tests,
            frontier=self._about.frontier,
            curves=collect.run_curves(runs),
            win_rates=collect.run_win_rates(runs),
            diagnoses=collect.run_diagnoses(runs),
            samples=collect.run_samples(runs, load_rows(str(self._plan.data.held_out))),
            runs=collect.run_records(runs),
        )

    def _written_spec(self) -> dict[str, Any]:
        data = self._plan.data
        spec = asdict(self._spec) | {
            "data": {"rows": data.sizes, "digests": data.digests},
            "start": self._plan.start,
        }
        plain: dict[str, Any] = json.loads(json.dumps(spec, default=str))
        return plain

    def _write_spec(self) -> None:
        import yaml

        text = yaml.safe_dump(self._written_spec(), sort_keys=False, allow_unicode=True)
        (self._root / "comparison.yaml").write_text(text, encoding="utf-8")


def _read_spec(
    model: str,
    losses: str | Sequence[str],
    betas: Sequence[float],
    methods: Sequence[str | Mapping[str, Any]],
    baselines: str | Sequence[str | Mapping[str, Any]],
    seeds: int | Sequence[int],
    held_out: float,
    validation: float,
    options: Mapping[str, Any] | None,
    evaluation: Mapping[str, Any] | None,
) -> tuple[Spec, list[str]]:
    """Return what is asked for, checked, and what there is to say of it."""
    found, notes = read_methods(losses, betas, methods)
    common = plain_options(options or {})
    found = [Method(one.name, plain_options(one.options), one.kind) for one in found]
    for method in found:
        _check(method, common)
    beside, more = read_baselines(baselines, common, evaluation)
    found, notes = named([*found, *beside]), [*notes, *more]
    numbers = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not numbers:
        raise ValueError(f"seeds must be at least 1, or a list of seeds; got {seeds!r}")
    model = str(Path(model).absolute()) if Path(model).is_dir() else model
    given = dict(evaluation or {})
    return Spec(model, tuple(found), numbers, common, given, held_out, validation), notes


def _check(method: Method, common: Mapping[str, Any]) -> None:
    try:
        _ = method.objective(common)
    except ValueError as error:
        raise ValueError(f"{method.name}: {error}") from None


def _rows(dataset: str | Dataset) -> Dataset:
    """Return rows; of what has several splits, those to train on."""
    rows = load_rows(dataset) if isinstance(dataset, str) else dataset
    if isinstance(rows, Mapping):
        if "train" not in rows:
            raise ValueError(f"{dataset} has no split 'train', only {', '.join(rows)}")
        return rows["train"]
    return rows


def _versions() -> dict[str, str]:
    about = {"python": platform.python_version(), "machine": platform.platform()}
    return about | versions(*_PACKAGES)
