"""From text and messages to token ids, split into prompt and completions."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from prefopt.data.errors import DataError
from prefopt.data.example import PreferenceExample
from prefopt.data.messages import Message

__all__ = ["Tokenized", "Tokenizer", "shared_length", "split_prompt", "tokenize"]


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that is used."""

    eos_token: str | None
    chat_template: Any

    def __call__(self, text: list[str], **options: Any) -> Any:
        """Return the ids of each text under the key ``input_ids``."""

    def apply_chat_template(self, conversation: list[Message], **options: Any) -> Any:
        """Return the text of the messages."""


class Tokenized(NamedTuple):
    """Token ids; and whether the completions begin before the prompt's own tokens end."""

    prompt_ids: list[int]
    completion_ids: list[list[int]]
    boundary_moved: bool


def shared_length(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Return how many leading tokens, or characters, two sequences share.

    >>> shared_length([1, 2, 3], [1, 2, 4, 5])
    2
    """
    shared = min(len(first), len(second))
    if first[:shared] == second[:shared]:
        return shared
    low = 0  # the first `low` tokens are shared, the first `shared` are not
    while shared - low > 1:
        middle = (low + shared) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            shared = middle
    return low


def split_prompt(prompt_ids: list[int], texts: Sequence[list[int]]) -> Tokenized:
    """Split prompt + completion texts at the first token where one differs from the prompt.

    Tokens may merge across the end of the prompt, and a chat template may render a prompt
    differently when an answer follows. So the prompt ends with the last token that it shares with
    all the texts, and its own tokens beyond are not used.

    Examples:
        >>> split_prompt([5, 6, 7], [[5, 6, 7, 8], [5, 6, 9]])
        Tokenized(prompt_ids=[5, 6], completion_ids=[[7, 8], [9]], boundary_moved=True)
    """
    end = min(shared_length(prompt_ids, text) for text in texts)
    return Tokenized(prompt_ids[:end], [text[end:] for text in texts], end < len(prompt_ids))


def tokenize(
    examples: Sequence[PreferenceExample], numbers: Sequence[int], tokenizer: Tokenizer | None
) -> list[Tokenized]:
    """Return the token ids of examples, from one call of the tokenizer for all texts.

    Text gets the tokenizer's special tokens, and the end-of-sequence token where it does not end
    with it. Messages are rendered by the chat template. Token ids stay as they are.

    Raises:
        DataError: If the tokenizer has no chat template, or the template refuses a row.
    """
    texts: dict[bool, list[str]] = {True: [], False: []}
    for example, number in zip(examples, numbers, strict=True):
        if example.form != "ids" and example.completions:
            texts[example.form == "text"].extend(_render(example, number, tokenizer))
    ids = {plain: iter(_encode(tokenizer, part, plain)) for plain, part in texts.items()}
    tokenized = []
    for example in examples:
        if example.form == "ids" or not example.completions:
            prompt = example.prompt if example.form == "ids" else []
            tokenized.append(Tokenized(prompt, example.completions, False))
        else:
            source = ids[example.form == "text"]
            prompt = next(source)
            tokenized.append(split_prompt(prompt, [next(source) for _ in example.completions]))
    return tokenized


def _render(example: PreferenceExample, number: int, tokenizer: Tokenizer | None) -> Iterable[str]:
    """Return the texts of the prompt alone and of the prompt with each completion."""
    if tokenizer is None:
        raise DataError("holds text, so a tokenizer is needed", number)
    if example.form == "text":
        eos = tokenizer.eos_token or ""
        ends = ["" if text.endswith(eos) else eos for text in example.completions]
        texts = [text + end for text, end in zip(example.completions, ends, strict=True)]
        return [example.prompt, *(example.prompt + text for text in texts)]
    if not tokenizer.chat_template:
        raise DataError(
            "holds messages, but the tokenizer has no chat template: set tokenizer.chat_template, "
            "or make prompt and completions plain text",
            number,
        )
    options = {"tools": example.tools, **example.options, "tokenize": False}
    conversations = [example.prompt + messages for messages in example.completions]
    try:
        prompt = tokenizer.apply_chat_template(
            example.prompt, **{**options, "add_generation_prompt": True}
        )
        return [prompt, *(tokenizer.apply_chat_template(c, **options) for c in conversations)]
    except Exception as error:  # a template may raise anything
        raise DataError(
            f"the chat template refuses the messages: {type(error).__name__}: {error}", number
        ) from error


def _encode(tokenizer: Tokenizer | None, texts: list[str], plain: bool) -> list[list[int]]:
    """Return the token ids of texts; rendered messages have their special tokens already."""
    if not texts or tokenizer is None:
        return []
    options: dict[str, Any] = {} if plain else {"add_special_tokens": False}
    encoded = tokenizer(texts, padding=False, truncation=False, verbose=False, **options)
    ids: list[list[int]] = encoded["input_ids"]
    return ids
