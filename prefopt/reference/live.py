"""Live references: they score a batch with a model, each time they are asked.

They fill a store, and score at each step what no store holds. The reference is another model, the
policy with its adapter switched off, the initial policy, or a copy that follows the policy.
"""

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prefopt.engine import Scorer, build_layout
from prefopt.engine.layout import Example, Layout, in_padded_rows
from prefopt.engine.partitioned import is_partitioned, own_part, parts_replaced
from prefopt.engine.score import Scores
from prefopt.engine.sharding import is_fsdp2, own_parts, parts_exchanged


class ReferenceModel:
    """Scores with a model as it is now: another one, or the policy before it is trained.

    Args:
        scorer: Scores with that model. Where it cannot share prefixes and the batches do, they are
            laid out anew, without their continuations.
        description: What it is, for people; None for that of the class.
    """

    description = "a model of its own"
    # Whether the scorer is the policy's, whose untrained weights are the reference's too.
    _shares_untrained = False

    def __init__(self, scorer: Scorer, description: str | None = None) -> None:
        self.scorer = scorer
        self.description = description or self.description

    def score(
        self,
        batch: Layout,
        context: Callable[[], Any] = nullcontext,
        keep_predictions: bool = False,
        keep_start: bool = False,
    ) -> Scores:
        """Return reference log-probs of the completions of a batch; nats, no gradient.

        Args:
            batch: As ``Scorer.score`` takes it.
            context: Makes the context of the forward pass.
            keep_predictions: Whether the policy's divergences from the reference are wanted, and so
                ``Scores.predictions``.
            keep_start: Whether the policy scores this very batch next: what it has in common with
                the reference is then computed once.
        """
        keep_start = keep_start and self._shares_untrained and not self.in_step
        if batch.name == "shared_prefix" and self.scorer.layout == "padded":
            batch = in_padded_rows(batch)
        with self.scorer.evaluating(), self._as_reference(), torch.no_grad():
            return self.scorer.score(
                batch, context=context, keep_predictions=keep_predictions, keep_start=keep_start
            )

    def model(self) -> Any:
        """Return the reference as a model of its own, to be looked at; None where there is none."""
        return self.scorer.model

    @contextmanager
    def asked(self) -> Iterator[Any]:
        """Yield the model, which predicts as the reference inside, to be asked for answers."""
        with self.scorer.evaluating(), self._as_reference(), torch.no_grad():
            yield self.scorer.model

    @property
    def in_step(self) -> bool:
        """Whether all processes must score at the same time: weights are spread over them."""
        return is_fsdp2(self.scorer.model) or is_partitioned(self.scorer.model)

    def _as_reference(self) -> AbstractContextManager[None]:
        """Inside, the model of the scorer is the reference."""
        return nullcontext()


class AdapterOff(ReferenceModel):
    """The base model under a policy's adapter: the initial policy if that is zero-initialised.

    Args:
        scorer: Scores with the policy, a peft model.
    """

    description = "the policy with its adapter switched off"
    _shares_untrained = True

    def model(self) -> None:
        """Return None: it is the policy."""
        return

    @contextmanager
    def _as_reference(self) -> Iterator[None]:
        trained = [it for it in self.scorer.model.parameters() if it.requires_grad]
        with self.scorer.model.disable_adapter():
            # An adapter that is off requires no gradients, and what requires none in the first pass
            # FSDP2 takes as frozen for ever.
            for parameter in trained:
                parameter.requires_grad_(True)
            yield


class FrozenCopy(ReferenceModel):
    """The policy as it is when this is made: copies of its trainable weights, swapped in to score.

    Only what is trained is copied: under LoRA an adapter and not a model. An adapter that was
    trained before is part of the copy.

    Args:
        scorer: Scores with the policy.
    """

    description = "the initial policy (a frozen copy of its trainable weights)"
    _shares_untrained = True

    def __init__(self, scorer: Scorer) -> None:
        super().__init__(scorer)
        self._weights = {
            name: own_part(parameter).detach().clone()
            for name, parameter in scorer.model.named_parameters()
            if parameter.requires_grad
        }

    def model(self) -> Any:
        """Return a model of the copies, and of the policy's other weights; None if in parts."""
        policy = self.scorer.model
        if self.in_step:
            return None
        shared = {
            id(parameter): nn.Parameter(self._weights.get(name, parameter.detach()), False)
            for name, parameter in policy.named_parameters()
        }
        return copy.deepcopy(policy, shared).eval()

    @contextmanager
    def _as_reference(self) -> Iterator[None]:
        if is_fsdp2(self.scorer.model):
            # Whole weights are copied while the policy is whole; each process then keeps its part.
            self._weights = own_parts(self.scorer.model, self._weights)
            with parts_exchanged(self.scorer.model, self._weights):
                yield
            return
        parameters = dict(self.scorer.model.named_parameters())
        if is_partitioned(self.scorer.model):
            with parts_replaced([(parameters[name], it) for name, it in self._weights.items()]):
                yield
            return
        current = {name: parameters[name].data for name in self._weights}
        for name, weight in self._weights.items():
            parameters[name].data = weight.to(current[name].device)
        try:
            yield
        finally:
            for name, data in current.items():
                parameters[name].data = data


class MovingCopy(FrozenCopy):
    """A copy of the policy that follows it: the reference of TR-DPO.

    Source: Gorbatovski et al. 2024, arXiv:2404.09656, the soft update; the hard one is
    ``alpha=1``.

    Args:
        scorer: Scores with the policy.
        start: All weights of the model that it starts as, by name; None for the policy as it is.

    Raises:
        ValueError: If the weights have other names or shapes than those of the policy.
    """

    description = "a copy that follows the policy (TR-DPO)"

    def __init__(self, scorer: Scorer, start: Mapping[str, Tensor] | None = None) -> None:
        super().__init__(scorer)
        if start is None:
            return
        policy, trained = dict(scorer.model.named_parameters()), set(self._weights)
        _check_same_names(policy, start, "the given ref_model")
        for name, parameter in policy.items():
            weight = start[name].detach().to(parameter, copy=True)
            # What the policy does not train is held only where the start differs from it.
            if name in self._weights or not torch.equal(weight, parameter.detach()):
                self._weights[name] = weight
        self._shares_untrained = self._weights.keys() == trained

    @torch.no_grad()
    def follow(self, alpha: float) -> None:
        """Move towards the policy: ``alpha`` of it, in (0, 1], and ``1 - alpha`` of this."""
        parameters = dict(self.scorer.model.named_parameters())
        for name, weight in self._weights.items():
            weight.mul_(1 - alpha).add_(parameters[name].to(weight.device), alpha=alpha)

    def weights(self) -> dict[str, Tensor]:
        """Return what must be saved of it, by name."""
        return {name: weight.contiguous() for name, weight in self._weights.items()}

    def restore(self, weights: Mapping[str, Tensor]) -> None:
        """Continue from saved weights.

        Raises:
            ValueError: If it was saved of another model.
        """
        parameters = dict(self.scorer.model.named_parameters())
        held = {name: parameters[name] for name in weights if name in parameters} | self._weights
        _check_same_names(held, weights, "the saved reference")
        self._shares_untrained &= weights.keys() == self._weights.keys()
        self._weights = {
            name: weight.to(parameters[name], copy=True) for name, weight in weights.items()
        }


def _check_same_names(mine: Mapping[str, Tensor], other: Mapping[str, Tensor], what: str) -> None:
    for name in sorted(mine.keys() | other.keys()):
        if name not in mine or name not in other or mine[name].shape != other[name].shape:
            both = name in mine and name in other
            raise ValueError(
                f"sync_ref_model mixes weight by weight, but {what} and the policy differ: {name} "
                + ("has another shape" if both else "is in one of them only")
            )


def adapter_starts_as_identity(scorer: Scorer) -> bool:
    """Whether switching a policy's adapter off changes no score: true of a fresh LoRA adapter.

    Args:
        scorer: Scores with the policy, a peft model.

    Returns:
        False for an adapter that was trained before, or one whose start is not zero (PiSSA, LoftQ).
    """
    vocabulary = int(scorer.model.config.get_text_config().vocab_size)
    tokens = np.random.default_rng(1).integers(0, vocabulary, 12)
    layout = build_layout([Example(tokens[:4], [tokens[4:8], tokens[8:]])], scorer.layout)
    batch = scorer.to_device(layout)
    with scorer.evaluating(), torch.no_grad(), warnings.catch_warnings():
        # That biases which are trained too stay on: nothing has been trained yet.
        warnings.filterwarnings("ignore", "Careful, disabling adapter layers with bias")
        with_adapter = scorer.score(batch).per_token_logps
        with scorer.model.disable_adapter():
            without = scorer.score(batch).per_token_logps
    return bool(torch.allclose(with_adapter, without, rtol=1e-6, atol=1e-6))
