"""Losses of an example that depend on the others of its optimiser step, exact over micro-batches.

A sorted or batch-normalised loss is a function f of the log-probs x of all examples of a step. Its
gradient is that of ``sum(g * x)`` with g = df/dx, which is a few numbers an example: so f is taken
once of all x, without a model, and each micro-batch, in whatever process, then goes backward
through its own x with its own g.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from prefopt.losses.registry import SCALARS, LossOutput
from prefopt.objective.inputs import Completions, loss_inputs
from prefopt.objective.objective import RUNNING_MEANS, Term
from prefopt.objective.options import policy_and_reference
from prefopt.objective.preference_index import PreferenceIndex

Inputs = Mapping[str, Tensor]

# Momentum of the running mean of margins (beta-DPO, arXiv:2407.08639).
MARGIN_MOMENTUM = 0.9


@dataclass(frozen=True)
class Pooled:
    """What a pooled loss is for the examples of one micro-batch, knowing all others.

    No tuple: what moves the tensors of a batch between devices would take it apart.

    Attributes:
        output: Losses and rewards of its examples, without gradient.
        gradients: Of the sum of all losses of the step, by the name of the input; (B,) each.
    """

    output: LossOutput
    gradients: dict[str, Tensor]

    def to(self, device: torch.device) -> "Pooled":
        """Return the same on a device."""
        gradients = {name: gradient.to(device) for name, gradient in self.gradients.items()}
        return Pooled(_each(self.output, lambda item: item.to(device)), gradients)


def pool(term: Term, micro_batches: Sequence[Inputs]) -> list[Pooled]:
    """Return what a pooled loss makes of all micro-batches together, for each of them.

    Args:
        term: A term whose loss is pooled.
        micro_batches: The loss's inputs in each micro-batch of each process; ``weights`` (B,)
            beside them, where the rows have weights.
    """
    sizes = [len(_first(inputs)) for inputs in micro_batches]
    if not sum(sizes):
        return [Pooled(LossOutput(_first(inputs)[:0]), {}) for inputs in micro_batches]
    names = micro_batches[0].keys()
    joined = {
        name: micro_batches[0][name]
        if name in SCALARS
        else torch.cat([inputs[name] for inputs in micro_batches])
        for name in names
    }
    weights = joined.pop("weights", None)
    joined = {name: value.detach() for name, value in joined.items()}
    moving = {name: joined[name].requires_grad_() for name in joined if of_policy(name)}
    with torch.enable_grad():
        output = term.loss(**joined, **term.hyperparameters)
        losses = output.losses if weights is None else output.losses * weights
        total = losses.sum()
    found = torch.autograd.grad(total, list(moving.values()), allow_unused=True)
    gradients = {
        name: torch.zeros_like(moving[name]) if gradient is None else gradient
        for name, gradient in zip(moving, found, strict=True)
    }
    parts = LossOutput(losses.detach(), *output[1:])
    return [
        Pooled(
            _each(parts, itemgetter(piece)),
            {name: gradient[piece] for name, gradient in gradients.items()},
        )
        for piece in _pieces(sizes)
    ]


def with_gradient(pooled: Pooled, inputs: Inputs) -> LossOutput:
    """Return the losses of a micro-batch with the gradient of all losses of the step.

    Args:
        pooled: What the loss is, knowing all examples of the step.
        inputs: The loss's inputs in this micro-batch, with gradient.
    """
    losses = pooled.output.losses
    for name, gradient in pooled.gradients.items():
        moving = inputs[name].to(gradient.dtype)
        losses = losses + gradient * (moving - moving.detach())
    return pooled.output._replace(losses=losses)


def of_policy(name: str) -> bool:
    """Whether an input of that name has a gradient."""
    return name.endswith(("logps", "divergences")) and not name.startswith("ref_")


def _each(output: LossOutput, change: Callable[[Tensor], Tensor]) -> LossOutput:
    """Return an output with each of its tensors changed."""
    changed: Any = [None if item is None else change(item) for item in output]
    return LossOutput._make(changed)


def _first(inputs: Inputs) -> Tensor:
    return next(value for name, value in inputs.items() if name not in SCALARS)


def _pieces(sizes: Sequence[int]) -> list[slice]:
    ends = torch.tensor([0, *sizes]).cumsum(0).tolist()
    return [slice(start, end) for start, end in pairwise(ends)]


class RunningMeans:
    """Means over training that losses ask for by name, for each term; the same in all processes.

    Both are of log-ratios as the loss is given them: under its options, of the rows it looks at.

    - ``mean_log_ratio``: of all completions so far, each counted as often as it is given;
    - ``mean_margin``: of chosen minus rejected log-ratios, step by step with momentum 0.9, from 0.

    Args:
        terms: How many terms the objective has.
    """

    def __init__(self, terms: int) -> None:
        self._total = torch.zeros(terms, 2, dtype=torch.float64)
        self._margin = torch.zeros(terms, dtype=torch.float64)

    def updated(self, sums: Tensor) -> list[dict[str, Tensor]]:
        """Take a step into account and return the means of each term, () each, nats.

        Args:
            sums: ``running_sums`` of each term, over all micro-batches and processes; (terms, 4).
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
    """Return what a micro-batch adds to the running means of a term.

    Args:
        term: Whose loss may or may not ask for one.
        index: Of the rows that it looks at.
        completions: What is known of the completions.

    Returns:
        Sum and count of log-ratios, and of margins, as the loss is given them; (4,), float64.

    Raises:
        ValueError: If the loss asks for a running mean of log-ratios that it is not given.
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
                f"loss {term.loss.name!r} asks for a running mean of log-ratios, but not for the "
                "log-probs of the reference that they are made of"
            )
        for values in log_ratios.values():
            sums[:2] += sum_and_count(values)
        if "rejected_logps" in log_ratios:
            sums[2:] += sum_and_count(log_ratios["chosen_logps"] - log_ratios["rejected_logps"])
    return sums


def sum_and_count(values: Tensor) -> Tensor:
    """Return the sum of values and how many they are; (2,), float64."""
    return torch.stack([values.sum(), values.new_tensor(values.numel())]).double()
