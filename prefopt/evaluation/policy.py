"""Everything that is measured of one policy on held-out data: what ``prefopt eval`` does.

Pairs are scored by policy and reference; prompts are answered by the policy, and what it says is
counted, rewarded and compared. The result is three files that other programs read.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset

from prefopt.data import PreferenceExample, read_example
from prefopt.data.mixture import names_of, read_mixture
from prefopt.data.prepared import read_examples
from prefopt.evaluation.answers import (
    AnswerEvaluation,
    AskedPrompt,
    SampledAnswer,
    SamplingPlan,
    evaluate_answers,
)
from prefopt.evaluation.intervals import Estimate
from prefopt.evaluation.judges import FunctionJudge, PointJudge
from prefopt.evaluation.pairs import PairEvaluation, evaluate_pairs
from prefopt.evaluation.prompts import prompt_text
from prefopt.evaluation.scoring import CompletionScores, PolicyScorer
from prefopt.evaluation.statistics import cluster_interval
from prefopt.objective import Objective

__all__ = [
    "PAIRS_FILE",
    "RESULT_FILE",
    "SAMPLES_FILE",
    "PolicyEvaluation",
    "ScoredPair",
    "evaluate_policy",
]

RESULT_FILE, PAIRS_FILE, SAMPLES_FILE = "evaluation.json", "pairs.jsonl", "samples.jsonl"

_PACKAGES = ("prefopt", "torch", "transformers", "peft", "datasets")


class ScoredPair(NamedTuple):
    """One held-out pair.

    Attributes:
        row: Number of its row in the data as they were given.
        chosen_reward: Implicit reward of the chosen completion.
        rejected_reward: The same of the rejected one.
        chosen_logps: By the policy, summed; nats.
        rejected_logps: The same.
        ref_chosen_logps: By the reference; None without one.
        ref_rejected_logps: The same.
        chosen_tokens: Scored tokens of the chosen completion.
        rejected_tokens: The same of the rejected one.
        dataset: Which of several datasets the row is of; None for one.
    """

    row: int
    chosen_reward: float
    rejected_reward: float
    chosen_logps: float
    rejected_logps: float
    ref_chosen_logps: float | None
    ref_rejected_logps: float | None
    chosen_tokens: int
    rejected_tokens: int
    dataset: str | None = None


@dataclass(frozen=True)
class PolicyEvaluation:
    """What was measured of a policy.

    Attributes:
        model: Its id or folder.
        reference: The same of the reference; None without one.
        dataset: What it was measured on.
        settings: How.
        versions: Of the packages.
        metrics: By name, each with its interval: those of ``PairEvaluation``; of answers at
            temperature 1 ``kl`` (nats a completion), ``reward``, ``best_of_n_reward``,
            ``completion_tokens`` and ``truncated``, whose ``size`` counts prompts.
        data_baselines: Those of ``PairEvaluation``, and the rewards of the data's own answers,
            ``chosen_reward`` and ``rejected_reward``, where there is a reward function.
        win_rates: By judges.
        notes: What was not measured, and why.
        pairs: All held-out pairs.
        samples: All answers.
    """

    model: str
    reference: str | None
    dataset: str
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    metrics: Mapping[str, Estimate]
    data_baselines: Mapping[str, Estimate]
    win_rates: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    pairs: tuple[ScoredPair, ...] = ()
    samples: tuple[SampledAnswer, ...] = ()

    def save(self, folder: Path) -> None:
        """Write ``evaluation.json``, ``pairs.jsonl`` and ``samples.jsonl``.

        Args:
            folder: Made if it does not exist; files of these names are replaced. The first is
                written last: where it is, the others are whole.
        """
        folder.mkdir(parents=True, exist_ok=True)
        _write_rows(folder / PAIRS_FILE, self.pairs)
        _write_rows(folder / SAMPLES_FILE, self.samples)
        record = asdict(self)
        del record["pairs"], record["samples"]
        text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
        part = folder / f"{RESULT_FILE}.part"
        part.write_text(text + "\n", encoding="utf-8")
        part.replace(folder / RESULT_FILE)

    @classmethod
    def load(cls, folder: Path) -> "PolicyEvaluation":
        """Read what ``save`` wrote."""
        record = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
        for name in ("metrics", "data_baselines"):
            record[name] = {key: Estimate(*value) for key, value in record[name].items()}
        for name in ("win_rates", "notes"):
            record[name] = tuple(record[name])
        pairs = tuple(ScoredPair(**row) for row in _read_rows(folder / PAIRS_FILE))
        samples = tuple(SampledAnswer(**row) for row in _read_rows(folder / SAMPLES_FILE))
        return cls(**record, pairs=pairs, samples=samples)


def evaluate_policy(
    scorer: PolicyScorer,
    dataset: Any,
    *,
    objective: Objective | None = None,
    plan: SamplingPlan | None = None,
    reward: PointJudge | Callable[..., Any] | None = None,
    name: str = "held-out",
    model_name: str = "",
) -> PolicyEvaluation:
    """Measure a policy on held-out data.

    Args:
        scorer: The policy, and the reference if there is one.
        dataset: Rows in any format of ``prefopt.data``, or a list of
            ``prefopt.data.WeightedDataset``. Pairs and rankings are compared; of rows with a label
            only the prompts are used.
        objective: Defines the implicit reward; None for the log-ratio.
        plan: How the policy is asked; None for no answers.
        reward: Scores answers, and the data's own; a function as ``FunctionJudge`` takes it.
        name: What to call the data.
        model_name: What to call the policy.

    Raises:
        DataError: If rows are wrong.
        ValueError: If there are pairs of fewer than two rows, the loss needs a reference and there
            is none, or a reward is no finite number.
    """
    if reward is not None and not isinstance(reward, PointJudge):
        reward = FunctionJudge(reward, getattr(reward, "__name__", "the reward"))
    plan = plan or SamplingPlan(max_prompts=0)
    prepared = scorer.prepare(dataset, name)
    scores = scorer.score(prepared, name)
    of_pairs = evaluate_pairs(
        scores.pairs(), scores.ref_pairs(), objective=objective, rows=scores.pair_places
    )
    texts = _Texts(dataset, prepared, scorer.tokenizer, name)
    answers = AnswerEvaluation()
    if plan.asks:
        answers = evaluate_answers(scorer, texts.asked(plan), plan, reward)
    baselines = dict(of_pairs.data_baselines)
    if reward is not None:
        baselines |= _rewards_of_data(scores, texts, reward)
    return PolicyEvaluation(
        model=model_name,
        reference=scorer.reference_name,
        dataset=", ".join(texts.names),
        settings=_settings(scorer, prepared, objective, plan),
        versions={package: version(package) for package in _PACKAGES},
        metrics=of_pairs.metrics | answers.metrics,
        data_baselines=baselines,
        notes=(*of_pairs.notes, *_notes_on_data(prepared), *answers.notes),
        pairs=_pair_table(scores, of_pairs, prepared),
        samples=tuple(answers.samples),
    )


def _settings(
    scorer: PolicyScorer, prepared: Dataset, objective: Objective | None, plan: SamplingPlan
) -> dict[str, Any]:
    """Return how something was measured, for the record."""
    terms = () if objective is None else objective.terms
    return {
        "reward": "log-ratio" if objective is None else objective.name,
        "options": [
            {"loss": term.loss.name, **term.hyperparameters, **term.options.chosen()}
            for term in terms
        ],
        "rows": len(prepared),
        "max_length": scorer.max_length,
        **asdict(plan),
        "temperatures": list(plan.temperatures),
    }


def _notes_on_data(prepared: Dataset) -> list[str]:
    unpaired = sum(kind == "unpaired" for kind in prepared["kind"])
    if not unpaired:
        return []
    return [f"{unpaired} rows have a label and no pair: of them, only the prompts are used"]


def _pair_table(
    scores: CompletionScores, of_pairs: PairEvaluation, prepared: Dataset
) -> tuple[ScoredPair, ...]:
    numbers = prepared["prefopt_row"][:]
    names = prepared["prefopt_dataset"][:] if "prefopt_dataset" in prepared.column_names else None
    policy, reference = scores.pairs(), scores.ref_pairs()
    unknown = [None] * len(policy.chosen)
    columns = [
        *(side.tolist() for side in of_pairs.rewards),
        policy.chosen.tolist(),
        policy.rejected.tolist(),
        unknown if reference is None else reference.chosen.tolist(),
        unknown if reference is None else reference.rejected.tolist(),
        policy.chosen_lengths.tolist(),
        policy.rejected_lengths.tolist(),
    ]
    return tuple(
        ScoredPair._make([numbers[place], *values, None if names is None else names[place]])
        for place, *values in zip(scores.pair_places.tolist(), *columns, strict=True)
    )


# Texts --------------------------------------------------------------------------------------------


class _Texts:
    """Prepared rows as people read them.

    Attributes:
        names: Of the datasets.

    Args:
        dataset: The rows as they were given.
        prepared: The rows as token ids.
        tokenizer: Writes out token ids.
        name: What the data are called.
    """

    def __init__(self, dataset: Any, prepared: Dataset, tokenizer: Any, name: str) -> None:
        self._prepared = prepared
        self._tokenizer = tokenizer
        self._numbers = prepared["prefopt_row"][:]
        several = "prefopt_dataset" in prepared.column_names
        self._names = prepared["prefopt_dataset"][:] if several else None
        is_one = not isinstance(dataset, list)
        parts = read_mixture([dataset] if is_one else dataset)
        self.names = [name] if is_one else names_of(parts, name)
        datasets = [part.dataset for part in parts]
        self._parts = dict(zip(self.names, datasets, strict=True))

    def prompt(self, place: int) -> PreferenceExample:
        """Return the prompt of a row, by its place among the prepared ones."""
        name = self.names[0] if self._names is None else self._names[place]
        number = self._numbers[place]
        return replace(read_example(self._parts[name][number], number), completions=[])

    def completions(self) -> list[str]:
        """Return every completion as it was scored."""
        return [
            self._tokenizer.decode(ids, skip_special_tokens=True)
            for example in read_examples(self._prepared, with_kl=False)
            for ids in example.completion_ids
        ]

    def asked(self, plan: SamplingPlan) -> list[AskedPrompt]:
        """Return the different prompts, as many as are wanted, in the order of the rows."""
        first: dict[tuple[int, ...], int] = {}
        for place, example in enumerate(read_examples(self._prepared, with_kl=False)):
            if len(example.prompt_ids):
                first.setdefault(tuple(example.prompt_ids.tolist()), place)
        found = list(first.items())
        if plan.max_prompts is not None and len(found) > plan.max_prompts:
            order = np.random.default_rng(plan.seed).permutation(len(found))
            found = [found[pick] for pick in sorted(order[: plan.max_prompts].tolist())]
        asked = []
        for ids, place in found:
            prompt = self.prompt(place)
            text = prompt_text(prompt, self._tokenizer)
            asked.append(AskedPrompt(self._numbers[place], prompt, text, ids))
        return asked


def _rewards_of_data(
    scores: CompletionScores, texts: _Texts, reward: PointJudge
) -> dict[str, Estimate]:
    """Return the rewards of the data's own answers, one for each pair."""
    prompts = [texts.prompt(place) for place in scores.places.tolist()]
    rewards = torch.tensor(reward.scores(prompts, texts.completions()), dtype=torch.float64)
    sides = {"chosen_reward": scores.index.chosen, "rejected_reward": scores.index.rejected}
    return {
        name: cluster_interval(rewards[numbers], scores.pair_places)
        for name, numbers in sides.items()
    }


# Files --------------------------------------------------------------------------------------------


def _write_rows(path: Path, rows: Sequence[Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            values = {name: value for name, value in row._asdict().items() if name != "dataset"}
            if getattr(row, "dataset", None) is not None:
                values["dataset"] = row.dataset
            file.write(json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n")


def _read_rows(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]
