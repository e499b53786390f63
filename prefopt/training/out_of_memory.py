"""Too little memory in training: told with the rows and tokens of the batch, and what to change."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback

from prefopt.batch import Batch, SourceRow
from prefopt.config import PreferenceConfig
from prefopt.data.split_by_tokens import laid_out_tokens

# What torch's allocators say, of a CPU and of any accelerator.
_NO_MEMORY = re.compile("out of memory|can't allocate memory|not enough memory", re.IGNORECASE)
_MOST_NAMED = 5
_LONGEST_CAUSE = 160


class TrainingMemoryError(RuntimeError):
    """Memory was too small for a step of training.

    Attributes:
        exit_code: That of a command that ends with it.
    """

    exit_code = 1


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is torch's, or Python's, of too little memory.

    Examples:
        >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you ..."))
        True
        >>> is_out_of_memory(RuntimeError("shapes differ"))
        False
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error)))


class MemoryWatch(TrainerCallback):  # type: ignore[misc] # transformers is untyped
    """Knows which batch is computed, so that an error of memory can name it.

    Args:
        trainer: The trainer: its model, arguments and state.

    Attributes:
        batch: What is computed now; None where it is no batch.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self.batch: Batch | None = None

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The passes of the step are over."""
        self.batch = None

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Turn an error of memory inside into one that says what was computed.

        Raises:
            TrainingMemoryError: In place of the error that an allocator raised.
        """
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or isinstance(error, TrainingMemoryError):
                raise
            raise TrainingMemoryError(self._message(error)) from error

    def _message(self, error: BaseException) -> str:
        trainer, batch = self._trainer, self.batch
        cause = " ".join(str(error).split()) or type(error).__name__
        cause = cause if len(cause) <= _LONGEST_CAUSE else f"{cause[:_LONGEST_CAUSE]}..."
        advice = _advice_on_model(trainer.args, trainer.model)
        where = "between the passes of training: in the optimiser, an evaluation or saving"
        if batch is not None and batch.texts.examples:
            where = f"with {described(batch)}"
            advice = [*_advice_on_batch(trainer.args, batch), *advice]
        less = f". Less is needed with {'; '.join(advice)}" if advice else ""
        return f"step {trainer.state.global_step + 1}: out of memory {where}{less}. [{cause}]"


def described(batch: Batch) -> str:
    """Return what a batch holds: rows, tokens, and its largest row."""
    layout = batch.texts.tokens
    sizes = row_sizes(batch)
    names = [_name(row) for row in batch.rows] or [f"{n} of the batch" for n in range(len(sizes))]
    tokens = layout.input_ids.numel()
    if layout.continuation is not None:
        tokens += layout.continuation.input_ids.numel()
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    rows = "row" if len(names) == 1 else f"{len(names)} rows,"
    largest = max(range(len(sizes)), key=sizes.__getitem__)
    said = f"a batch of {rows} {', '.join(names[:_MOST_NAMED])}{more}, {tokens:,} tokens"
    return said if len(sizes) == 1 else f"{said} (most in row {names[largest]}: {sizes[largest]:,})"


def row_sizes(batch: Batch) -> list[int]:
    """Return how many tokens each row of a batch takes."""
    name = batch.texts.tokens.name
    return [laid_out_tokens(example, name) for example in batch.texts.examples]


def _name(row: SourceRow) -> str:
    number = "?" if row.number is None else str(row.number)
    return f"{row.dataset} {number}" if row.dataset else number


def _advice_on_batch(args: PreferenceConfig, batch: Batch) -> list[str]:
    """Return the options that make a batch smaller; none of them changes another part of a step."""
    sizes = row_sizes(batch)
    if len(sizes) == 1:
        longest = max(map(len, batch.texts.examples[0].texts()), default=0)
        return [f"a max_length (now {args.max_length}) below the longest text's {longest:,} tokens"]
    half = max(max(sizes), sum(sizes) // 2)
    rows, passes = args.per_device_train_batch_size, args.gradient_accumulation_steps
    advice = [f"max_tokens_per_batch={half}, which cuts the batch up and changes no result"]
    if rows > 1:
        advice.append(
            f"per_device_train_batch_size={-(-rows // 2)} and gradient_accumulation_steps="
            f"{2 * passes}, the same steps"
        )
    return advice


def _advice_on_model(args: PreferenceConfig, model: Any) -> list[str]:
    """Return the options of the model that are not in use yet."""
    advice = []
    if not args.gradient_checkpointing:
        advice.append("gradient_checkpointing=True")
    elif not args.activation_offloading and args.device.type != "cpu":
        advice.append("activation_offloading=True")
    if not hasattr(model, "peft_config"):
        advice.append("LoRA (peft_config; --use_peft)")
    elif not getattr(model, "is_quantized", False):
        advice.append("4-bit weights (quantization_config; --load_in_4bit)")
    return advice
