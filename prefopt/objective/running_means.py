"""Means over training that losses take by name."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from prefopt.objective.inputs import Completions, loss_inputs
from prefopt.objective.objective import RUNNING_MEANS, Term
from prefopt.objective.options import policy_and_reference
from prefopt.objective.preference_index import PreferenceIndex

# Momentum of the running mean of margins (beta-DPO, arXiv:2407.08639).
MARGIN_MOMENTUM = 0.9


class RunningMeans:
    """Means over training, of each term; the same in all processes.

    Both are of log-ratios as the loss is given them: under its options, of the rows it looks at.

    - ``mean_log_ratio``: of all completions so far, each counted as often as it is given;
    - ``mean_margin``: of chosen minus rejected log-ratios, step by step with momentum 0.9, from 0.
    """

    def __init__(self, terms: int) -> None:
        self._total = torch.zeros(terms, 2, dtype=torch.float64)
        self._margin = torch.zeros(terms, dtype=torch.float64)

    def updated(self, sums: Tensor) -> list[dict[str, Tensor]]:
        """Take a step into account and return the means of each term, () each, nats.

        ``sums`` are the ``running_sums`` of its micro-batches in all processes; (terms, 4).
        """
        sums = sums.detach().double()
        self._total = self._total.to(sums.device) + sums[:, :2]
        self._margin = self._margin.to(sums.device)
        step_margin = sums[:, 2] / sums[:, 3].clamp(min=1)
        moved = MARGIN_MOMENTUM * self._margin + (1 - MARGIN_MOMENTUM) * step_margin
        self._margin = torch.where(sums[:, 3] > 0, moved, self._margin)
        return self.means()

    def means(self) -> list[dict[str, Tensor]]:
        """Return the means so far of each term, by name; 0 before the first step."""
        log_ratios = (self._total[:, 0] / self._total[:, 1].clamp(min=1)).float()
        return [
            {"mean_log_ratio": log_ratio, "mean_margin": margin}
            for log_ratio, margin in zip(log_ratios, self._margin.float(), strict=True)
        ]

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold."""
        return {"log_ratios": self._total.tolist(), "margin": self._margin.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: If it is of another number of terms.
        """
        margin = torch.tensor(state["margin"], dtype=torch.float64)
        if margin.shape != self._margin.shape:
            raise ValueError(
                f"the checkpoint has running means of {margin.numel()} losses, this objective has "
                f"{len(self._margin)}: it was trained with others"
            )
        self._total = torch.tensor(state["log_ratios"], dtype=torch.float64)
        self._margin = margin


def running_sums(term: Term, index: PreferenceIndex, completions: Completions) -> Tensor:
    """Return sum and count of log-ratios, and of margins, as the loss is given them; (4,), float64.

    They are 0 where the loss takes no running mean; the index is of the rows it looks at.

    Raises:
        ValueError: If the loss takes a running mean of log-ratios and no reference log-probs.
    """
    sums = completions.logps.new_zeros(4, dtype=torch.float64)
    if not RUNNING_MEANS & set(term.loss.inputs):
        return sums
    for inputs in loss_inputs(term, index, completions):
        log_ratios = {
            name: (inputs[name].detach() - inputs[reference]).double()
            for name, reference in policy_and_reference(inputs)
        }
        if not log_ratios:
            raise ValueError(
                f"loss {term.loss.name!r} takes a running mean of log-ratios, but not the "
                "log-probs of the reference that they are made of"
            )
        for values in log_ratios.values():
            sums[:2] += _sum_and_count(values)
        if "rejected_logps" in log_ratios:
            sums[2:] += _sum_and_count(log_ratios["chosen_logps"] - log_ratios["rejected_logps"])
    return sums


def _sum_and_count(values: Tensor) -> Tensor:
    """Return the sum of values and how many they are; (2,), float64."""
    return torch.stack([values.sum(), values.new_tensor(values.numel())]).double()
