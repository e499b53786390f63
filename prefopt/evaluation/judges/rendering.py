"""What judges that are models share: examples of prompt and answer, and batches."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from prefopt.data import PreferenceExample
from prefopt.evaluation.progress import progress_bar
from prefopt.evaluation.prompts import Prompt, as_example

__all__ = ["answered", "in_batches"]

Item = TypeVar("Item")


def answered(prompt: Prompt, completion: str) -> PreferenceExample:
    """Return a prompt with an answer, as data holds it.

    Args:
        prompt: Text, messages, or an example of such.
        completion: The answer.

    Raises:
        ValueError: If the prompt is token ids, which are those of another model.
    """
    example = as_example(prompt)
    if example.form == "ids":
        raise ValueError("a judge reads text or messages, not the token ids of another model")
    answer = [{"role": "assistant", "content": completion}]
    completions: list[Any] = [completion if example.form == "text" else answer]
    return replace(example, completions=completions)


def in_batches(
    items: Sequence[Item],
    lengths: Sequence[int],
    batch_size: int,
    score: Callable[[list[Item]], list[float]],
    *,
    title: str,
) -> list[float]:
    """Return a number for each item, computed in batches of similar length, the longest first.

    Args:
        items: The items.
        lengths: Length of each.
        batch_size: Items of a batch.
        score: Returns a number for each item of a batch.
        title: What is shown in the progress bar.
    """
    order = sorted(range(len(items)), key=lambda place: -lengths[place])
    found = [0.0] * len(items)
    with progress_bar(title, len(items)) as advance:
        for start in range(0, len(order), batch_size):
            picked = order[start : start + batch_size]
            scores = score([items[place] for place in picked])
            for place, value in zip(picked, scores, strict=True):
                found[place] = value
            advance(len(picked))
    return found
