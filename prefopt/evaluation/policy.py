"""All measurements of one policy on held-out data: what ``prefopt eval`` does.

Pairs are scored by policy and reference; prompts are answered by the policy, and what it says is
counted, rewarded and compared. The result is three files that other programs read.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
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
from prefopt.evaluation.contests import Contest, Key, contests, first_answers
from prefopt.evaluation.generation import generate, leave_room
from prefopt.evaluation.intervals import Estimate
from prefopt.evaluation.judges import FunctionJudge, Judge, PointJudge, RememberingJudge
from prefopt.evaluation.kept_answers import kept_answers
from prefopt.evaluation.pairs import PairEvaluation, evaluate_pairs
from prefopt.evaluation.prompts import prompt_text
from prefopt.evaluation.scoring import CompletionScores, PolicyScorer
from prefopt.objective import Objective
from prefopt.versions import versions

__all__ = [
    "PAIRS_FILE",
    "RESULT_FILE",
    "SAMPLES_FILE",
    "PolicyEvaluation",
    "ScoredPair",
    "evaluate_policy",
    "read_samples",
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
        metrics: By name, each with its interval: those of ``PairEvaluation`` and
            ``AnswerEvaluation``.
        data_baselines: Those of ``PairEvaluation`` and ``AnswerEvaluation``.
        win_rates: By the judge, or else by the reward: against the data's chosen answers and the
            start's, at each temperature.
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
    win_rates: tuple[Contest, ...] = ()
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
        record["win_rates"] = tuple(map(_contest, record["win_rates"]))
        record["notes"] = tuple(record["notes"])
        pairs = tuple(ScoredPair(**row) for row in _read_rows(folder / PAIRS_FILE))
        samples = tuple(read_samples(folder / SAMPLES_FILE))
        return cls(**record, pairs=pairs, samples=samples)


def read_samples(path: Path) -> list[SampledAnswer]:
    """Return the answers of an evaluation.

    Args:
        path: Its ``samples.jsonl``.

    Raises:
        ValueError: If it is none.
        OSError: If it cannot be read.
    """
    try:
        return [SampledAnswer(**row) for row in _read_rows(path)]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no answers of an evaluation: {error}") from None


def evaluate_policy(
    scorer: PolicyScorer,
    dataset: Any,
    *,
    objective: Objective | None = None,
    plan: SamplingPlan | None = None,
    reward: PointJudge | Callable[..., Any] | None = None,
    judge: Judge | None = None,
    start_answers: Mapping[Key, str] | None = None,
    name: str = "held-out",
    model_name: str = "",
) -> PolicyEvaluation:
    """Measure a policy on held-out data.

    Args:
        scorer: The policy, and the reference if there is one.
        dataset: Rows in any format of ``prefopt.data``, or a list of
            ``prefopt.data.WeightedDataset``. Pairs and rankings are compared; of rows with a label
            only the prompts are used.
        objective: Defines the implicit reward; None for the log-ratio, or without a reference the
            log-prob.
        plan: How the policy is asked; None for no answers.
        reward: Scores answers, and the data's own to the same prompts; a function as
            ``FunctionJudge`` takes it. None for the scores of the judge, if it gives some.
        judge: Says which answers are better; None for the reward, if there is one.
        start_answers: What the start answered, by row and temperature, as ``first_answers`` makes
            them of its own evaluation; None to have the reference answer here.
        name: What to call the data.
        model_name: What to call the policy.

    Raises:
        DataError: If rows are wrong.
        ValueError: If there are pairs of fewer than two rows, the loss needs a reference and there
            is none, or a reward is no finite number.
    """
    reward, judge = _judges(reward, judge)
    plan = plan or SamplingPlan(max_prompts=0)
    if judge is not None and not plan.asks:
        raise ValueError(
            f"{judge.name} judges answers, but no prompt is answered: max_prompts is "
            f"{plan.max_prompts}"
        )
    prepared = scorer.prepare(dataset, name)
    scores = scorer.score(prepared, name)
    of_pairs = evaluate_pairs(
        scores.pairs(), scores.ref_pairs(), objective=objective, rows=scores.pair_places
    )
    texts = _Texts(dataset, prepared, scorer.tokenizer, name)
    answers, won = AnswerEvaluation(), list[Contest]()
    if plan.asks:
        asked, left_out = texts.asked(plan, scorer)
        with scorer.holding_reference():
            answers = evaluate_answers(scorer, asked, plan, reward)
            if judge is not None and start_answers is None and scorer.has_reference:
                start_answers = _answers_of_start(scorer, asked, plan)
        answers.notes += left_out
        if judge is not None:
            won = contests(judge, asked, first_answers(answers.samples), start_answers)
    return PolicyEvaluation(
        model=model_name,
        reference=scorer.reference_name,
        dataset=", ".join(texts.names),
        settings=_settings(scorer, prepared, objective, plan)
        | {"reward_function": _name(reward), "judge": _name(judge)},
        versions=versions(*_PACKAGES),
        metrics=of_pairs.metrics | answers.metrics,
        data_baselines=of_pairs.data_baselines | answers.data_baselines,
        win_rates=tuple(won),
        notes=(*of_pairs.notes, *_notes_on_data(prepared), *answers.notes, *_notes_on_wins(won)),
        pairs=_pair_table(scores, of_pairs, prepared),
        samples=tuple(answers.samples),
    )


def _judges(
    reward: PointJudge | Callable[..., Any] | None, judge: Judge | None
) -> tuple[PointJudge | None, Judge | None]:
    """Return what rewards answers, and what compares them: each does for the other, if it can."""
    if reward is not None and not isinstance(reward, PointJudge):
        reward = FunctionJudge(reward, getattr(reward, "__name__", "the reward"))
    if reward is None and isinstance(judge, PointJudge):
        reward = judge = RememberingJudge(judge)  # both are asked about the same answers
    return reward, judge or reward


def _name(judge: Judge | None) -> str | None:
    return None if judge is None else judge.name


def _answers_of_start(
    scorer: PolicyScorer, asked: Sequence[AskedPrompt], plan: SamplingPlan
) -> dict[Key, str]:
    """Have the reference answer, drawn by the same random numbers as the policy's answers.

    What it answers is kept beside the store of log-probs, for it is asked for each policy.
    """
    prompt_ids = [list(one.prompt_ids) for one in asked]
    found: dict[Key, str] = {}
    for temperature in plan.temperatures:
        settings: dict[str, Any] = {
            "temperature": temperature,
            "max_new_tokens": plan.max_new_tokens,
            "seed": plan.seed,
        }
        write = partial(_written, scorer, prompt_ids, plan.batch_size, settings)
        texts = kept_answers(
            scorer.store_folder, scorer.reference_mark, prompt_ids, settings, write
        )
        found |= {(one.row, temperature): text for one, text in zip(asked, texts, strict=True)}
    return found


def _written(
    scorer: PolicyScorer,
    prompt_ids: Sequence[list[int]],
    batch_size: int,
    settings: dict[str, Any],
) -> list[str]:
    """Return what the reference answers."""
    with scorer.reference_model() as model:
        made = generate(model, scorer.tokenizer, prompt_ids, batch_size=batch_size, **settings)
    return [one.text for one in made]


def _settings(
    scorer: PolicyScorer, prepared: Dataset, objective: Objective | None, plan: SamplingPlan
) -> dict[str, Any]:
    """Return how something was measured, for the record."""
    terms = () if objective is None else objective.terms
    plain = "log-ratio" if scorer.has_reference else "log-prob"
    return {
        "reward": plain if objective is None else objective.name,
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


def _notes_on_wins(won: Sequence[Contest]) -> list[str]:
    return [
        f"wins over {it.against} at temperature {it.temperature:g}: no verdict on "
        f"{it.without_verdict} prompts, which do not count"
        for it in won
        if it.without_verdict
    ]


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

    def asked(
        self, plan: SamplingPlan, scorer: PolicyScorer
    ) -> tuple[list[AskedPrompt], list[str]]:
        """Return the different prompts, as many as are wanted, in the order of the rows.

        Beside them, what to say of those that leave the model no room for an answer.

        Raises:
            ValueError: If none does.
        """
        first: dict[tuple[int, ...], int] = {}
        for place, example in enumerate(read_examples(self._prepared, with_kl=False)):
            if len(example.prompt_ids):
                first.setdefault(tuple(example.prompt_ids.tolist()), place)
        ids = [list(prompt) for prompt in first]
        fits = leave_room(scorer.model, scorer.tokenizer, ids, plan.max_new_tokens)
        found = [its for its, fit in zip(first.items(), fits, strict=True) if fit]
        notes = []
        if len(found) < len(first):
            none = len(first) - len(found)
            notes = [
                f"answers: {none} of {len(first)} prompts leave the model no room for "
                f"{plan.max_new_tokens} tokens, and are not asked"
            ]
        if not found:
            raise ValueError(f"no prompt to ask ({', '.join(notes) or 'all are empty'})")
        if plan.max_prompts is not None and len(found) > plan.max_prompts:
            order = np.random.default_rng(plan.seed).permutation(len(found))
            found = [found[pick] for pick in sorted(order[: plan.max_prompts].tolist())]
        return [self._asked(place, prompt_ids) for prompt_ids, place in found], notes

    def _asked(self, place: int, prompt_ids: Sequence[int]) -> AskedPrompt:
        prompt, row = self.prompt(place), self._prepared[place]
        text = prompt_text(prompt, self._tokenizer)
        asked = AskedPrompt(self._numbers[place], prompt, text, prompt_ids)
        if not row["ranks"]:
            return asked
        best = row["completion_ids"][0]  # completions are in the order of their ranks
        chosen = self._tokenizer.decode(best, skip_special_tokens=True)
        return asked._replace(chosen=chosen, chosen_tokens=len(best))


# Files --------------------------------------------------------------------------------------------


def _contest(record: Mapping[str, Any]) -> Contest:
    """Return a contest that was read from JSON."""
    names = ("rate", "length_controlled", "position_bias")
    estimates = {name: None if record[name] is None else Estimate(*record[name]) for name in names}
    return Contest(**{**record, **estimates})


def _write_rows(path: Path, rows: Sequence[Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            values = row._asdict()
            for name in ("dataset", "method"):  # that most rows do not have
                if values.get(name, "") is None:
                    del values[name]
            file.write(json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n")


def _read_rows(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]
