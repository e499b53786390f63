"""Best-of-N: N answers of the start to each prompt, of which the best one is given.

No training: it costs N answers each time. Its KL from the start is at most log N - (N - 1) / N
(Beirami et al. 2024, arXiv:2401.01879, theorem 1), nearly so where answers seldom repeat; that
bound is what is reported as ``kl``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from prefopt.compare.baselines.measured import write_measured
from prefopt.data import PreferenceExample, load_rows, read_example
from prefopt.evaluation import Estimate, cluster_interval, distinct_ngrams
from prefopt.evaluation.answers import AskedPrompt, SampledAnswer
from prefopt.evaluation.contests import contests, first_answers
from prefopt.evaluation.judges import Judge, PointJudge, function_judge, make_judge
from prefopt.evaluation.policy import read_samples

__all__ = ["best_of_n", "kl_bound", "pick_best"]


def kl_bound(n: int) -> float:
    """Return the most that best-of-N is away from its start: log N - (N - 1) / N; nats.

    Args:
        n: Answers of which one is picked.

    Examples:
        >>> round(kl_bound(16), 3)
        1.835
    """
    return math.log(n) - (n - 1) / n


def pick_best(samples: Sequence[SampledAnswer], scores: Sequence[float]) -> list[SampledAnswer]:
    """Return the best answer to each prompt, in the order of the prompts; of equals, the first.

    Args:
        samples: Answers.
        scores: One for each; more is better.
    """
    best: dict[int, tuple[float, SampledAnswer]] = {}
    for sample, score in zip(samples, scores, strict=True):
        if sample.row not in best or score > best[sample.row][0]:
            best[sample.row] = (score, sample)
    return [sample for _, sample in best.values()]


def best_of_n(options: Mapping[str, Any]) -> None:
    """Pick the best of the answers that were drawn, and measure what was picked.

    The first answer to each prompt is what the start says in its own evaluation. It is left out of
    the N, so that these are independent of what they are judged against.

    Args:
        options: ``samples`` (folder of the answers, beside the output), ``n``, ``by`` (``reward``,
            ``judge`` or ``reward_model``), ``dataset``, ``output_dir``; ``reward``, ``judge`` and
            ``reward_model`` where there are such.

    Raises:
        ValueError: If there are not N + 1 answers to each prompt, or nothing scores them.
    """
    output, n = Path(options["output_dir"]), options["n"]
    drawn = read_samples(output.parent / options["samples"] / "samples.jsonl")
    samples = [one for one in drawn if one.temperature == 1]
    start = {row: its[0] for row, its in _by_row(samples, n + 1).items()}
    prompts = _prompts(options["dataset"], list(start))
    others = [one for its in _by_row(samples, n + 1).values() for one in its[1:]]
    picked = pick_best(others, _scores(others, prompts, options))
    of_data = {one.row: one for one in drawn if one.method == "chosen"}
    write_measured(
        output,
        model=options["model"],
        dataset=options["dataset"],
        settings={name: options.get(name) for name in ("n", "by", options["by"])},
        metrics=_metrics(picked, n),
        samples=[one._asdict() for one in (*of_data.values(), *picked)],
        win_rates=_won(picked, prompts, of_data, start, _judge(options)),
    )


def _by_row(samples: Sequence[SampledAnswer], count: int) -> dict[int, list[SampledAnswer]]:
    """Return the answers to each prompt, by its row.

    Raises:
        ValueError: If there are others than so many to one.
    """
    found: dict[int, list[SampledAnswer]] = {}
    for sample in samples:
        found.setdefault(sample.row, []).append(sample)
    wrong = next((row for row, its in found.items() if len(its) != count), None)
    if wrong is not None or not found:
        there = f"{len(found[wrong])} to that of row {wrong}" if wrong is not None else "none"
        raise ValueError(
            f"best-of-N needs {count} answers to each prompt at temperature 1: {there}"
        )
    return found


def _prompts(dataset: str, numbers: Sequence[int]) -> dict[int, PreferenceExample]:
    """Return the prompts of rows."""
    rows = load_rows(dataset)
    return {
        number: replace(read_example(rows[number], number), completions=[]) for number in numbers
    }


def _judge(options: Mapping[str, Any]) -> Judge | None:
    """Return who says which answer is better; as for other methods, the reward if nobody else."""
    if options.get("judge"):
        return make_judge(options["judge"])
    return function_judge(options["reward"]) if options.get("reward") else None


def _scores(
    samples: Sequence[SampledAnswer],
    prompts: Mapping[int, PreferenceExample],
    options: Mapping[str, Any],
) -> list[float]:
    """Return the score of each answer, by what is to pick them."""
    if options["by"] == "reward":
        return [_known(sample.reward) for sample in samples]
    by_model = options["by"] == "reward_model"
    judge = make_judge(f"classifier:{options['reward_model']}") if by_model else _judge(options)
    if not isinstance(judge, PointJudge):
        raise ValueError(
            f"{options['judge']} compares answers; best-of-N needs a judge that scores"
        )
    asked = [prompts[sample.row] for sample in samples]
    return judge.scores(asked, [sample.completion for sample in samples])


def _known(reward: float | None) -> float:
    if reward is None:
        raise ValueError("the answers were not rewarded: give a reward, or another way to pick")
    return reward


def _won(
    picked: Sequence[SampledAnswer],
    prompts: Mapping[int, PreferenceExample],
    of_data: Mapping[int, SampledAnswer],
    start: Mapping[int, SampledAnswer],
    judge: Judge | None,
) -> list[dict[str, Any]]:
    """Return how often a judge prefers what was picked to the data's and the start's answers."""
    if judge is None:
        return []
    asked = [
        AskedPrompt(
            one.row,
            prompts[one.row],
            one.prompt,
            (),
            of_data[one.row].completion if one.row in of_data else None,
        )
        for one in picked
    ]
    found = contests(judge, asked, first_answers(picked), first_answers(list(start.values())))
    return [asdict(one) for one in found]


def _metrics(picked: Sequence[SampledAnswer], n: int) -> dict[str, Estimate]:
    rows = torch.arange(len(picked))
    bound = kl_bound(n)
    found = {"kl": Estimate(bound, bound, bound, len(picked))}
    columns: dict[str, list[float]] = {
        "reward": [one.reward for one in picked if one.reward is not None],
        "completion_tokens": [one.tokens for one in picked],
        "truncated": [one.truncated for one in picked],
    }
    for name, column in columns.items():
        if len(column) == len(picked):
            found[name] = cluster_interval(torch.tensor(column, dtype=torch.float64), rows)
    texts = [one.completion for one in picked]
    variety = {f"distinct_{words}": distinct_ngrams(texts, words) for words in (1, 2)}
    return found | {name: one for name, one in variety.items() if all(map(math.isfinite, one))}
