"""Losses of an example that depend on the others of its optimiser step, exact over micro-batches.

A sorted or batch-normalised loss is a function f of the log-probs x of all examples of a step. Its
gradient is that of ``sum(g * x)`` with g = df/dx, which is a few numbers an example: so f is taken
once of all x, without a model, and each micro-batch, in whatever process, then goes backward
through its own x with its own g.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter

import torch
from torch import Tensor

from prefopt.losses import LossOutput
from prefopt.losses.vocabulary import VOCABULARY
from prefopt.objective.objective import Term
from prefopt.records import TensorRecord


@dataclass(frozen=True)
class BatchInputs(TensorRecord):
    """What a loss takes of one micro-batch.

    Attributes:
        values: By the name of the input.
        weights: Of its examples; (B,), None where all count as one.
    """

    values: Mapping[str, Tensor]
    weights: Tensor | None = None

    @property
    def first(self) -> Tensor:
        """The first input that has a value for each example; (B,)."""
        return next(x for name, x in self.values.items() if not VOCABULARY[name].scalar)


@dataclass(frozen=True)
class BatchLoss(TensorRecord):
    """A batch-dependent loss of one micro-batch, computed with all others of the step.

    Attributes:
        losses: Of its examples, weighted, without gradient; (B,).
        gradients: Of the sum of all losses of the step, by the name of the input; (B,) each.
        chosen_rewards: Rewards as of ``LossOutput``; (B,), or None.
        rejected_rewards: The same.
        rewards: The same.
    """

    losses: Tensor
    gradients: Mapping[str, Tensor]
    chosen_rewards: Tensor | None = None
    rejected_rewards: Tensor | None = None
    rewards: Tensor | None = None

    def output(self, inputs: Mapping[str, Tensor]) -> LossOutput:
        """Return the losses of these inputs with the gradient of all losses of the step."""
        losses = self.losses
        for name, gradient in self.gradients.items():
            value = inputs[name].to(gradient.dtype)
            losses = losses + gradient * (value - value.detach())
        return LossOutput(losses, self.chosen_rewards, self.rejected_rewards, self.rewards)


def compute_together(term: Term, micro_batches: Sequence[BatchInputs]) -> list[BatchLoss]:
    """Return a batch-dependent loss of all micro-batches of all processes, for each of them."""
    sizes = [len(inputs.first) for inputs in micro_batches]
    if not sum(sizes):
        return [BatchLoss(inputs.first[:0], {}) for inputs in micro_batches]
    values, weights = _joined(micro_batches)
    leaves = {
        name: value.requires_grad_()
        for name, value in values.items()
        if VOCABULARY[name].differentiable
    }
    with torch.enable_grad():
        output = term.loss(**values, **term.hyperparameters)
        losses = output.losses if weights is None else output.losses * weights
        found = torch.autograd.grad(losses.sum(), list(leaves.values()), materialize_grads=True)
    gradients = dict(zip(leaves, found, strict=True))
    whole = BatchLoss(gradients=gradients, **output._replace(losses=losses.detach())._asdict())
    ends = torch.tensor([0, *sizes]).cumsum(0).tolist()
    return [whole.map(itemgetter(slice(start, end))) for start, end in pairwise(ends)]


def _joined(micro_batches: Sequence[BatchInputs]) -> tuple[dict[str, Tensor], Tensor | None]:
    """Return the inputs and weights of all micro-batches as those of one."""
    values = {
        name: value.detach()
        if VOCABULARY[name].scalar
        else torch.cat([inputs.values[name].detach() for inputs in micro_batches])
        for name, value in micro_batches[0].values.items()
    }
    weights = [inputs.weights for inputs in micro_batches if inputs.weights is not None]
    return values, torch.cat(weights) if weights else None
