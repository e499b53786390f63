"""Ctrl-C and the signals of schedulers: finish the step, save a checkpoint, leave."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from transformers import TrainerCallback

# What is heard, and what a process that is not to hear it has for a handler.
_SIGNALS = {
    "SIGINT": signal.default_int_handler,
    "SIGTERM": signal.SIG_DFL,
    "SIGUSR1": signal.SIG_DFL,  # SLURM's warning: #SBATCH --signal=USR1@120
}


# A terminal and a launcher may each pass on the same Ctrl-C.
_ONE_PRESS_S = 0.5

_HEARD = "\nprefopt: {}: this step is finished, then a checkpoint is saved; Ctrl-C leaves at once\n"


class TrainingInterrupted(KeyboardInterrupt):
    """Training was asked to stop: by Ctrl-C, or by a signal.

    Attributes:
        signal_name: Such as ``SIGTERM``; None where another process has heard it.
        checkpoint: From where it goes on; None if nothing was saved.
    """

    def __init__(
        self, signal_name: str | None, checkpoint: str | None = None, step: int = 0
    ) -> None:
        self.signal_name = signal_name
        self.checkpoint = checkpoint
        where = (
            f"after step {step}; saved {checkpoint}, from where training goes on with "
            "resume_from_checkpoint=True"
            if checkpoint
            else "before the first step; nothing was saved"
        )
        super().__init__(f"stopped by {signal_name or 'a signal to another process'} {where}")

    @property
    def exit_code(self) -> int:
        """What a process that ends by this signal returns: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + int(getattr(signal, self.signal_name or "SIGTERM"))


class Interrupt(TrainerCallback):  # type: ignore[misc] # transformers is untyped
    """Hears signals during training and has it stop behind a checkpoint.

    All processes stop at the same step: that of the first of which one has heard a signal, which
    they tell each other with what they tell of the step anyway (``faults.StepGuard``).

    Args:
        folder_of: Returns the checkpoint of this step.
        quiet: Whether another process speaks for all.
    """

    def __init__(self, folder_of: Callable[[], str], quiet: bool = False) -> None:
        self._quiet = quiet
        self._folder_of = folder_of
        self._heard: str | None = None
        self._heard_at = 0.0
        self._in_steps = False
        self._agreed = self._saved = self._waits = False

    @property
    def heard(self) -> bool:
        """Whether this process has heard a signal."""
        return self._heard is not None

    def agree(self) -> None:
        """Stop after this step: all processes do."""
        self._agreed = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear signals inside, in the main thread and where nobody else does."""
        self._heard = None
        self._agreed = self._saved = self._waits = self._in_steps = False
        replaced: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for name, default in _SIGNALS.items():
                number = getattr(signal, name, None)
                if number is not None and signal.getsignal(number) is default:
                    replaced[number] = signal.signal(number, self._handler(os.getpid()))
        try:
            yield
        finally:
            for number, handler in replaced.items():
                signal.signal(number, handler)

    def _handler(self, owner: int) -> Callable[[int, FrameType | None], None]:
        def handle(number: int, frame: FrameType | None) -> None:
            name = signal.Signals(number).name
            if os.getpid() != owner:  # a worker that loads data: it serves till it is told to end
                if name != "SIGINT":
                    signal.signal(number, signal.SIG_DFL)
                    os.kill(os.getpid(), number)
                return
            again = self._heard is not None and time.monotonic() - self._heard_at > _ONE_PRESS_S
            if not self._in_steps or (again and name == "SIGINT"):
                raise TrainingInterrupted(name)
            if self._heard is None:
                self._heard, self._heard_at = name, time.monotonic()
                if not self._quiet:  # not by print, which the signal may have interrupted
                    os.write(2, _HEARD.format(name).encode())

        return handle

    # Called by transformers -----------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See ``transformers.TrainerCallback``."""
        self._in_steps = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See ``transformers.TrainerCallback``."""
        if self._agreed:
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See ``transformers.TrainerCallback``."""
        self._saved = self._agreed
        if self._waits:
            self._leave(state)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave, once there is a checkpoint; with save_strategy="best" there may be none yet."""
        if self._saved:
            self._leave(state)
        elif self._agreed:
            self._waits = control.should_save = True
            control.should_evaluate = control.should_log = False

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See ``transformers.TrainerCallback``."""
        self._in_steps = False

    def _leave(self, state: Any) -> None:
        raise TrainingInterrupted(self._heard, self._folder_of(), state.global_step)
