"""From text and messages to token ids, split into prompt and completions."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from prefopt.data.errors import DataError
from prefopt.data.example import PreferenceExample
from prefopt.data.messages import Message
from prefopt.data.prefix import shared_length
from prefopt.data.template import Rendered, Tokenizer, render_messages

__all__ = ["Tokenized", "split_prompt", "tokenize", "tokenize_prompts"]

# Stands for the answer that a prompt has not got yet: templates are tried on whole conversations.
_AN_ANSWER: Message = {"role": "assistant", "content": "answer"}


class Tokenized(NamedTuple):
    """Token ids of an example.

    Attributes:
        prompt_ids: The prompt, as far as all texts begin with it.
        completion_ids: What follows it in each text.
        unused_ids: The prompt's own tokens that are not how the texts go on.
        rendered: The texts that were tokenised; None if the row holds token ids.
    """

    prompt_ids: list[int]
    completion_ids: list[list[int]]
    unused_ids: list[int]
    rendered: Rendered | None = None


class SpecialTokens(NamedTuple):
    """What a tokenizer puts around plain text, and the tokens that texts end with.

    Attributes:
        before: Token ids before every text, as BOS.
        behind: Token ids behind every text, without EOS.
        bos: Text of the BOS token; empty if there is none.
        eos: Text of the EOS token; empty if there is none.
        turn_ends: Texts of further special tokens: one may end a turn.
    """

    before: list[int]
    behind: list[int]
    bos: str
    eos: str
    turn_ends: tuple[str, ...]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "SpecialTokens":
        """Return those of a tokenizer."""
        bare = _encode(tokenizer, ["a"])[0]
        whole = tokenizer(["a"])["input_ids"][0]
        start = next(
            (at for at in range(len(whole)) if whole[at : at + len(bare)] == bare),
            len(whole) - len(bare),
        )
        eos_id = getattr(tokenizer, "eos_token_id", None)
        names = ("bos", "eos", "pad", "unk", "mask", "cls", "sep")
        named = {getattr(tokenizer, f"{name}_token", None) for name in names}
        added = getattr(tokenizer, "added_tokens_decoder", {}).values()
        return cls(
            before=whole[:start],
            behind=[token for token in whole[start + len(bare) :] if token != eos_id],
            bos=getattr(tokenizer, "bos_token", None) or "",
            eos=tokenizer.eos_token or "",
            turn_ends=tuple(t.content for t in added if t.special and t.content not in named),
        )


def split_prompt(prompt_ids: list[int], texts: Sequence[list[int]]) -> Tokenized:
    """Split prompt + completion texts at the first token where one differs from the prompt.

    Tokens may merge across the end of the prompt, and a chat template may render a prompt
    differently when an answer follows. So the prompt ends with the last token that it shares with
    all the texts, and its own tokens beyond are not used.

    Examples:
        >>> split_prompt([5, 6, 7], [[5, 6, 7, 8], [5, 6, 9]])[:3]
        ([5, 6], [[7, 8], [9]], [7])
    """
    end = min(shared_length(prompt_ids, text) for text in texts)
    return Tokenized(prompt_ids[:end], [text[end:] for text in texts], prompt_ids[end:])


def tokenize(
    examples: Sequence[PreferenceExample], numbers: Sequence[int], tokenizer: Tokenizer | None
) -> list[Tokenized]:
    """Return the token ids of examples, from one call of the tokenizer for all texts.

    Text gets the tokenizer's special tokens, BOS not where it begins with BOS, and the
    end-of-sequence token where it does not end with it or with another special token. Messages are
    rendered by the chat template. Token ids stay as they are.

    Raises:
        DataError: If the tokenizer has no chat template, or the template refuses a row.
    """
    special = _special_tokens(examples, tokenizer)
    rendered = [
        None
        if example.form == "ids" or not example.completions
        else _render(example, number, tokenizer, special)
        for example, number in zip(examples, numbers, strict=True)
    ]
    ids = iter(
        _encode(tokenizer, [text for row in rendered if row for text in (row.prompt, *row.texts)])
    )
    return [
        _split(example, row, ids, special) for example, row in zip(examples, rendered, strict=True)
    ]


def tokenize_prompts(
    examples: Sequence[PreferenceExample], numbers: Sequence[int], tokenizer: Tokenizer | None
) -> list[list[int]]:
    """Return the token ids of prompts alone, as a model gets them that is to answer.

    They are made like those of training: BOS where the tokenizer puts it, messages rendered by the
    chat template in the same form, with what it puts before an answer.

    Args:
        examples: The prompts; completions may be missing.
        numbers: Their numbers, for errors.
        tokenizer: That of the model; None will do for token ids.

    Raises:
        DataError: As ``tokenize``, or if the template leaves out a part of a prompt, or a prompt
            has no token.
    """
    special = _special_tokens(examples, tokenizer)
    texts = [
        None if example.form == "ids" else _prompt_text(example, number, tokenizer)
        for example, number in zip(examples, numbers, strict=True)
    ]
    encoded = iter(_encode(tokenizer, [text for text in texts if text is not None]))
    prompts = []
    for example, number, text in zip(examples, numbers, texts, strict=True):
        ids = list(example.prompt) if text is None else next(encoded)
        if special and example.form == "text" and not begins_itself(example.prompt, special):
            ids = special.before + ids
        if not ids:
            raise DataError("has no token: nothing to begin an answer with", number, "prompt")
        prompts.append(ids)
    return prompts


def _prompt_text(example: PreferenceExample, number: int, tokenizer: Tokenizer | None) -> str:
    if tokenizer is None:
        raise DataError("holds text, so a tokenizer is needed", number)
    if example.form == "text":
        return str(example.prompt)
    answered = replace(example, completions=example.completions or [[_AN_ANSWER]])
    rendered = render_messages(answered, number, tokenizer)
    if rendered.lost:
        raise DataError(rendered.lost, number)
    return rendered.prompt


def _special_tokens(
    examples: Sequence[PreferenceExample], tokenizer: Tokenizer | None
) -> SpecialTokens | None:
    if tokenizer is None or all(example.form != "text" for example in examples):
        return None
    return SpecialTokens.of(tokenizer)


def _render(
    example: PreferenceExample,
    number: int,
    tokenizer: Tokenizer | None,
    special: SpecialTokens | None,
) -> Rendered:
    """Return the texts of the prompt alone and of the prompt with each completion."""
    if tokenizer is None:
        raise DataError("holds text, so a tokenizer is needed", number)
    if example.form == "messages":
        return render_messages(example, number, tokenizer)
    assert special is not None  # made where an example is text
    texts = [example.prompt + with_end(text, special) for text in example.completions]
    return Rendered(example.prompt, texts)


def with_end(text: str, special: SpecialTokens) -> str:
    """Return a completion with one end: its own, without white space behind it, else EOS."""
    ends = tuple(filter(None, (special.eos, *special.turn_ends)))
    ended = text if text.endswith(ends) else text.rstrip()
    if not ended.endswith(ends):
        return text + special.eos
    end = next(end for end in ends if ended.endswith(end))
    while (shorter := ended.removesuffix(end).rstrip()).endswith(end):
        ended = shorter
    return ended


def begins_itself(text: str, special: SpecialTokens) -> bool:
    """Whether a plain text begins with BOS, as one that was rendered before."""
    return bool(special.bos) and text.startswith(special.bos)


def _split(
    example: PreferenceExample,
    rendered: Rendered | None,
    ids: Iterator[list[int]],
    special: SpecialTokens | None,
) -> Tokenized:
    """Return the ids of an example's texts, which come next, split at the end of the prompt."""
    if rendered is None:
        prompt = example.prompt if example.form == "ids" else []
        return Tokenized(prompt, example.completions, [])
    prompt = next(ids)
    texts = [next(ids) for _ in rendered.texts]
    # A text that begins with BOS was rendered before: nothing is put around it.
    if special and example.form == "text" and not begins_itself(rendered.texts[0], special):
        prompt = special.before + prompt
        texts = [special.before + text + special.behind for text in texts]
    return split_prompt(prompt, texts)._replace(rendered=rendered)


def _encode(tokenizer: Tokenizer | None, texts: list[str]) -> list[list[int]]:
    """Return the token ids of texts, without special tokens that are not in the text."""
    if not texts or tokenizer is None:
        return []
    encoded = tokenizer(
        texts, padding=False, truncation=False, verbose=False, add_special_tokens=False
    )
    ids: list[list[int]] = encoded["input_ids"]
    return ids
