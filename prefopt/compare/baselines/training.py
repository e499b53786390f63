"""What the baselines' trainers share: going on, leaving on a signal, saving."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from prefopt.training.checkpoints import checkpoint_folder
from prefopt.training.interrupt import Interrupt

__all__ = ["adapter_target", "train"]


class _LeavesOnSignal(TrainerCallback):  # type: ignore[misc] # transformers is untyped
    """Stops behind a checkpoint once a signal was heard; one process decides for itself."""

    def __init__(self, interrupt: Interrupt) -> None:
        self._interrupt = interrupt

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See ``transformers.TrainerCallback``."""
        if self._interrupt.heard:
            self._interrupt.agree()


class _CountsOn(TrainerCallback):  # type: ignore[misc] # transformers is untyped
    """Adds the tokens that were logged before a checkpoint: some trainers begin again at 0."""

    _before = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See ``transformers.TrainerCallback``."""
        seen = [entry["num_tokens"] for entry in state.log_history if "num_tokens" in entry]
        self._before = seen[-1] if seen else 0.0

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See ``transformers.TrainerCallback``."""
        for name in ("num_tokens", "eval_num_tokens"):
            if name in state.log_history[-1]:
                state.log_history[-1][name] += self._before


def train(trainer: Any, resume: bool, save: Callable[[], None], counts_anew: bool = False) -> None:
    """Train, and leave model, tokenizer and log in the trainer's folder.

    Args:
        trainer: One of TRL's.
        resume: Whether to go on from the newest checkpoint.
        save: Saves the model.
        counts_anew: Whether the trainer counts tokens from where it goes on.

    Raises:
        ValueError: If there is no checkpoint to go on from.
        TrainingInterrupted: After a signal; there is a checkpoint then.
    """
    folder = Path(trainer.args.output_dir)
    interrupt = Interrupt(lambda: str(folder / f"checkpoint-{trainer.state.global_step}"))
    trainer.add_callback(_LeavesOnSignal(interrupt))
    trainer.add_callback(interrupt)
    if counts_anew:
        trainer.add_callback(_CountsOn())
    checkpoint = checkpoint_folder(resume, str(folder), print)
    with interrupt.listening():
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    save()
    trainer.processing_class.save_pretrained(folder)
    trainer.save_state()


def adapter_target(model: str) -> None:
    """Raise ``ValueError`` if a start is an adapter, on which no classifier can be built."""
    if (Path(model) / "adapter_config.json").is_file():
        raise ValueError(
            f"the start {model} is an adapter, and a reward model needs a whole one: merge it "
            "first (merge_and_unload, save_pretrained)"
        )
