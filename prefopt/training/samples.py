"""What the policy answers while it trains, beside what it answered at its start.

Answers take the likeliest token each time, so what changes between two of them was learnt. They
are printed, kept in ``samples.jsonl`` of the output folder, and handed to the trackers of the run.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, TrainerCallback
from transformers.trainer_callback import TrainerState

from prefopt.config import PreferenceConfig
from prefopt.data import PreferenceExample, load_rows
from prefopt.data.ends import end_tokens
from prefopt.data.messages import read_messages
from prefopt.data.tokenize import tokenize_prompts
from prefopt.engine.guard import plain_generation, undisturbed
from prefopt.engine.probe import causal_lm_of
from prefopt.training.optimizers import to_result

FILE = "samples.jsonl"
_TIMES = 10  # in a run, if not told otherwise

Prompt = str | Sequence[Mapping[str, Any]]


def read_sample_prompts(given: str | Sequence[Any]) -> list[Prompt]:
    """Return the prompts that are named: themselves, or those of a file.

    Args:
        given: Prompts, or a file: of text, one a line; or of rows with a ``prompt`` or
            ``messages``.

    Raises:
        ValueError: If there are none.
    """
    items = [given] if isinstance(given, str) else list(given)
    if len(items) == 1 and isinstance(items[0], str) and _is_file(items[0]):
        items = list(_of_file(Path(items[0]).expanduser()))
    prompts = [item for item in items if item]
    if not prompts:
        raise ValueError(f"sample_prompts: there is no prompt in {given!r}")
    return prompts


def _is_file(name: str) -> bool:
    return "\n" not in name and len(name) < 1000 and Path(name).expanduser().is_file()


def _of_file(path: Path) -> Iterator[Prompt]:
    if path.suffix == ".txt":
        yield from filter(None, map(str.strip, path.read_text(encoding="utf-8").splitlines()))
        return
    for number, row in enumerate(load_rows(str(path))):
        prompt = row.get("prompt") or row.get("messages")
        if not prompt:
            raise ValueError(
                f"sample_prompts: row {number} of {path} has neither 'prompt' nor 'messages', but "
                f"{', '.join(row)}"
            )
        yield prompt


@dataclass(frozen=True)
class Sampler:
    """Asks a policy prompts, and leaves it as it was.

    Attributes:
        prompts: What it is asked.
        tokenizer: Its tokenizer; with a chat template, text is what a user says.
        tokens: Most tokens of an answer.
        context: Makes the context of a forward pass.
    """

    prompts: Sequence[Prompt]
    tokenizer: Any
    tokens: int
    context: Callable[[], Any]

    @torch.no_grad()
    def answers(self, model: Any) -> list[str]:
        """Return the likeliest answer to each prompt.

        Args:
            model: The policy.

        Raises:
            DataError: If a prompt cannot be rendered.
        """
        chats = bool(getattr(self.tokenizer, "chat_template", None))
        examples = [_example(it, number, chats) for number, it in enumerate(self.prompts)]
        asked = tokenize_prompts(examples, range(len(examples)), self.tokenizer)
        inner = causal_lm_of(model)
        ends = end_tokens(self.tokenizer, inner.generation_config)
        config = GenerationConfig(
            max_new_tokens=self.tokens,
            do_sample=False,
            eos_token_id=ends or None,
            pad_token_id=ends[0] if ends else 0,
        )
        with undisturbed(inner), plain_generation(inner), self.context():
            return [self._answer(model, ids, config) for ids in asked]

    def _answer(self, model: Any, ids: Sequence[int], config: GenerationConfig) -> str:
        prompt = torch.tensor([list(ids)], device=model.device)
        output = model.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), generation_config=config
        )
        text: str = self.tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True)
        return text.strip()

    def titles(self) -> list[str]:
        """Return the prompts as people read them: of messages the last."""
        return [it if isinstance(it, str) else str(it[-1].get("content")) for it in self.prompts]


def _example(prompt: Prompt, number: int, chats: bool) -> PreferenceExample:
    if isinstance(prompt, str) and not chats:
        return PreferenceExample("unpaired", "text", prompt, [])
    said = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    messages = read_messages(said, number, "sample_prompts")
    return PreferenceExample("unpaired", "messages", messages, [])


class SampleCallback(TrainerCallback):  # type: ignore[misc] # transformers is untyped
    """Has the policy answer prompts at the start, every so many steps, and at the end.

    Args:
        sampler: Asks.
        every: Optimiser steps between; None for a tenth of the run.
        folder: Where the answers are kept.
        say: Prints a line for people.
        trackers: Returns the callbacks of the run, those of trackers among them.
    """

    def __init__(
        self,
        sampler: Sampler,
        every: int | None,
        folder: Path,
        say: Callable[[str], None],
        trackers: Callable[[], Sequence[Any]],
    ) -> None:
        self._sampler, self._every, self._file = sampler, every, folder / FILE
        self._say, self._trackers = say, trackers
        self._start: list[str] | None = None

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """See ``transformers.TrainerCallback``."""
        if not state.is_world_process_zero:
            return
        if state.global_step:
            self._start = _kept_start(self._file, self._sampler.titles())
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.unlink(missing_ok=True)
        self._start = self._sampler.answers(kwargs["model"])
        self._keep(0, self._start)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """See ``transformers.TrainerCallback``."""
        every = self._every or math.ceil(state.max_steps / _TIMES)
        if state.global_step % every and state.global_step != state.max_steps:
            return
        if not state.is_world_process_zero:
            return
        to_result(kwargs.get("optimizer"))
        answers = self._sampler.answers(kwargs["model"])
        self._keep(state.global_step, answers)
        rows = list(
            zip(
                self._sampler.titles(),
                self._start or [""] * len(answers),
                answers,
                strict=True,
            )
        )
        self._say(_text(state.global_step, rows))
        for tracker in self._trackers():
            _track(tracker, state.global_step, rows)

    def _keep(self, step: int, answers: Sequence[str]) -> None:
        with self._file.open("a", encoding="utf-8") as file:
            for prompt, answer in zip(self._sampler.titles(), answers, strict=True):
                line = {"step": step, "prompt": prompt, "answer": answer}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _kept_start(file: Path, titles: Sequence[str]) -> list[str] | None:
    """Return what the start answered in the run that goes on; None if that is not known."""
    if not file.is_file():
        return None
    lines = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    known = {line["prompt"]: line["answer"] for line in lines if line["step"] == 0}
    return [known[title] for title in titles] if set(titles) <= set(known) else None


def _text(step: int, rows: Sequence[tuple[str, str, str]]) -> str:
    lines = [f"prefopt: step {step}: what the policy answers"]
    for prompt, start, now in rows:
        lines += [f"  prompt  {_short(prompt)}"]
        lines += [f"  start   {_short(start)}"] if start else []
        lines += [f"  now     {_short(now)}"]
    return "\n".join(lines)


def _short(text: str, longest: int = 300) -> str:
    text = " ".join(text.split())
    return text if len(text) <= longest else f"{text[: longest - 6]} [...]"


_COLUMNS = ["step", "prompt", "start", "now"]


def _track(tracker: Any, step: int, rows: Sequence[tuple[str, str, str]]) -> None:
    """Hand answers to a tracker of transformers, if it is one that takes text."""
    name = type(tracker).__name__
    if name == "TensorBoardCallback" and tracker.tb_writer is not None:
        for number, (prompt, start, now) in enumerate(rows):
            text = f"**{prompt}**\n\n*start:* {start}\n\n*now:* {now}"
            tracker.tb_writer.add_text(f"samples/{number}", text, step)
        tracker.tb_writer.flush()
    elif name in ("WandbCallback", "TrackioCallback"):
        module = tracker._wandb if name == "WandbCallback" else tracker._trackio
        data = [[step, *row] for row in rows]
        module.log({"samples": _table(module, data), "train/global_step": step})


def _table(module: Any, data: list[list[Any]]) -> Any:
    if module.__name__ == "wandb":
        return module.Table(columns=_COLUMNS, data=data)
    from pandas import DataFrame  # type: ignore[import-untyped] # ships no types

    return module.Table(dataframe=DataFrame(data, columns=_COLUMNS))


def sample_callback(
    args: PreferenceConfig,
    tokenizer: Any,
    context: Callable[[], Any],
    say: Callable[[str], None],
    trackers: Callable[[], Sequence[Any]],
) -> SampleCallback | None:
    """Return the callback that a run's arguments ask for; None for none.

    Args:
        args: Those of the run.
        tokenizer: That of the policy.
        context: Makes the context of a forward pass.
        say: Prints a line for people.
        trackers: Returns the callbacks of the run.

    Raises:
        ValueError: If the prompts cannot be read.
    """
    if args.sample_prompts is None:
        return None
    prompts = read_sample_prompts(args.sample_prompts)
    sampler = Sampler(prompts, tokenizer, args.sample_tokens, context)
    return SampleCallback(sampler, args.sample_every, Path(args.output_dir), say, trackers)
