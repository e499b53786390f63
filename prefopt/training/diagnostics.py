"""Says once, in plain words, what of a run goes wrong, as far as its logs show."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from transformers import TrainerCallback

from prefopt.training.diagnosis import OF_REWARD, Diagnostic, diagnostics_of_pairs
from prefopt.training.history import (
    diagnostics_of_curves,
    diagnostics_of_history,
    summary_of_history,
)


class DiagnosticsCallback(TrainerCallback):  # type: ignore[misc] # transformers is untyped
    """Says once, in plain words, what of a run goes wrong.

    Args:
        say: Prints a line for people.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._said: set[str] = set()
        self._logs = self._next = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin anew."""
        self._said.clear()
        self._logs = self._next = 0

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at pairs after 1, 2, 3, ... logs, and then at each tenth more."""
        if "loss" not in kwargs.get("logs", {}):
            return
        self._logs += 1
        if self._logs >= self._next:
            self._next = max(self._logs + 1, math.ceil(1.1 * self._logs))
            found = diagnostics_of_pairs(summary_of_history(state.log_history))
            # Length is the first that a reward learns of an answer; what it is worth comes later.
            early = state.global_step < state.max_steps / 2
            self._tell([one for one in found if not early or one.name != OF_REWARD], state)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the curves of evaluations."""
        self._tell(diagnostics_of_curves(state.log_history), state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at everything."""
        self._tell(diagnostics_of_history(state.log_history), state)

    def _tell(self, found: Sequence[Diagnostic], state: Any) -> None:
        for one in found:
            if one.fires and one.name not in self._said:
                self._said.add(one.name)
                self._say(f"prefopt: step {state.global_step}: {one.name}: {one.text}")
