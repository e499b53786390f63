"""Score completions with a model: one forward pass over a laid-out batch, log-probs out."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from prefopt.engine import attention
from prefopt.engine.capability import probe_capability
from prefopt.engine.divergences import Predictions
from prefopt.engine.forward import Forward, ForwardOutput, Requested, through_wrapper
from prefopt.engine.guard import undisturbed
from prefopt.engine.layout import Layout
from prefopt.engine.moe import LoadBalancingLoss
from prefopt.engine.noise import Noise
from prefopt.engine.partitioned import is_engine, whole_where_used
from prefopt.engine.quantised import keep_trainable
from prefopt.engine.sharding import put_away
from prefopt.engine.token_statistics import StatisticsCollector, TokenStatistics


@dataclass(frozen=True)
class Scores:
    """Log-probs of the N completions of a batch; nats, float32 or better.

    Attributes:
        per_token_logps: Of each scored token, completion after completion; (L,).
        logps: Summed over each completion; (N,).
        lengths: Scored tokens of each completion; (N,), int64.
        load_balancing_loss: Of the forward pass, without its weight; None unless asked for.
        statistics: Of the scored tokens, summed over each completion; None unless asked for.
        divergences: KL(reference || policy) at each scored token, over the whole vocabulary, summed
            over each completion, with gradient; (N,), None unless asked for.
        predictions: The predictions at all places, without gradient, for the divergences of another
            model from this one; None unless asked for.
        continuation: Of the batch's continuation, without gradient; None where it has none.
    """

    per_token_logps: Tensor
    logps: Tensor
    lengths: Tensor
    load_balancing_loss: Tensor | None = None
    statistics: TokenStatistics | None = None
    divergences: Tensor | None = None
    predictions: Predictions | None = None
    continuation: "Scores | None" = None

    def summed(self) -> "Scores":
        """Return the same without its tensors of one value per token."""
        nothing = self.per_token_logps[:0]
        return replace(self, per_token_logps=nothing, predictions=None, continuation=None)


def sum_by_completion(per_token: Tensor, completion_index: Tensor, completions: int) -> Tensor:
    """Sum a value per scored token (L,) over each completion (N,)."""
    return per_token.new_zeros(completions).index_add(0, completion_index, per_token)


class Scorer:
    """Scores batches with one model, in the best layout that the model allows.

    Args:
        model: A causal language model, or a peft model around one, not wrapped for parallel
            training.
        layout: ``"auto"`` takes ``shared_prefix`` where the probe finds it right, else ``padded``;
            ``"shared_prefix"`` requires it; ``"padded"`` asks for plain rows.
        attn_backend: What computes attention in packed rows: ``"auto"`` for the fastest that can;
            ``"segments"``, ``"varlen"`` or ``"flex"`` require one; ``"padded"`` asks for plain
            rows.
        context: Makes the context of forward passes to come, such as ``accelerator.autocast``: the
            backend must suit its dtype.
        longest: Tokens of the longest prompt + completion to come; None for any.

    Attributes:
        model: As given.
        layout: The layout that batches must have: ``"shared_prefix"`` or ``"padded"``.
        reason: Why it is that layout, for people.
        backend: What computes attention in packed rows, and why; None for the padded layout.
        company: Which texts are computed together.

    Raises:
        ValueError: If the model cannot be scored (no output embeddings, an encoder-decoder, later
            tokens that it reads, prompt tuning, 4-bit weights packed for inference), or a layout or
            backend is required that the model or the machine cannot have.
    """

    def __init__(
        self,
        model: Any,
        layout: str = "auto",
        attn_backend: str = "auto",
        context: Callable[[], Any] = nullcontext,
        longest: int | None = None,
    ) -> None:
        layout = attention.check_request(layout, attn_backend)
        keep_trainable(model)
        self.model = model
        self._forward = Forward(model)
        with whole_where_used(model):
            self.layout, self.reason, self.backend = probe_capability(
                self._forward, layout, attn_backend, context, longest
            )
        self.company = self._forward.company

    def __str__(self) -> str:
        """Return layout and backend, and why."""
        said = f"layout {self.layout} ({self.reason})"
        if self.company.beyond != "any":
            said += f", {self.company}"
        if self._forward.asked_in_training_mode:
            said += ", scored in training mode without gradient too"
        if self.backend is None:
            return said
        return f"{said}, attention {self.backend.name} ({self.backend.reason})"

    def score(
        self,
        batch: Layout,
        wrapped: nn.Module | None = None,
        context: Callable[[], Any] = nullcontext,
        load_balancing_loss: LoadBalancingLoss | None = None,
        statistics: Collection[str] = (),
        divergence_from: Predictions | None = None,
        keep_predictions: bool = False,
        noise: Noise | None = None,
        keep_start: bool = False,
    ) -> Scores:
        """Score a batch laid out as ``self.layout``, and without gradient its continuation.

        Args:
            batch: A layout's tensors, on the model's device.
            wrapped: The model as wrapped for parallel training (DDP, DeepSpeed), whose hooks must
                run around the forward pass; None for the model itself, be it sharded by FSDP2.
            context: Makes the context of the forward pass, such as ``accelerator.autocast``.
            load_balancing_loss: Computes ``Scores.load_balancing_loss``; None for none.
            statistics: Names of the fields of ``Scores.statistics`` to compute.
            divergence_from: Predictions of another model, the reference, for the same batch in the
                same layout: ``Scores.divergences`` are computed from them.
            keep_predictions: Whether to return ``Scores.predictions``; a wrapped model has none.
            noise: Added to the embeddings; None for none.
            keep_start: Whether the next batch is this very one, and layers below the first that is
                trained, or has an adapter, give the same there: they are computed once.

        Returns:
            Log-probs of every completion.

        Raises:
            ValueError: If there is no statistic of a name, the reference has another vocabulary, or
                a text is longer than ``longest`` said and the model must compute it by itself.
        """
        self._check_lengths(batch)
        collector = StatisticsCollector(statistics) if statistics else None
        requested = Requested(
            load_balancing_loss,
            collector,
            divergence_from,
            keep_predictions,
            noise,
            in_company=is_engine(wrapped),
            keep_start=keep_start,
        )

        def compute() -> ForwardOutput:
            with context():
                return self._forward(batch, requested)

        # Whatever wraps a model, in the backward pass it is its own hooks that gather weights.
        alone = wrapped in (None, self.model) and not torch.is_grad_enabled()
        with whole_where_used(self.model) if alone else nullcontext():
            output = through_wrapper(wrapped, self.model, compute, batch.input_ids)
        scores = _scores(batch, output.logps)
        index, completions = batch.completion_index, len(batch.lengths)
        token_statistics = divergences = continuation = None
        if collector is not None:
            token_statistics = collector.summed(batch.token_index, index, completions)
        if output.divergences is not None:
            per_token = output.divergences.index_select(0, batch.token_index)
            divergences = sum_by_completion(per_token, index, completions)
        if batch.continuation is not None and output.continuation_logps is not None:
            continuation = _scores(batch.continuation, output.continuation_logps)
        return replace(
            scores,
            load_balancing_loss=output.load_balancing_loss,
            statistics=token_statistics,
            divergences=divergences,
            predictions=output.predictions,
            continuation=continuation,
        )

    def plain_logps(
        self, tokens: Tensor, prompt_length: int, context: Callable[[], Any] = nullcontext
    ) -> Tensor:
        """Return the log-prob of each token of a text alone but the first, by the plain forward.

        That is the model's own forward pass, its attention included, of the token ids (n,) and
        nothing else; (n - 1,), nats. The prompt's length matters to models that read it both ways.
        """
        with context(), whole_where_used(self.model):
            return self._forward.plain_logps(tokens, prompt_length)

    def _check_lengths(self, batch: Layout) -> None:
        if batch.attention_mask is not None or self.company.beyond == "any":
            return
        depths = (
            sum(batch.segments[one].length for one in (*segment.ancestors, number))
            for number, segment in enumerate(batch.segments)
        )
        longest = max(depths, default=0) + 1
        if longest > self.company.window:
            raise ValueError(
                f"a text has {longest} tokens, more than max_length said; this model computes "
                f'{self.company}: use layout="padded", or a max_length that is true'
            )

    def to_device(self, batch: Layout) -> Layout:
        """Return a batch with its tensors on the model's device."""
        return batch.to(self._forward.causal_lm.device)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Score without dropout; when the context ends, the model is as it was."""
        put_away(self.model)
        with undisturbed(self.model, self._forward.asked_in_training_mode):
            try:
                yield
            finally:
                # What is gathered here would be used again by a pass after the next step.
                put_away(self.model)


def _scores(batch: Layout, logps: Tensor) -> Scores:
    """Return the scores of a batch from the log-probs of its predictions (M,)."""
    per_token = logps.index_select(0, batch.token_index)
    summed = sum_by_completion(per_token, batch.completion_index, len(batch.lengths))
    return Scores(per_token, summed, batch.lengths)
