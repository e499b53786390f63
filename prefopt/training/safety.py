"""What keeps a run from losing what it has: its guard, its progress, its checkpoints, signals."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefopt.training.checkpoints import CheckpointWriter, agreed_folder, told_if_unwritten
from prefopt.training.faults import StepGuard
from prefopt.training.interrupt import Interrupt
from prefopt.training.launch import Launch
from prefopt.training.progress import Progress
from prefopt.training.run import Run
from prefopt.training.step import StepStatistics
from prefopt.training.weights import TOO_HIGH, check_weights


class Safety:
    """The collaborators of a trainer that keep what it has.

    Args:
        trainer: The trainer. They are added to its callbacks.
        statistics: Computes its losses.
        launch: How it is launched.
        run: Its run.

    Attributes:
        guard: Sees to it that no step is taken that is not finite.
        progress: Counts what was trained on.
        interrupt: Hears signals.
    """

    def __init__(self, trainer: Any, statistics: StepStatistics, launch: Launch, run: Run) -> None:
        self._trainer, self._statistics, self._run = trainer, statistics, run
        self._processes = processes = launch.processes
        args = trainer.args
        self.progress = Progress(trainer, statistics.metrics, processes)
        self.interrupt = Interrupt(lambda: str(self._now()), quiet=not args.should_log)
        counted = statistics, self.progress
        self.guard = StepGuard(trainer, *counted, self.interrupt, processes, run.say)
        self._writer = CheckpointWriter(processes, args.should_save)
        for callback in (self.guard, self.progress, self.interrupt):
            trainer.add_callback(callback)

    def _now(self, folder: str | None = None) -> Path:
        """Return the checkpoint of this step."""
        trainer = self._trainer
        return Path(folder or trainer.args.output_dir, f"checkpoint-{trainer.state.global_step}")

    def folder(self, resume_from_checkpoint: Any) -> Path | None:
        """Return the checkpoint to go on from, the same in all processes; None to begin.

        Raises:
            ValueError: If there is none, or it is broken.
        """
        output_dir = self._trainer.args.output_dir
        return agreed_folder(resume_from_checkpoint, output_dir, self._processes, self._run.say)

    def resume(self, checkpoint: Path | None) -> None:
        """Count on from a checkpoint; None to begin.

        Raises:
            ValueError: If a loss takes a mean over training that it does not have.
        """
        self._statistics.resume(checkpoint)
        self.progress.resume(checkpoint)

    def check(self, what: str) -> None:
        """Raise in all processes where what was trained is not finite.

        Raises:
            NonFiniteError: Naming the first weights that are not.
        """
        check_weights(self._trainer.model, what, TOO_HIGH, self._processes, trained_only=True)

    @contextmanager
    def checkpoint(self, folder: str) -> Iterator[None]:
        """Write a checkpoint into a folder inside; upload it when it is whole.

        Raises:
            NonFiniteError: If the weights are not finite.
            CheckpointError: If it cannot be written.
        """
        self.check("the model, of which no checkpoint is saved,")
        trainer, checkpoint = self._trainer, self._now(folder)
        with self._writer.writing(checkpoint, trainer.args, trainer.state):
            yield
            self.progress.save(checkpoint)
        if trainer.args.push_to_hub:
            trainer.create_model_card()  # what is uploaded is output_dir, which may have none yet
            trainer._push_from_checkpoint(str(checkpoint))

    @contextmanager
    def saving(self, folder: Path) -> Iterator[None]:
        """Save a model inside, as a checkpoint or by itself.

        Raises:
            NonFiniteError: If the weights are not finite.
            CheckpointError: If it cannot be written.
        """
        if self._trainer.args.should_save and not self._writer.at_work:
            check_weights(self._trainer.model, "the model, which is not saved,", TOO_HIGH)
        with told_if_unwritten(folder):
            yield
