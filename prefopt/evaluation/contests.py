"""A judge between a policy's answers and others to the same prompts: the data's, the start's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prefopt.evaluation.answers import AskedPrompt, SampledAnswer
from prefopt.evaluation.intervals import Estimate
from prefopt.evaluation.judges import Judge, judged
from prefopt.evaluation.win_rates import win_rate_of_judgements

__all__ = ["Contest", "contests", "first_answers"]

Key = tuple[int, float]
"""Row and temperature of an answer."""


@dataclass(frozen=True)
class Contest:
    """How often a judge prefers the policy's answers to others.

    Attributes:
        against: ``chosen``, the data's own answers, or ``start``.
        temperature: Of the policy's answers, and of the start's.
        rate: Share of prompts won, a tie as one half.
        length_controlled: The same at equal lengths; None where lengths tell nothing.
        without_verdict: Prompts that are not counted, for the judge gave no verdict.
        position_bias: Share of prompts on which the same place won in both orders; None for a judge
            that sees one answer at a time.
    """

    against: str
    temperature: float
    rate: Estimate
    length_controlled: Estimate | None = None
    without_verdict: int = 0
    position_bias: Estimate | None = None


def first_answers(samples: Sequence[SampledAnswer]) -> dict[Key, str]:
    """Return a model's first answer to each prompt at each temperature.

    Further answers are not independent observations, so they are not judged.
    """
    found: dict[Key, str] = {}
    for sample in samples:
        if sample.temperature is not None:
            found.setdefault((sample.row, sample.temperature), sample.completion)
    return found


def contests(
    judge: Judge,
    asked: Sequence[AskedPrompt],
    answers: Mapping[Key, str],
    start: Mapping[Key, str] | None = None,
) -> list[Contest]:
    """Have a judge compare answers with the data's chosen ones, and with the start's.

    Args:
        judge: Scores answers, or compares two; then it is asked in both orders.
        asked: The prompts.
        answers: The policy's, by row and temperature.
        start: The start's; None leaves them out.

    Raises:
        ValueError: If the start has no answer to a prompt, or the judge gives no verdict at all.
    """
    found = []
    for temperature in dict.fromkeys(temperature for _, temperature in answers):
        chosen = {one.row: one.chosen for one in asked if one.chosen is not None}
        if chosen:
            found.append(_contest(judge, asked, answers, chosen, "chosen", temperature))
        if start is not None:
            others = {one.row: _of_start(start, one.row, temperature) for one in asked}
            found.append(_contest(judge, asked, answers, others, "start", temperature))
    return found


def _of_start(start: Mapping[Key, str], row: int, temperature: float) -> str:
    if (row, temperature) not in start:
        raise ValueError(
            f"the start has no answer to the prompt of row {row} at temperature {temperature:g}: "
            "its samples must be made of the same data, with the same seed and max_prompts"
        )
    return start[row, temperature]


def _contest(
    judge: Judge,
    asked: Sequence[AskedPrompt],
    answers: Mapping[Key, str],
    others: Mapping[int, str],
    against: str,
    temperature: float,
) -> Contest:
    """Return the contest on the prompts that the others answer."""
    its = [one for one in asked if one.row in others]
    prompts = [one.prompt for one in its]
    ours = [answers[one.row, temperature] for one in its]
    theirs = [others[one.row] for one in its]
    judgements = judged(judge, prompts, ours, theirs)
    won = win_rate_of_judgements(
        judgements.preferences, ours, theirs, position_bias=judgements.position_bias
    )
    return Contest(
        against,
        temperature,
        won.rate,
        won.length_controlled,
        won.without_verdict,
        won.position_bias,
    )
