"""The matrix of a comparison: which runs there are, and what each of them is told.

A run is named by the content of its configuration: its options, its data and the model that it
starts from, not where anything lies.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from prefopt.compare.baselines import KINDS, common_options
from prefopt.compare.budget import Budget, RowTokens, budget_of
from prefopt.compare.methods import Method
from prefopt.compare.options import check_options
from prefopt.compare.split import DataFiles
from prefopt.compare.tasks import Stage, Task, digest_of
from prefopt.evaluation import PairLogps, implicit_rewards
from prefopt.objective import parse_objective
from prefopt.reference.store.files import digest_of_file

__all__ = ["START", "Plan", "Run", "Spec", "in_phases", "model_digest"]

START = Method("start", kind="start")
"""The model that all methods start from, measured like them."""

# What runs are told beside what the user says: to be able to go on, and what curves are made of.
RUN_OPTIONS = {
    "report_to": "none",
    "logging_steps": 0.02,
    "diagnostics": True,
    "save_strategy": "steps",
    "save_steps": 0.2,
    "save_total_limit": 1,
}
_EVAL = ("prefopt", "eval")
_EVALUATING = {"eval_strategy": "steps", "eval_steps": 0.25}
_BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")
_SAVING = ("save_strategy", "save_steps", "save_total_limit")

# What decides the values of a reference; anything else may differ between runs that share them.
_OF_REFERENCE = (
    *("max_length", "bf16", "fp16", "use_cpu", "model_init_kwargs", "model_revision", "dtype"),
    *("load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "use_bnb_nested_quant"),
    *("bnb_4bit_quant_storage", "attn_implementation", "reference", "reference_cache_dir"),
    *("layout", "attn_backend", "trust_remote_code", "pad_token", "disable_dropout"),
)
# What `prefopt eval` is told of a run, where the run is told: how it scores, and which reward.
_SCORING = (
    *("max_length", "max_tokens_per_batch", "pad_token", "bf16", "fp16", "use_cpu", "layout"),
    *("attn_backend", "model_init_kwargs", "allow_missing_weights", "trust_remote_code"),
    *("reference_cache_dir", "model_revision", "dtype", "attn_implementation", "load_in_4bit"),
    *("load_in_8bit", "bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage"),
)
_REWARD = (
    *("loss_type", "loss_weights", "loss_kwargs", "beta", "label_smoothing", "desirable_weight"),
    *("undesirable_weight", "discopop_tau", "length_normalize", "margin_scale", "ld_alpha"),
    *("f_divergence_type", "f_alpha_divergence_coef"),
)
_MODEL_FILES = (".safetensors", ".bin", ".pt", ".gguf", ".json", ".model", ".txt", ".jinja", ".py")


@dataclass(frozen=True)
class Spec:
    """What is asked for.

    Attributes:
        model: Folder or Hub id of the start.
        methods: What is compared.
        seeds: Each method is trained with each.
        options: Options of ``prefopt train`` for all methods.
        evaluation: Options of ``prefopt eval`` for all methods.
        held_out: A share of the rows below 1 or their number, to measure with.
        validation: The same, to make choices by.
        search_trials: Learning rates that are tried for each method; 0 for none.
        search_rates: Those rates, if they are given.
        search_metric: What they are judged by, on the validation rows.
    """

    model: str
    methods: tuple[Method, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    options: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    held_out: float = 0.1
    validation: float = 0.05
    search_trials: int = 0
    search_rates: tuple[float, ...] = ()
    search_metric: str = "accuracy"


@dataclass(frozen=True)
class Run:
    """A method with a seed.

    Attributes:
        method: The method.
        seed: The seed.
        task: Its folder and commands.
        budget: What it takes; None if it is not trained.
        needs: The run that must be done before: its reward model; None for none.
    """

    method: Method
    seed: int
    task: Task
    budget: Budget | None = None
    needs: str | None = None


@dataclass(frozen=True)
class _Measuring:
    """A command that measures a run.

    Attributes:
        name: Of the stage and its folder.
        command: Words after ``python -m``.
        told: Options, beside ``model``, ``dataset`` and ``output_dir``.
    """

    name: str
    command: tuple[str, ...]
    told: Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """Makes the runs of a comparison.

    Attributes:
        spec: What is asked for.
        root: Folder of the comparison.
        data: Its rows.
        tokens: Tokens of a row.
        start: Digest of the model.
    """

    spec: Spec
    root: Path
    data: DataFiles
    tokens: RowTokens
    start: str

    def runs(self, methods: Sequence[Method]) -> list[Run]:
        """Return the start, and each method with each seed.

        Raises:
            ValueError: If an option is unknown or does not go with a loss.
        """
        found = [self.run(START, 0)]
        for method in methods:
            is_trained = KINDS[method.kind].trained_by
            for seed in self.spec.seeds if is_trained else self.spec.seeds[:1]:
                found.append(self.run(method, seed))
        return found

    def run(
        self, method: Method, seed: int, stage: str = "evaluation", measured: Path | None = None
    ) -> Run:
        """Return a run; the same method and seed make the same folder.

        Args:
            method: The method.
            seed: Of the order of rows, and what else is random.
            stage: What measuring is called, and the folder of what is measured.
            measured: Rows to measure with; None for those held out.
        """
        measured = measured or self.data.held_out
        needs = self._reward_model(method, seed)
        known = {"reward_model": needs} if needs else {}
        if not KINDS[method.kind].trained_by:
            options = {**method.options, **known}
            return Run(
                method, seed, self._task(method, seed, options, stage, measured), None, needs
            )
        budget = self.budget(method)
        common = common_options(method.kind, {**RUN_OPTIONS, **self.spec.options})
        options = {**common, **self._evaluating(method, common), **method.options, **known}
        options |= {"max_steps": budget.steps, "seed": seed}
        task = self._task(method, seed, options, stage, measured)
        return Run(method, seed, task, budget, needs)

    def budget(self, method: Method) -> Budget:
        """Return what a method takes."""
        pairwise = check_options({"loss_type": "dpo", **self.spec.options})
        kind, rows = KINDS[method.kind], self.data.sizes["train"]
        own = {**self.spec.options, **method.options}
        if kind.uses_trl:  # as a loss that looks at as many texts of a row
            sizes = {name: own[name] for name in _BATCH if name in own}
            own = {"loss_type": "sft" if kind.looks_at == "one" else "dpo", **sizes}
        found = budget_of(check_options(own), pairwise, method.options, rows, self.tokens)
        # What TRL logs as num_tokens is all trained on.
        return replace(found, share=1.0) if kind.uses_trl else found

    def _reward_model(self, method: Method, seed: int) -> str | None:
        """Return the run of the reward model that a method needs; None if it needs none."""
        name = method.options.get("reward_model")
        found = [one for one in self.spec.methods if one.name == name]
        return self.run(found[0], seed).task.name if found else None

    def references(self, methods: Sequence[Method]) -> list[Task]:
        """Return what computes the reference log-probs that several runs share, once."""
        groups: dict[str, list[Method]] = {}
        for method in methods:
            if method.kind != "loss":
                continue
            options = {**self.spec.options, **method.options}
            objective = check_options(options).objective
            moving = options.get("reference") == "live" or options.get("sync_ref_model")
            if objective.needs_reference and not moving:
                groups.setdefault(_reference_key(options), []).append(method)
        return [self._reference(key, its) for key, its in groups.items()]

    def _reference(self, key: str, methods: Sequence[Method]) -> Task:
        """Return the task that fills the store; with KTO's mismatched completions if need be."""
        needs_kl = [its for its in methods if its.objective(self.spec.options).needs_kl]
        method = (needs_kl or list(methods))[0]
        options = {**self.spec.options, **method.options, **self._sources()}
        if key != _reference_key(self.spec.options):
            # Else the held-out rows are scored, at the same time, where the start is measured.
            options["eval_datasets"] = [str(file) for file in self._measured_with()]
        digest = digest_of("reference", key, self.start, self.data.digests, bool(needs_kl))
        folder = self.root / "reference" / digest
        options["output_dir"] = str(folder / "none")
        command = ("prefopt", "cache", "fill", "--config", str(folder / "fill.yaml"))
        stage = Stage("reference log-probs", command, digest, "none")
        return Task("reference", folder, (stage,), {"fill.yaml": _yaml(options)})

    def _task(
        self, method: Method, seed: int, options: dict[str, Any], stage: str, measured: Path
    ) -> Task:
        keep = any(name in self.spec.options or name in method.options for name in _SAVING)
        used = [
            self.data.digests[name]
            for name in ("train", "validation")
            if KINDS[method.kind].trained_by and name in self.data.digests
        ]
        digest = digest_of(method.kind, by_content(options), used, self.start)
        name = f"{method.slug}-{seed}-{digest}"
        folder = self.root / "runs" / name
        files, stages = {}, []
        kind = KINDS[method.kind]
        if kind.trained_by:
            told = {**options, **self._sources(), "output_dir": str(folder / "model")}
            files["train.yaml"] = _yaml(self._with_paths(told))
            command = (*kind.trained_by, "--config", str(folder / "train.yaml"))
            stages.append(Stage("train", command, digest, "model", True, keep))
        model = str(folder / "model") if stages else self.spec.model
        of_rows = digest_of_file(measured)
        for part in self._measuring(method, model, options, stage):
            config = "eval.yaml" if part.name == "evaluation" else f"{part.name}.yaml"
            places = {"dataset": str(measured), "output_dir": str(folder / part.name)}
            files[config] = _yaml(self._with_paths({"model": model, **part.told, **places}))
            command = (*part.command, "--config", str(folder / config))
            known = digest_of(digest, by_content(part.told), of_rows)
            stages.append(Stage(part.name, command, known, part.name))
        return Task(name, folder, tuple(stages), files)

    def _measuring(
        self, method: Method, model: str, options: Mapping[str, Any], stage: str
    ) -> list[_Measuring]:
        """Return the commands that measure a run."""
        kind, evaluation = KINDS[method.kind], self.spec.evaluation
        given = {**self.spec.options, **method.options}
        scoring = {name: given[name] for name in _SCORING if name in given}
        if method.kind == "reward_model":  # it writes no answers
            return [_Measuring(stage, kind.measured_by, scoring)]
        asked = {"ref_model": self.spec.model, **scoring}
        if method.kind == "loss":
            asked |= reward_options(given)
        asked |= evaluation
        if method.kind != "best_of_n":
            return [_Measuring(stage, kind.measured_by, asked)]
        drawn = {name: asked[name] for name in asked if not name.startswith("judge")}
        drawn |= {"samples_per_prompt": options["n"] + 1, "temperatures": [1.0]}
        samples = "samples" if stage == "evaluation" else f"{stage}_samples"
        return [
            _Measuring(samples, _EVAL, drawn),
            _Measuring(stage, kind.measured_by, {**asked, **options, "samples": samples}),
        ]

    def _with_paths(self, told: dict[str, Any]) -> dict[str, Any]:
        """Return options that name a reward model by its folder, not by its run."""
        if "reward_model" not in told:
            return told
        return {**told, "reward_model": str(self.root / "runs" / told["reward_model"] / "model")}

    def _evaluating(self, method: Method, common: Mapping[str, Any]) -> dict[str, Any]:
        """Return when validation rows are looked at; never in RL, which would answer them."""
        if method.kind in ("rl", "rl_true"):
            return {"eval_strategy": "no"}
        given = {name: common[name] for name in _EVALUATING if name in common}
        return {**_EVALUATING, **given} if self.data.validation is not None else {}

    def _sources(self) -> dict[str, Any]:
        sources: dict[str, Any] = {"model": self.spec.model, "dataset": str(self.data.train)}
        if self.data.validation is not None:
            sources["eval_datasets"] = [str(self.data.validation)]
        return sources

    def _measured_with(self) -> list[Path]:
        return [file for file in (self.data.validation, self.data.held_out) if file is not None]


def _reference_key(options: Mapping[str, Any]) -> str:
    """Return what is the same for runs whose reference log-probs are the same."""
    return digest_of({name: options.get(name) for name in _OF_REFERENCE})


def in_phases(runs: Sequence[Run]) -> list[list[Task]]:
    """Return tasks in groups, each of which can be run at once, when those before it are done.

    Runs are measured after the start, whose log-probs and answers on held-out rows they all need,
    and trained beside it.

    Args:
        runs: Those of the matrix, the start first.
    """
    start, *others = (run.task for run in runs if run.needs is None)
    trained = [
        replace(task, stages=task.stages[:1]) for task in others if task.stages[0].name == "train"
    ]
    last = [run.task for run in runs if run.needs is not None]
    return [group for group in ([start, *trained], others, last) if group]


def by_content(value: Any) -> Any:
    """Return options with what is in files in place of their names: functions, and judging models.

    Losses, rewards and judges may be functions of a file (``own.py:mine``), which change with it.
    """
    if isinstance(value, Mapping):
        return {name: by_content(its) for name, its in value.items()}
    if isinstance(value, list | tuple):
        return [by_content(its) for its in value]
    if not isinstance(value, str):
        return value
    judge = re.fullmatch(r"(classifier|logprob):([^#]+)(#.*)?", value)
    if judge is not None:
        return [judge[1], model_digest(judge[2]), judge[3]]
    return re.sub(r"[^\s:+*{}\[\]]+\.py(?=:[A-Za-z_])", _digest_of_function_file, value)


def _digest_of_function_file(found: re.Match[str]) -> str:
    file = Path(found[0]).expanduser()
    return digest_of_file(file) if file.is_file() else found[0]


def model_digest(model: str, revision: str | None = None) -> str:
    """Return what a model is, as a digest: of the files of a folder; of the Hub, its id."""
    folder = Path(model)
    if not folder.is_dir():
        return digest_of(model, revision)
    files = [file for file in sorted(folder.iterdir()) if file.suffix in _MODEL_FILES]
    return digest_of([(file.name, digest_of_file(file)) for file in files])


def reward_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return which implicit reward ``prefopt eval`` computes; none where the loss defines none."""
    one, two = PairLogps(*_ones(2)), PairLogps(*_ones(2))
    try:
        implicit_rewards(parse_objective(options["loss_type"]), one, two)
    except ValueError:
        return {}
    return {name: options[name] for name in _REWARD if name in options}


def _ones(count: int) -> tuple[Any, ...]:
    import torch

    logps, lengths = -torch.ones(count), torch.ones(count, dtype=torch.long)
    return logps, logps, lengths, lengths, -torch.ones(2 * count)


def _yaml(options: Mapping[str, Any]) -> str:
    import yaml

    plain = json.loads(json.dumps(dict(options), default=str))
    text: str = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    return text
