"""Completions of any rows with their implicit rewards, and the data that is made of them.

What a row says of its completions (a label, ranks, which one is chosen) is not needed to score
them: rows may hold nothing but a prompt and answers. Best-of-N keeps the answer with the highest
reward; a pair of the best and the worst is new preference data; rejection sampling keeps answers
with a probability that rises with their reward (Liu et al. 2023, RSO, arXiv:2309.06657, its
algorithm 1), so that they are samples of the policy that is optimal for it.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from prefopt.data import PreferenceExample, read_example
from prefopt.data.formats import SOURCE_COLUMNS
from prefopt.data.tokenize import tokenize
from prefopt.evaluation.pairs import rewards_of_pairs
from prefopt.evaluation.scoring import CompletionScores, PolicyScorer
from prefopt.objective import Objective

__all__ = [
    "Candidates",
    "RowScores",
    "ScoringLayout",
    "accepted_by_rejection",
    "group_by_prompt",
    "is_benchmark",
    "score_rows",
]

# What RewardBench's rows have.
_BENCHMARK = frozenset({"prompt", "chosen", "rejected", "subset"})
_LISTS = ("completions", "responses")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class ScoringLayout:
    """How rows are read.

    Attributes:
        chat: Whether text is one turn of a conversation, rendered by the chat template: the prompt
            what a user says, each completion what is answered.
        verbatim: Whether plain completions stay as they are where they begin with the prompt. As
            training reads them, a prompt that all completions of a row repeat is taken out.
    """

    chat: bool = False
    verbatim: bool = False


class RowScores(NamedTuple):
    """Scores of the completions of one row, in the order in which the row gives them.

    Attributes:
        example: The row as it was read.
        rewards: Implicit reward of each completion.
        logps: By the policy, summed; nats.
        ref_logps: By the reference; None without one.
        tokens: Scored tokens of each.
    """

    example: PreferenceExample
    rewards: list[float]
    logps: list[float]
    ref_logps: list[float] | None
    tokens: list[int]


@dataclass
class Candidates:
    """The different completions of one prompt, from one row or several.

    Attributes:
        prompt: As it was read: text, messages or token ids.
        completions: In the same form.
        rewards: Of each.
    """

    prompt: Any
    completions: list[Any]
    rewards: list[float]

    @property
    def best(self) -> int:
        """The place of the completion with the highest reward; of equal ones, the first."""
        return max(range(len(self.rewards)), key=lambda place: self.rewards[place])

    @property
    def worst(self) -> int:
        """The place of the completion with the lowest reward; of equal ones, the first."""
        return min(range(len(self.rewards)), key=lambda place: self.rewards[place])


def is_benchmark(columns: Iterable[str]) -> bool:
    """Whether rows have RewardBench's layout: ``prompt``, ``chosen``, ``rejected``, ``subset``.

    >>> is_benchmark(["id", "subset", "prompt", "chosen", "rejected"])
    True
    """
    return set(columns) >= _BENCHMARK


def score_rows(
    scorer: PolicyScorer,
    dataset: Dataset,
    objective: Objective | None = None,
    layout: ScoringLayout | None = None,
    name: str = "data",
) -> list[RowScores | None]:
    """Score every completion of every row.

    Args:
        scorer: The policy, and the reference if there is one.
        dataset: Rows in any format of ``prefopt.data``, where labels, ranks and scores may be
            missing.
        objective: Defines the implicit reward; None for the log-ratio in nats, or without a
            reference the log-prob.
        layout: How rows are read; None for as in training.
        name: What to call the data.

    Returns:
        For each row its scores; None for one that preparation set aside, as its report says.

    Raises:
        DataError: If a row holds no completions, or its prompt is not known.
        ValueError: If the loss needs a reference and there is none.
    """
    layout = layout or ScoringLayout()
    known = dataset.select_columns([c for c in dataset.column_names if c in SOURCE_COLUMNS])
    rows = [_scorable(row, layout.chat) for row in known]
    examples = [read_example(row, number) for number, row in enumerate(rows)]
    if layout.verbatim:
        examples = [_as_given(row, example) for row, example in zip(rows, examples, strict=True)]
        rows = [
            _ids_of(example, number, scorer) if example.form == "text" else row
            for number, (row, example) in enumerate(zip(rows, examples, strict=True))
        ]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    table = [{column: row.get(column) for column in columns} for row in rows]
    prepared = scorer.prepare(Dataset.from_list(table), name)
    scores = scorer.score(prepared, name)
    rewards = completion_rewards(scores, prepared["kind"], objective)
    found: list[RowScores | None] = [None] * len(rows)
    ends = scores.places.bincount(minlength=len(prepared)).cumsum(0).tolist()
    for number, start, end in zip(prepared["prefopt_row"], [0, *ends], ends, strict=False):
        its = slice(start, end)
        found[number] = RowScores(
            examples[number],
            rewards[its].tolist(),
            scores.logps[its].tolist(),
            None if scores.ref_logps is None else scores.ref_logps[its].tolist(),
            scores.lengths[its].tolist(),
        )
    return found


def completion_rewards(
    scores: CompletionScores, kinds: Sequence[str], objective: Objective | None = None
) -> Tensor:
    """Return the implicit reward of every completion; (N,).

    Args:
        scores: Log-probs of the completions.
        kinds: The kind of each prepared row. In a pair, a loss may reward a completion by what the
            other one is (``ld_alpha``); otherwise each is rewarded by itself.
        objective: As ``score_rows`` takes it.

    Raises:
        ValueError: If the loss needs a reference and there is none.
    """
    alone = torch.arange(len(scores.logps))
    policy, reference = scores.pairs(alone, alone), scores.ref_pairs(alone, alone)
    rewards = rewards_of_pairs(objective, policy, reference).chosen.clone()
    is_pair = torch.tensor([kind == "paired" for kind in kinds])[scores.pair_places]
    chosen, rejected = scores.index.chosen[is_pair], scores.index.rejected[is_pair]
    if len(chosen):
        pairs = scores.pairs(chosen, rejected), scores.ref_pairs(chosen, rejected)
        rewards[chosen], rewards[rejected] = rewards_of_pairs(objective, *pairs)
    return rewards


# Reading ------------------------------------------------------------------------------------------


def _scorable(row: Row, chat: bool) -> dict[str, Any]:
    """Return a row as preferences that lack nothing: what it judges does not matter here."""
    made = {name: value for name, value in row.items() if value is not None}
    if chat:
        made = _as_conversation(made)
    if "chosen" in made or "rejected" in made or "chosen_ids" in made:
        return made
    column = next((name for name in _LISTS if name in made), None)
    if column is None and not _has_list_of_ids(made):
        return {"label": True, **made}
    judged = {name: made[name] for name in made if name not in ("ranks", "scores")}
    if column is None:
        return {**judged, "ranks": list(range(len(made["completion_ids"])))}
    completions = judged.pop(column)
    if isinstance(completions, list) and len(completions) == 1:  # no ranking
        return {**judged, "completion": completions[0], "label": True}
    count = len(completions) if isinstance(completions, list) else 0
    return {**judged, "completions": completions, "ranks": list(range(count))}


def _has_list_of_ids(row: Row) -> bool:
    ids = row.get("completion_ids")
    return isinstance(ids, list) and len(ids) > 1 and isinstance(ids[0], list)


def _as_conversation(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of text as a question and answers; one of messages as it is."""
    made = dict(row)
    if isinstance(row.get("prompt"), str):
        made["prompt"] = [{"role": "user", "content": row["prompt"]}]
    for name in ("chosen", "rejected", "completion"):
        if isinstance(row.get(name), str):
            made[name] = _answer(row[name])
    for name in _LISTS:
        if isinstance(row.get(name), list) and all(isinstance(one, str) for one in row[name]):
            made[name] = [_answer(one) for one in row[name]]
    return made


def _answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _as_given(row: Row, example: PreferenceExample) -> PreferenceExample:
    """Return an example of plain text whose prompt and completions are those of the row."""
    if example.form != "text" or not isinstance(row.get("prompt"), str):
        return example
    names = ("chosen", "rejected") if example.kind == "paired" else ("completion",)
    texts = row["completions"] if example.kind == "ranked" else [row[name] for name in names]
    return PreferenceExample(
        kind=example.kind,
        form="text",
        prompt=row["prompt"],
        completions=list(texts),
        desirable=example.desirable,
        ranks=example.ranks,
        tools=example.tools,
        options=example.options,
    )


def _ids_of(example: PreferenceExample, number: int, scorer: PolicyScorer) -> dict[str, Any]:
    """Return an example of plain text as a row of token ids, made as training makes them."""
    (made,) = tokenize([example], [number], scorer.tokenizer)
    judged: dict[str, Any] = {"ranks": example.ranks} if example.ranks else {"label": True}
    if example.kind == "paired":
        judged = {"kind": "paired"}
    return {"prompt_ids": made.prompt_ids, "completion_ids": made.completion_ids, **judged}


# What is made of scores ---------------------------------------------------------------------------


def group_by_prompt(rows: Iterable[RowScores | None]) -> list[Candidates]:
    """Return the different completions of each prompt, in the order in which they come.

    Args:
        rows: From ``score_rows``; those without scores are passed over.
    """
    found: dict[str, Candidates] = {}
    for row in rows:
        if row is None:
            continue
        prompt = row.example.prompt
        group = found.setdefault(json.dumps(prompt, default=str), Candidates(prompt, [], []))
        for completion, reward in zip(row.example.completions, row.rewards, strict=True):
            if completion not in group.completions:
                group.completions.append(completion)
                group.rewards.append(reward)
    return list(found.values())


def accepted_by_rejection(
    rewards: Sequence[float], count: int, beta: float, generator: np.random.Generator
) -> list[int]:
    """Return which candidates rejection sampling accepts, in the order of acceptance.

    Each is accepted with probability ``exp((reward - highest) / beta)``, the highest among those
    that are left, in rounds until there are enough.

    Args:
        rewards: Of samples of one prompt.
        count: How many are accepted; all, where there are not more.
        beta: Reward that e-folds the probability; greater than 0. Near 0 it is best-of-N, and if
            it is large all are as likely.
        generator: Of the random numbers.

    Raises:
        ValueError: If ``beta`` is not greater than 0 or ``count`` is less than 1.
    """
    if not 0 < beta < math.inf or count < 1:
        raise ValueError(f"beta must be greater than 0 and count at least 1, got {beta}, {count}")
    left, accepted = list(range(len(rewards))), list[int]()
    while left and len(accepted) < count:
        highest = max(rewards[place] for place in left)
        for place in list(left):
            if generator.random() < math.exp((rewards[place] - highest) / beta):
                accepted.append(place)
                left.remove(place)
            if len(accepted) == count:
                break
    return accepted
