"""Answers of a model to prompts: batches through transformers' ``generate``, or through vLLM.

What a model is asked is rendered as in training, and what it says is drawn from its own
distribution: of the settings that come with a checkpoint (``generation_config.json`` may ask for
top-k 50, a temperature, a repetition penalty) only the end tokens are used.

Each answer has random numbers of its own, one for each token, so the same seed gives the same
answers whatever the batches (as far as rounding lets it).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TextStreamer,
)
from transformers.generation.logits_process import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from prefopt.data import PreferenceExample
from prefopt.data.ends import end_tokens
from prefopt.data.tokenize import tokenize_prompts
from prefopt.engine.guard import plain_generation, undisturbed
from prefopt.engine.probe import causal_lm_of
from prefopt.evaluation.progress import progress_bar
from prefopt.evaluation.prompts import Prompt, as_example
from prefopt.evaluation.sampling import Generation, Sampling
from prefopt.evaluation.vllm_backend import VllmModel

__all__ = ["generate", "leave_room", "read_answer", "stream"]

_BEFORE = 8  # tokens


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    temperature: float = 1.0,
    max_new_tokens: int = 256,
    samples: int = 1,
    seed: int = 0,
    batch_size: int = 8,
    top_p: float = 1.0,
    top_k: int = 0,
    progress: bool | None = None,
) -> list[Generation]:
    """Return a model's answers to prompts.

    Args:
        model: A causal language model of transformers, quantised or not, with or without adapters
            of peft; or what ``load_vllm`` returns. It is left as it was.
        tokenizer: Its tokenizer.
        prompts: Plain text, which is continued; conversations, which are answered; token ids; or
            examples of data.
        temperature: What logits are divided by; 0 takes the most likely token each time.
        max_new_tokens: Most tokens of an answer, its end included.
        samples: Answers to each prompt; at temperature 0 they are all the same.
        seed: Of the random numbers. The global generators are left as they were.
        batch_size: Answers that are written together; vLLM decides itself.
        top_p: Least probability that the tokens drawn from have together; 1 for all tokens.
        top_k: Most tokens drawn from; 0 for all.
        progress: Whether to show a bar on stderr; None for where that is a terminal.

    Returns:
        Answers in the order of the prompts; all to the first, then all to the second...

    Raises:
        ValueError: If a setting is out of its range, or a prompt with ``max_new_tokens`` more is
            longer than the model's window.
        DataError: If a prompt cannot be rendered.
    """
    sampling = Sampling(temperature, max_new_tokens, samples, seed, top_p, top_k)
    sampling.check()
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    numbers = range(len(prompts))
    examples = list(map(as_example, prompts, numbers))
    prompt_ids = tokenize_prompts(examples, numbers, tokenizer)
    _check_window(prompt_ids, max_new_tokens, _window_of(model))
    ends = _ends_of(model, tokenizer)
    once = sampling if temperature else sampling._replace(samples=1)
    if isinstance(model, VllmModel):
        written = model.write(prompt_ids, once, ends, progress)
    else:
        written = _write(model, prompt_ids, once, ends, batch_size, progress)
    answers = [
        read_answer(
            tokenizer, examples[place // once.samples], prompt_ids[place // once.samples], ids, ends
        )
        for place, ids in enumerate(written)
    ]
    return [answer for answer in answers for _ in range(samples // once.samples)]


def stream(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    tell: Callable[[str], None],
    *,
    number: int = 0,
    temperature: float = 1.0,
    max_new_tokens: int = 256,
    seed: int = 0,
    top_p: float = 1.0,
    top_k: int = 0,
) -> Generation:
    """Return a model's answer to one prompt, told word by word while it is written.

    It is the answer that ``generate`` gives to the prompt of that number.

    Args:
        model: As for ``generate``, but not of vLLM.
        tokenizer: Its tokenizer.
        prompt: As for ``generate``.
        tell: Called with each further piece of text.
        number: Of the prompt; each has random numbers of its own.
        temperature: As for ``generate``.
        max_new_tokens: Most tokens of the answer; fewer where the model's window ends before.
        seed: As for ``generate``.
        top_p: As for ``generate``.
        top_k: As for ``generate``.

    Raises:
        ValueError: If a setting is out of its range, or the prompt fills the model's window.
        DataError: If the prompt cannot be rendered.
    """
    Sampling(temperature, max_new_tokens, 1, seed, top_p, top_k).check()
    example = as_example(prompt)
    (ids,) = tokenize_prompts([example], [0], tokenizer)
    window = _window_of(model)
    room = max_new_tokens if window is None else min(max_new_tokens, window - len(ids))
    if room < 1:
        raise ValueError(f"{len(ids)} tokens fill all {window} that the model reads at most")
    sampling, ends = (
        Sampling(temperature, room, 1, seed, top_p, top_k),
        _ends_of(model, tokenizer),
    )
    draws, streamer = _random_numbers(sampling, number, 0), _Telling(tokenizer, tell, ends)
    inner = causal_lm_of(model)
    with undisturbed(inner), plain_generation(inner):
        (written,) = _batch(model, [ids], [draws], sampling, ends, streamer)
    return read_answer(tokenizer, example, ids, written, ends)


class _Telling(TextStreamer):  # type: ignore[misc] # transformers is untyped
    """Hands on the text of an answer in whole words, without the tokens that end it."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, tell: Callable[[str], None], ends: Sequence[int]
    ) -> None:
        super().__init__(
            tokenizer,
            skip_prompt=True,
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        self._tell, self._ends = tell, ends

    def put(self, value: Tensor) -> None:
        """Take the tokens of the prompt, then one token after the other; (T,) or (1, T)."""
        if self.next_tokens_are_prompt or int(value.reshape(-1)[-1]) not in self._ends:
            super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Hand on a piece of text that no later token changes."""
        if text:
            self._tell(text)


def leave_room(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
) -> list[bool]:
    """Return which prompts leave the model's window room for an answer of that length.

    Args:
        model: As for ``generate``.
        tokenizer: Its tokenizer.
        prompts: As for ``generate``.
        max_new_tokens: Most tokens of an answer.

    Raises:
        DataError: If a prompt cannot be rendered.
    """
    numbers, window = range(len(prompts)), _window_of(model)
    examples = list(map(as_example, prompts, numbers))
    lengths = map(len, tokenize_prompts(examples, numbers, tokenizer))
    return [window is None or length + max_new_tokens <= window for length in lengths]


def _ends_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    config = None if isinstance(model, VllmModel) else causal_lm_of(model).generation_config
    return end_tokens(tokenizer, config)


def _window_of(model: PreTrainedModel) -> int | None:
    """Return how many tokens a model reads at most; None where it does not say."""
    if isinstance(model, VllmModel):
        return model.window
    config = causal_lm_of(model).config.get_text_config()
    window = getattr(config, "max_position_embeddings", None)
    return window if isinstance(window, int) and window > 0 else None


def _check_window(prompt_ids: Sequence[list[int]], new: int, window: int | None) -> None:
    too_long = [number for number, ids in enumerate(prompt_ids) if len(ids) + new > (window or new)]
    if window is None or not too_long:
        return
    longest = max(len(ids) for ids in prompt_ids)
    advice = f"take max_new_tokens of at most {window - longest}, or " if longest < window else ""
    raise ValueError(
        f"prompt {too_long[0]} has {len(prompt_ids[too_long[0]])} tokens, and with "
        f"max_new_tokens={new} that is more than the {window} that the model reads at most "
        f"(so for {len(too_long)} of {len(prompt_ids)} prompts): {advice}leave those out"
    )


# Transformers -------------------------------------------------------------------------------------


def _write(
    model: PreTrainedModel,
    prompt_ids: Sequence[list[int]],
    sampling: Sampling,
    ends: list[int],
    batch_size: int,
    progress: bool | None,
) -> list[list[int]]:
    """Return the token ids of all answers, what follows an end token included."""
    rows = [
        (number, sample) for number in range(len(prompt_ids)) for sample in range(sampling.samples)
    ]
    # The longest first: if memory does not suffice, that shows at once.
    order = sorted(range(len(rows)), key=lambda row: -len(prompt_ids[rows[row][0]]))
    written: list[list[int]] = [[] for _ in rows]
    inner = causal_lm_of(model)
    with (
        undisturbed(inner),
        plain_generation(inner),
        progress_bar("Answers", len(rows), progress) as advance,
    ):
        for start in range(0, len(order), batch_size):
            picked = order[start : start + batch_size]
            asked = [prompt_ids[rows[row][0]] for row in picked]
            draws = [_random_numbers(sampling, *rows[row]) for row in picked]
            for row, ids in zip(picked, _batch(model, asked, draws, sampling, ends), strict=True):
                written[row] = ids
            advance(len(picked))
    return written


def _random_numbers(sampling: Sampling, number: int, sample: int) -> Any:
    """Return a number in [0, 1) for each token of an answer, its own whatever else is drawn."""
    generator = np.random.default_rng([sampling.seed, number, sample])
    return generator.random(sampling.max_new_tokens)


@torch.no_grad()
def _batch(
    model: PreTrainedModel,
    asked: Sequence[list[int]],
    draws: Sequence[Any],
    sampling: Sampling,
    ends: list[int],
    streamer: Any = None,
) -> list[list[int]]:
    """Return the token ids of the answers to prompts, written together; a streamer takes one."""
    width, device = max(map(len, asked)), model.device
    padding = [width - len(ids) for ids in asked]
    pad = ends[0] if ends else 0  # any token: it is masked
    ids = torch.tensor([[pad] * gap + row for gap, row in zip(padding, asked, strict=True)])
    mask = torch.arange(width) >= torch.tensor(padding)[:, None]
    processors = LogitsProcessorList()
    if sampling.temperature > 0:
        processors.append(_Draw(torch.as_tensor(np.stack(draws)), width, sampling))
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=False,  # of what ``_Draw`` leaves: one token
        eos_token_id=ends or None,
        pad_token_id=pad,
        use_cache=True,
    )
    output = model.generate(
        input_ids=ids.to(device),
        attention_mask=mask.long().to(device),
        generation_config=config,
        logits_processor=processors,
        streamer=streamer,
    )
    rows: list[list[int]] = output[:, width:].tolist()
    return rows


class _Draw(LogitsProcessor):  # type: ignore[misc] # transformers is untyped
    """Draws the next token of each row with that row's own random number.

    The token is the first whose cumulative probability exceeds the number (inverse transform).

    Args:
        numbers: One in [0, 1) for each row and token; (B, N), float64.
        width: Tokens of the padded prompts.
        sampling: Temperature, top-k and top-p.
    """

    def __init__(self, numbers: Tensor, width: int, sampling: Sampling) -> None:
        self._numbers = numbers
        self._width = width
        self._warpers = LogitsProcessorList([TemperatureLogitsWarper(float(sampling.temperature))])
        if sampling.top_k:
            self._warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            self._warpers.append(TopPLogitsWarper(sampling.top_p))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores (B, V): 0 for the token that a row gets, minus infinity for all others."""
        scores = self._warpers(input_ids, scores)
        precise = scores if scores.device.type == "mps" else scores.double()  # which has no float64
        cumulative = precise.softmax(1).cumsum(1)
        number = self._numbers[:, input_ids.shape[1] - self._width, None].to(cumulative)
        # Rounding may leave the sum below 1.
        drawn = (cumulative <= number * cumulative[:, -1:]).sum(1, keepdim=True)
        only = torch.full_like(scores, -math.inf)
        return only.scatter(1, drawn.clamp(max=scores.shape[1] - 1), 0.0)


# Text ---------------------------------------------------------------------------------------------


def read_answer(
    tokenizer: PreTrainedTokenizerBase,
    prompt: PreferenceExample,
    prompt_ids: Sequence[int],
    ids: Sequence[int],
    ends: Sequence[int],
) -> Generation:
    """Return an answer whose tokens may go on after its end.

    Args:
        tokenizer: Of the model.
        prompt: What was asked.
        prompt_ids: Its token ids.
        ids: Token ids of the answer.
        ends: Ids that end one, as ``end_tokens`` returns them.
    """
    end = next((place for place, token in enumerate(ids) if token in ends), None)
    said = ids if end is None else ids[:end]
    kept = ids if end is None else ids[: end + 1]
    # Where text is continued, its end says how the first word is spaced.
    before = [] if prompt.form == "messages" else list(prompt_ids[-_BEFORE:])
    text = _text(tokenizer, before, list(said))
    return Generation(text, tuple(kept), len(kept), end is None)


def _text(tokenizer: PreTrainedTokenizerBase, before: list[int], ids: list[int]) -> str:
    """Return the text of tokens that come after others.

    Alone, some tokenizers drop the space before the first word.
    """
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    head = tokenizer.decode(before, **options)
    whole = tokenizer.decode([*before, *ids], **options)
    text: str = whole[len(head) :] if whole.startswith(head) else tokenizer.decode(ids, **options)
    return text
