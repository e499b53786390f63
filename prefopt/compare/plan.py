"""The matrix of a comparison: which runs there are, and what each of them is told.

A run is named by the content of its configuration: its options, its data and the model that it
starts from, not where anything lies.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefopt.compare.budget import Budget, RowTokens, budget_of
from prefopt.compare.methods import Method
from prefopt.compare.options import check_options
from prefopt.compare.split import DataFiles
from prefopt.compare.tasks import Stage, Task, digest_of
from prefopt.evaluation import PairLogps, implicit_rewards
from prefopt.objective import parse_objective
from prefopt.reference.store.files import digest_of_file

__all__ = ["START", "TRAINED_BY", "Plan", "Run", "Spec", "model_digest"]

START = Method("start", kind="start")
"""The model that all methods start from, measured like them."""

TRAINED_BY: dict[str, tuple[str, ...]] = {"loss": ("prefopt", "train")}
"""Words after ``python -m`` that train a method of a kind: they take ``--config FILE``, a file of
options with ``model``, ``dataset``, ``eval_datasets``, ``seed`` and ``output_dir``, and leave a
model there. A further baseline is a kind of method with a command of its own; ``start`` has none.
"""

# What runs are told beside what the user says: to be able to go on, and what curves are made of.
RUN_OPTIONS = {
    "report_to": "none",
    "logging_steps": 0.02,
    "diagnostics": True,
    "save_strategy": "steps",
    "save_steps": 0.2,
    "save_total_limit": 1,
}
_EVALUATING = {"eval_strategy": "steps", "eval_steps": 0.25}
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
    """

    method: Method
    seed: int
    task: Task
    budget: Budget | None = None


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
        found = [Run(START, 0, self._task(START, 0, {}, "evaluation", self.data.held_out))]
        for method in methods:
            for seed in self.spec.seeds:
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
        budget = self.budget(method)
        options = {**RUN_OPTIONS, **self._evaluating(), **self.spec.options, **method.options}
        options |= {"max_steps": budget.steps, "seed": seed}
        measured = measured or self.data.held_out
        return Run(method, seed, self._task(method, seed, options, stage, measured), budget)

    def budget(self, method: Method) -> Budget:
        """Return what a method takes."""
        common = {"loss_type": "dpo", **self.spec.options}
        own = check_options({**self.spec.options, **method.options})
        rows = self.data.sizes["train"]
        return budget_of(own, check_options(common), method.options, rows, self.tokens)

    def references(self, methods: Sequence[Method]) -> list[Task]:
        """Return what computes the reference log-probs that several runs share, once."""
        groups: dict[str, list[Method]] = {}
        for method in methods:
            options = {**self.spec.options, **method.options}
            objective = check_options(options).objective
            moving = options.get("reference") == "live" or options.get("sync_ref_model")
            if objective.needs_reference and not moving:
                key = digest_of({name: options.get(name) for name in _OF_REFERENCE})
                groups.setdefault(key, []).append(method)
        return [self._reference(key, its) for key, its in groups.items()]

    def _reference(self, key: str, methods: Sequence[Method]) -> Task:
        """Return the task that fills the store; with KTO's mismatched completions if need be."""
        needs_kl = [its for its in methods if its.objective(self.spec.options).needs_kl]
        method = (needs_kl or list(methods))[0]
        options = {**self.spec.options, **method.options, **self._sources()}
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
            if method != START and name in self.data.digests
        ]
        digest = digest_of(method.kind, options, used, self.start)
        name = f"{method.slug}-{seed}-{digest}"
        folder = self.root / "runs" / name
        files, stages = {}, []
        if method.kind in TRAINED_BY:
            told = {**options, **self._sources(), "output_dir": str(folder / "model")}
            files["train.yaml"] = _yaml(told)
            command = (*TRAINED_BY[method.kind], "--config", str(folder / "train.yaml"))
            stages.append(Stage("train", command, digest, "model", True, keep))
        model = str(folder / "model") if stages else self.spec.model
        asked = self._asked(method, model, measured, folder / stage)
        config = "eval.yaml" if stage == "evaluation" else f"{stage}.yaml"
        files[config] = _yaml(asked)
        known = {key: asked[key] for key in asked if key not in ("model", "dataset", "output_dir")}
        of_rows = digest_of_file(measured)
        command = ("prefopt", "eval", "--config", str(folder / config))
        stages.append(Stage(stage, command, digest_of(digest, known, of_rows), stage))
        return Task(name, folder, tuple(stages), files)

    def _asked(self, method: Method, model: str, measured: Path, output: Path) -> dict[str, Any]:
        """Return what ``prefopt eval`` is told of a run."""
        given = {**self.spec.options, **method.options}
        options: dict[str, Any] = {"model": model, "ref_model": self.spec.model}
        options |= {name: given[name] for name in _SCORING if name in given}
        if method.kind == "loss":
            options |= reward_options(given)
        return {
            **options,
            **self.spec.evaluation,
            "dataset": str(measured),
            "output_dir": str(output),
        }

    def _evaluating(self) -> dict[str, Any]:
        return dict(_EVALUATING) if self.data.validation is not None else {}

    def _sources(self) -> dict[str, Any]:
        sources: dict[str, Any] = {"model": self.spec.model, "dataset": str(self.data.train)}
        if self.data.validation is not None:
            sources["eval_datasets"] = [str(self.data.validation)]
        return sources

    def _measured_with(self) -> list[Path]:
        return [file for file in (self.data.validation, self.data.held_out) if file is not None]


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
