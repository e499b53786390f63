"""Steps whose loss or gradient is not finite: found before they are taken, told with their rows.

Whether loss and gradient norm are finite is asked before each optimiser step, since a step cannot
be taken back; the processor waits for the accelerator there, once per optimiser step and not for
each micro-batch.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import TrainerCallback

from prefopt.batch import Batch, SourceRow
from prefopt.losses import LossOutput
from prefopt.reference.processes import Processes
from prefopt.training.interrupt import Interrupt
from prefopt.training.progress import Progress
from prefopt.training.step import Scored, StepStatistics
from prefopt.training.weights import NonFiniteError, check_weights

# Under this name in the output folder, what a step was made of that had to be left out.
FAULT_FILE = "non_finite_step{step}_process{rank}.json"
_MOST_NAMED = 5


class Watched(NamedTuple):
    """A micro-batch of the step, and what was computed of it.

    Attributes:
        batch: Its examples.
        logps: By the policy; (N,), nats.
        ref_logps: By the reference; (N,), nats; None if no loss needs it.
        losses: Of each term, unreduced.
    """

    batch: Batch
    logps: Tensor
    ref_logps: Tensor | None
    losses: tuple[Tensor, ...]


class StepGuard(TrainerCallback):  # type: ignore[misc] # transformers is untyped
    """Sees to it that no step is taken whose loss or gradient is not finite.

    Args:
        trainer: The trainer: its model, its arguments, what it counts.
        statistics: Computes the losses.
        progress: Counts the steps that are left out.
        interrupt: Told when any process has heard a signal, since processes ask each other here.
        processes: Those that take the step together; all stop, or leave it out, together.
        say: Prints a line for people.

    Attributes:
        grad_norm: Of this step, before clipping; None if it is not known.
    """

    def __init__(
        self,
        trainer: Any,
        statistics: StepStatistics,
        progress: Progress,
        interrupt: Interrupt,
        processes: Processes,
        say: Callable[[str], None],
    ) -> None:
        self._trainer = trainer
        self._statistics = statistics
        self._progress = progress
        self._interrupt = interrupt
        self._processes = processes
        self._say = say
        self._watched: list[Watched] = []
        self._loss: Tensor | None = None
        self._before: tuple[Any, Any, int] | None = None
        self.grad_norm: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the weights with which training begins or goes on."""
        hint = "train on from an earlier checkpoint"
        check_weights(self._trainer.model, "the model", hint, self._processes, trained_only=True)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say where an evaluation gave a loss that is not finite; it is never the best."""
        for name, value in kwargs.get("metrics", {}).items():
            if name.endswith("loss") and not math.isfinite(value):
                self._say(f"prefopt: step {state.global_step}: {name} is {value:g}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say where there is no best model to load."""
        if args.load_best_model_at_end and state.best_model_checkpoint is None:
            self._say(
                f"prefopt: no best model is loaded, for no {args.metric_for_best_model} was better "
                "than nothing: the model is that of the last step"
            )

    def begin(self) -> None:
        """Begin a step: remember how to leave it out."""
        self._watched, self._loss, self.grad_norm = [], None, None
        total = getattr(self._trainer, "_tr_loss", None)
        total = None if total is None else total.clone()
        self._before = self._statistics.snapshot(), total, self._progress.tokens
        self._statistics.watch = self._watch

    def _watch(self, batch: Batch, scored: Scored, outputs: Sequence[LossOutput]) -> None:
        ref_logps = scored.ref_logps
        self._watched.append(
            Watched(
                batch,
                scored.scores.logps.detach(),
                None if ref_logps is None else ref_logps.detach(),
                tuple(output.losses.detach() for output in outputs),
            )
        )

    def add_loss(self, loss: Tensor) -> None:
        """Add the loss of a micro-batch; ()."""
        self._loss = loss.detach() if self._loss is None else self._loss + loss.detach()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the step out, or stop, where it must not be taken."""
        bad_loss, bad_norm, interrupted = self._asked()
        self._statistics.watch = None
        if interrupted:
            self._interrupt.agree()
        what = "loss" if bad_loss else "gradient norm"
        if bad_loss or (bad_norm and not self._scaler_handles_it()):
            self._fault(what, state.global_step + 1)
        self._watched = []

    def _asked(self) -> tuple[bool, bool, bool]:
        """Return what holds in any process: a bad loss, a bad norm, a signal. The one wait."""
        loss = self._loss
        device = self._trainer.args.device
        flags = torch.full((3,), float(self._interrupt.heard), device=device)
        flags[0] = 0 if loss is None else ~loss.isfinite()
        norm = self.grad_norm
        if isinstance(norm, Tensor):
            norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
            flags[1] = ~norm.detach().isfinite().all()
        else:
            flags[1] = float(norm is not None and not math.isfinite(norm))
        bad_loss, bad_norm, interrupted = (self._processes.sum(flags) > 0).tolist()
        return bad_loss, bad_norm, interrupted

    def _scaler_handles_it(self) -> bool:
        """Whether gradients may overflow now and then: in float16 they are scaled up on purpose.

        The scaler leaves the step out and scales less; below 1 it is not the scale that is to
        blame.
        """
        accelerator = self._trainer.accelerator
        scaler = getattr(accelerator, "scaler", None)
        if scaler is not None and scaler.is_enabled():
            return bool(scaler.get_scale() >= 1)
        return self._is_deepspeed() and str(accelerator.mixed_precision) == "fp16"

    def _is_deepspeed(self) -> bool:
        return getattr(self._trainer.accelerator.state, "deepspeed_plugin", None) is not None

    def _fault(self, what: str, step: int) -> None:
        args, progress = self._trainer.args, self._progress
        told = self._told(what, step)
        # DeepSpeed steps in its backward pass.
        trained = "before this step" if not self._is_deepspeed() else "after this step"
        hint = f"step {step - 1} has spoilt them, or they were changed since. {_RESUME}"
        check_weights(
            self._trainer.model,
            f"{told}. The model, {trained},",
            hint,
            self._processes,
        )
        if self._is_deepspeed() or progress.skipped >= args.non_finite_steps:
            raise NonFiniteError(
                f"{told}. Training stops; nothing was saved, and the weights are those {trained}. "
                "Look at these rows, lower the learning rate or max_grad_norm, or leave out up to "
                f"N such steps with non_finite_steps=N (now {args.non_finite_steps}). {_RESUME}"
            )
        self._leave_out()
        progress.skipped += 1
        progress.skipped_since_log += 1
        self._say(f"prefopt: {told}: left out, {progress.skipped} of {args.non_finite_steps}")

    def _told(self, what: str, step: int) -> str:
        """Write what the step was made of in each process, and return what happened in which."""
        rank = self._processes.rank
        value = self._loss if what == "loss" else self.grad_norm
        value = 0.0 if value is None else float(value)  # a process without rows has no loss
        file = Path(self._trainer.args.output_dir) / FAULT_FILE.format(step=step, rank=rank)
        report = self._report(what, value, step)
        written = f"written to {file}" if _write(file, report) else f"{file} cannot be written"
        mine = f"{value:g} (process {rank}: {_named_rows(report['examples'])}; {written})"
        found = self._processes.all(None if math.isfinite(value) else mine)
        return f"step {step}: the {what} is " + ", ".join(its for its in found if its is not None)

    def _leave_out(self) -> None:
        """Have the step change nothing: weights, moments, running means, metrics."""
        for parameter in self._trainer.model.parameters():
            parameter.grad = None  # optimisers pass over a parameter without one
        assert self._before is not None  # the step was begun
        snapshot, total, self._progress.tokens = self._before
        self._statistics.restore(snapshot)
        if total is not None:
            self._trainer._tr_loss.copy_(total)

    def _report(self, what: str, value: float, step: int) -> dict[str, Any]:
        return {
            "step": step,
            "what": what,
            "value": _number(value),
            "grad_norm": None if self.grad_norm is None else _number(float(self.grad_norm)),
            "learning_rate": self._trainer._get_learning_rate(),
            "process": self._processes.rank,
            "losses": [
                {"term": term.loss.name, "values": _numbers(losses)}
                for one in self._watched
                for term, losses in zip(self._statistics.terms, one.losses, strict=True)
            ],
            "examples": [
                example for one in self._watched for example in _examples(one, self._trainer)
            ],
        }


_RESUME = "Go on from a checkpoint before it with resume_from_checkpoint"


def _examples(watched: Watched, trainer: Any) -> Iterator[dict[str, Any]]:
    """Yield each example of a micro-batch: its row, its texts and their log-probs."""
    logps = _numbers(watched.logps)
    ref_logps = None if watched.ref_logps is None else _numbers(watched.ref_logps)
    decode = getattr(trainer.processing_class, "decode", lambda ids: None)
    rows = watched.batch.rows or (SourceRow(),) * len(watched.batch.texts.examples)
    first = 0
    for row, example in zip(rows, watched.batch.texts.examples, strict=True):
        last = first + len(example.completion_ids)
        yield {
            "row": row.number,
            "dataset": row.dataset,
            "logps": logps[first:last],
            "ref_logps": None if ref_logps is None else ref_logps[first:last],
            "prompt": decode(example.prompt_ids.tolist()),
            "completions": [decode(ids.tolist()) for ids in example.completion_ids],
            "prompt_ids": example.prompt_ids.tolist(),
            "completion_ids": [ids.tolist() for ids in example.completion_ids],
        }
        first = last


def _named_rows(examples: Sequence[dict[str, Any]]) -> str:
    """Return which rows are to blame, as far as log-probs tell, or else all of them."""
    bad = [its for its in examples if any(isinstance(v, str) for v in _values(its))]
    chosen = bad or examples
    names = [
        f"{its['dataset']} {its['row']}" if its["dataset"] else str(its["row"]) for its in chosen
    ]
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    which = "log-probs are not finite in" if bad else "its"
    return f"{which} rows {', '.join(names[:_MOST_NAMED])}{more}"


def _values(example: dict[str, Any]) -> list[Any]:
    return [*example["logps"], *(example["ref_logps"] or ())]


def _numbers(values: Tensor) -> list[Any]:
    return [_number(value) for value in values.flatten().tolist()]


def _number(value: float) -> Any:
    """Return a number, as text where JSON has no number for it."""
    return value if math.isfinite(value) else str(value)


def _write(file: Path, report: dict[str, Any]) -> bool:
    """Write a report, and return whether that went well: a full disk must not hide the fault."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError:
        return False
    return True
