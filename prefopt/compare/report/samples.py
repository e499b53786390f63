"""Answers side by side: grouped by prompt, as many as one page can hold."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from typing import NamedTuple

from prefopt.compare.results import Comparison, Sample

__all__ = ["LONGEST_ANSWER", "MOST_BYTES", "Prompt", "Samples", "shown_samples"]

MOST_BYTES = 1_500_000  # of all prompts and answers on a page, as HTML
LONGEST_ANSWER = 8_000  # characters of one text; what is cut is said at its end


class Prompt(NamedTuple):
    """A prompt and its answers, the data's own first, then in the order of the methods."""

    text: str
    answers: tuple[Sample, ...]


class Samples(NamedTuple):
    """What the page shows of the samples.

    Attributes:
        prompts: In the order of the comparison.
        methods: Who answered.
        temperatures: Of the samples.
        left_out: How many answers did not fit on the page.
    """

    prompts: tuple[Prompt, ...]
    methods: tuple[str, ...]
    temperatures: tuple[float, ...]
    left_out: int


def shown_samples(comparison: Comparison, most_bytes: int = MOST_BYTES) -> Samples:
    """Return the samples of the first prompts, whole prompts only.

    Args:
        comparison: What was found.
        most_bytes: What they may take of the page.
    """
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in comparison.samples:
        groups[sample.prompt].append(sample)
    order = {"chosen": -1} | {it.name: place for place, it in enumerate(comparison.methods)}
    prompts, room = [], most_bytes
    for text, answers in groups.items():
        answers.sort(key=lambda it: (order.get(it.method, len(order)), it.temperature or 0.0))
        prompt = Prompt(
            _cut(text), tuple(replace(it, completion=_cut(it.completion)) for it in answers)
        )
        room -= _bytes(prompt)
        if room < 0:
            break
        prompts.append(prompt)
    return _samples(prompts, order, len(comparison.samples))


def _samples(prompts: Sequence[Prompt], order: dict[str, int], count: int) -> Samples:
    shown = [answer for prompt in prompts for answer in prompt.answers]
    methods = sorted({it.method for it in shown}, key=lambda it: order.get(it, len(order)))
    temperatures = sorted({it.temperature for it in shown if it.temperature is not None})
    return Samples(tuple(prompts), tuple(methods), tuple(temperatures), count - len(shown))


def _bytes(prompt: Prompt) -> int:
    """Return about how much of the page a prompt takes."""
    texts = [prompt.text, *(answer.completion for answer in prompt.answers)]
    texts += 2 * [answer.method for answer in prompt.answers]
    markup = 400 * (1 + len(prompt.answers))
    return markup + sum(len(escape(text).encode()) for text in texts)


def _cut(text: str) -> str:
    """Return a text, or its beginning and how much is missing."""
    if len(text) <= LONGEST_ANSWER:
        return text
    more = len(text) - LONGEST_ANSWER
    return f"{text[:LONGEST_ANSWER]} … [{more:,} more characters in results.json]"
