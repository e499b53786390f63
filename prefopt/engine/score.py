"""Score completions with a model: one forward pass over a laid-out batch, log-probs out.

What a model can do is asked, not assumed: before its first batch, a *probe* of a few tokens is
scored through the shared-prefix layout and through the model's own plain forward. Where the two
differ (state that leaks from one branch into the next, a head that transforms its logits, attention
that never reaches our backend), the scorer falls back to what is right and says so once.
"""

import logging
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from prefopt.engine import attention
from prefopt.engine.divergences import Predictions, divergences
from prefopt.engine.layout import Example, LayoutName, LayoutTensors, build_layout
from prefopt.engine.logprobs import LMHead, plain_logps
from prefopt.engine.memory.last_layer import last_mlp, only_at
from prefopt.engine.memory.recompute import RecomputingLayers
from prefopt.engine.moe import RouterLoss
from prefopt.engine.precision import at_least_float32, computing_dtype
from prefopt.engine.probe import (
    causal_lm_of,
    close,
    evaluating,
    is_exact,
    probe_inputs,
    quiet_transformers,
    takes_token_types,
)
from prefopt.engine.quantised import keep_trainable
from prefopt.engine.token_statistics import StatisticsCollector, TokenStatistics

logger = logging.getLogger("prefopt")

# A layer type outside these restricts attention in a way only its own mask function knows.
_EXPRESSIBLE_LAYERS = {"full_attention", "sliding_attention", "attention"}

_LAYOUTS: tuple[LayoutName, ...] = ("shared_prefix", "padded")

# What stands for the head where a model's own forward gives the logits themselves.
_LOGITS = LMHead(nn.Identity())


class _Predicted(NamedTuple):
    """What a forward pass gives; a tuple, since parallel wrappers look into these.

    Attributes:
        logps: Log-probs of the M predictions.
        router_loss: Without its weight.
        divergences: Of the M predictions.
        predictions: What was predicted at each of the M places.
        continuation: Log-probs of the predictions of a continuation.
    """

    logps: Tensor
    router_loss: Tensor | None = None
    divergences: Tensor | None = None
    predictions: Predictions | None = None
    continuation: Tensor | None = None


@dataclass(frozen=True)
class _Wanted:
    """What is wanted of a forward pass beside log-probs; see ``Scorer.score``."""

    router_loss: RouterLoss | None
    collector: StatisticsCollector | None
    divergence_from: Predictions | None
    predictions: bool


@dataclass(frozen=True)
class Scores:
    """Log-probs of the N completions of a batch; nats, float32 or better.

    Attributes:
        per_token_logps: Of each scored token, completion after completion; (L,).
        logps: Summed over each completion; (N,).
        lengths: Scored tokens of each completion; (N,), int64.
        router_loss: Load-balancing loss of the forward pass, without its weight; None unless asked
            for.
        statistics: Of the scored tokens, summed over each completion; None unless asked for.
        divergences: KL(reference || policy) at each scored token, over the whole vocabulary, summed
            over each completion, with gradient; (N,), None unless asked for.
        predictions: What was predicted at each place, without gradient, for the divergences of
            another model from this one; None unless asked for.
        continuation: Of the batch's continuation, without gradient; None where it has none.
    """

    per_token_logps: Tensor
    logps: Tensor
    lengths: Tensor
    router_loss: Tensor | None = None
    statistics: TokenStatistics | None = None
    divergences: Tensor | None = None
    predictions: Predictions | None = None
    continuation: "Scores | None" = None

    def summed(self) -> "Scores":
        """Return the same without what is as long as the texts."""
        nothing = self.per_token_logps[:0]
        return replace(self, per_token_logps=nothing, predictions=None, continuation=None)


def _summed(predictions: Tensor, batch: LayoutTensors) -> Scores:
    """Return the scores of the completions of a batch from the log-probs of its predictions."""
    per_token = predictions.index_select(0, batch.token_index)
    logps = sum_by_completion(per_token, batch.completion_index, len(batch.lengths))
    return Scores(per_token, logps, batch.lengths)


def sum_by_completion(per_token: Tensor, completion_index: Tensor, completions: int) -> Tensor:
    """Sum a value per scored token (L,) over each completion (N,)."""
    return per_token.new_zeros(completions).index_add(0, completion_index, per_token)


class Scorer:
    """Scores batches with one model, in the best layout that the model allows.

    Args:
        model: A causal language model, or a peft model around one, not wrapped for parallel
            training.
        layout: ``"auto"`` picks ``shared_prefix`` where the probe proves it, else ``padded``;
            ``"shared_prefix"`` insists; ``"padded"`` asks for plain rows.
        attn_backend: Who attends in packed rows: ``"auto"`` for the fastest that can;
            ``"segments"``, ``"varlen"`` or ``"flex"`` insist; ``"padded"`` asks for plain rows.
        context: Makes the context of forward passes to come, such as ``accelerator.autocast``: the
            backend must suit its dtype.

    Attributes:
        layout: The layout batches must have: ``"shared_prefix"`` or ``"padded"``.
        reason: Why it is that layout, for people.
        backend: Who attends in packed rows, and why; None for the padded layout.
        own_attention: The attention implementation that the model came with.

    Raises:
        ValueError: If the model cannot be scored (no output embeddings, an encoder-decoder, prompt
            tuning, 4-bit weights packed for inference), or a layout or backend is insisted on that
            the model or the machine cannot have.
    """

    def __init__(
        self,
        model: Any,
        layout: str = "auto",
        attn_backend: str = "auto",
        context: Callable[[], Any] = nullcontext,
    ) -> None:
        layout = attention.check_request(layout, attn_backend)
        keep_trainable(model)
        self.model = model
        self._causal_lm = causal_lm_of(model)
        self._backbone = self._causal_lm.base_model
        self._head: LMHead | None = LMHead.of(self._causal_lm)
        self._recomputing = RecomputingLayers(self._backbone)
        own = self._causal_lm.config._attn_implementation
        self.own_attention = "eager" if own in (None, attention.NAME) else str(own)
        self.layout: LayoutName = "padded"
        self.reason = "asked for"
        self.backend: attention.Backend | None = None
        self._layers_seen: frozenset[attention.LayerFacts] = frozenset()
        self._takes_token_types = takes_token_types(self._causal_lm)
        self._check_head()
        if layout != "padded":
            wish = f'layout="{layout}"' if attn_backend == "auto" else f"{attn_backend=}"
            self._choose_layout(wish if layout == "shared_prefix" else None)
            if self.layout != "padded":
                self._choose_backend(attn_backend, context)

    def __str__(self) -> str:
        """Return layout and backend, and why."""
        said = f"layout {self.layout} ({self.reason})"
        if self.backend is None:
            return said
        return f"{said}, attention {self.backend.name} ({self.backend.reason})"

    def score(
        self,
        batch: LayoutTensors,
        wrapped: nn.Module | None = None,
        context: Callable[[], Any] = nullcontext,
        router_loss: RouterLoss | None = None,
        statistics: Collection[str] = (),
        divergence_from: Predictions | None = None,
        keep_predictions: bool = False,
    ) -> Scores:
        """Score a batch laid out as ``self.layout``, and without gradient its continuation.

        Args:
            batch: A layout's tensors, on the model's device.
            wrapped: The model as wrapped for parallel training (DDP, FSDP), whose hooks must see
                the forward pass; None for the model itself.
            context: Makes the context of the forward pass, such as ``accelerator.autocast``.
            router_loss: What to make of the router logits; None to ask for none.
            statistics: What of ``Scores.statistics`` to take too, by the names of its fields.
            divergence_from: What another model, the reference, predicts of the same batch in the
                same layout: ``Scores.divergences`` are taken too.
            keep_predictions: Whether ``Scores.predictions`` are wanted; no wrapped model gives
                them.

        Returns:
            Log-probs of every completion.

        Raises:
            ValueError: If there is no statistic of a name, or the reference has another vocabulary.
        """
        collector = StatisticsCollector(statistics) if statistics else None
        wanted = _Wanted(router_loss, collector, divergence_from, keep_predictions)

        def forward() -> _Predicted:
            with context(), self._recomputing.active():
                return self._predicted(batch, wanted)

        predicted = _through(wrapped, self.model, forward, batch.input_ids)
        scores = _summed(predicted.logps, batch)
        index, completions = batch.completion_index, len(scores.lengths)
        taken = further = apart = None
        if collector is not None:
            taken = collector.summed(batch.token_index, index, completions)
        if predicted.divergences is not None:
            per_token = predicted.divergences.index_select(0, batch.token_index)
            apart = sum_by_completion(per_token, index, completions)
        if predicted.continuation is not None and batch.continuation is not None:
            further = _summed(predicted.continuation, batch.continuation)
        return replace(
            scores,
            router_loss=predicted.router_loss,
            statistics=taken,
            divergences=apart,
            predictions=predicted.predictions,
            continuation=further,
        )

    def to_device(self, batch: LayoutTensors) -> LayoutTensors:
        """Return a batch with its tensors on the model's device."""
        return batch.to(self._causal_lm.device)

    def evaluating(self) -> AbstractContextManager[None]:
        """Switch the model's dropout off for a while, and back on exactly where it was."""
        return evaluating(self.model)

    def _predicted(self, batch: LayoutTensors, wanted: _Wanted) -> _Predicted:
        """Return the log-prob of each of the M predictions of a batch, and what goes with them."""
        positions, targets = batch.predict_positions, batch.target_ids
        routed = wanted.router_loss is not None
        extras: dict[str, Any] = {"output_router_logits": True} if routed else {}
        memory = None
        if batch.continuation is not None:
            memory = attention.Memory(batch.segments)
        if batch.input_ids.numel() == 0:
            return self._nothing_predicted(batch, wanted, memory)
        inputs = self._inputs(batch)
        if self._head is None:
            output = self.model(**inputs, **extras, use_cache=False)
            hidden, head = output.logits.flatten(0, 1), _LOGITS
            predicting = at_least_float32(hidden.index_select(0, positions))
            logps = plain_logps(predicting, targets, wanted.collector)
        else:
            with only_at(last_mlp(self._backbone), batch.hidden_positions):
                output = self._backbone_output(inputs, batch.segments, keep=memory, **extras)
            hidden, head = output.last_hidden_state.flatten(0, 1), self._head
            predicting = hidden.index_select(0, positions)
            logps = head.logps(predicting, targets, wanted.collector)
        aux_loss = apart = kept = more = None
        if wanted.router_loss is not None:
            aux_loss = wanted.router_loss(output.router_logits, batch.attention_mask)
        if wanted.divergence_from is not None:
            apart = divergences(head, predicting, wanted.divergence_from)
        if wanted.predictions:
            kept = Predictions.of(head, predicting)
        if memory is not None and batch.continuation is not None:
            more = self._continued(batch.continuation, hidden.detach(), memory)
        return _Predicted(logps, aux_loss, apart, kept, more)

    def _nothing_predicted(
        self, batch: LayoutTensors, wanted: _Wanted, memory: attention.Memory | None
    ) -> _Predicted:
        """Return no predictions, of a batch in which nothing precedes any scored token."""
        logps = self._nothing()
        hidden = logps.new_zeros(0, self._hidden_size, dtype=self._causal_lm.dtype)
        more = None
        if memory is not None and batch.continuation is not None:
            more = self._continued(batch.continuation, hidden.detach(), memory)
        return _Predicted(
            logps,
            None if wanted.router_loss is None else logps.sum(),
            None if wanted.divergence_from is None else logps,
            Predictions.of(_LOGITS, hidden) if wanted.predictions else None,
            more,
        )

    @torch.no_grad()
    def _continued(self, batch: LayoutTensors, hidden: Tensor, memory: attention.Memory) -> Tensor:
        """Return the log-prob of each prediction of a row that continues another.

        Args:
            batch: The continuation; (1, S) tokens.
            hidden: What the first row left; (T, D).
            memory: Its keys and values.
        """
        assert self._head is not None  # without our head nothing is shared
        if batch.input_ids.numel():
            with only_at(last_mlp(self._backbone), batch.hidden_positions):
                output = self._backbone_output(self._inputs(batch), batch.segments, memory=memory)
            hidden = torch.cat([hidden, output.last_hidden_state.flatten(0, 1)])
        return self._head.logps(hidden.index_select(0, batch.predict_positions), batch.target_ids)

    def _inputs(self, batch: LayoutTensors) -> dict[str, Tensor]:
        """Return what of a batch the model takes."""
        inputs = {"input_ids": batch.input_ids, "position_ids": batch.position_ids}
        if batch.attention_mask is not None:
            inputs["attention_mask"] = batch.attention_mask
        if self._takes_token_types:
            inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
        return inputs

    def _nothing(self) -> Tensor:
        """Return no log-probs, whose gradients are zeros (parallel training waits for them)."""
        parameters = list(self.model.parameters())
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        device = self._causal_lm.device
        parts = [parameter.flatten()[:0].to(device) for parameter in trained or parameters[:1]]
        return at_least_float32(torch.cat(parts))

    @property
    def _hidden_size(self) -> int:
        return int(self._causal_lm.config.get_text_config().hidden_size)

    def _backbone_output(
        self,
        inputs: dict[str, Tensor],
        segments: tuple[Any, ...],
        memory: attention.Memory | None = None,
        keep: attention.Memory | None = None,
        **extras: Any,
    ) -> Any:
        if not segments:
            return self._backbone(**inputs, **extras, use_cache=False)
        attend = attention.attend_by_segments if self.backend is None else self.backend.attend
        plan = attention.AttentionPlan(segments, attend, memory, keep)
        # Said outright, or models look for padding among the tokens and warn of an EOS that pads.
        inputs = inputs | {"attention_mask": torch.ones_like(inputs["input_ids"])}
        with attention.planned_forward():
            output = self._backbone(**inputs, **extras, use_cache=False, prefopt_plan=plan)
        if not plan.calls:
            raise NotImplementedError("no attention layer reached our attention function")
        plan.keep = None  # layers that a checkpoint computes again have been kept
        self._layers_seen = frozenset(plan.seen)
        return output

    # What the model can do ------------------------------------------------------------------------

    def _check_head(self) -> None:
        """Keep the chunked head only if it gives the logits the model itself gives."""
        inputs = probe_inputs(self._causal_lm)
        with self.evaluating(), torch.no_grad():
            own = self.model(**inputs, use_cache=False).logits
            try:
                hidden = self._backbone_output(inputs, ()).last_hidden_state
                assert self._head is not None
                ours = self._head.transform(self._head.module(hidden))
                same = ours.shape == own.shape and close(ours, own, is_exact(self.model))
            except (AttributeError, TypeError, NotImplementedError):
                same = False
        if not same:
            self._head = None
            logger.warning(
                "prefopt: the output layer of %s does more than the chunked LM head knows; "
                "log-probs are taken from its full logits instead, which needs more memory",
                type(self._causal_lm).__name__,
            )

    def _choose_layout(self, wish: str | None) -> None:
        """Share prefixes if the model can, or fail if that was a wish (as it was put)."""
        problem = self._sharing_problem()
        if problem is None:
            self.layout = "shared_prefix"
            self.reason = "the probe's log-probs equal those of the plain forward"
            return
        message = f"{type(self._causal_lm).__name__} cannot share prefixes: {problem}"
        if wish is not None:
            raise ValueError(f'{wish} was asked for, but {message}; use "auto" or "padded"')
        self.reason = problem
        logger.warning("prefopt: %s; using the padded layout", message)

    def _choose_backend(self, request: str, context: Callable[[], Any]) -> None:
        """Take the backend that was asked for, or the fastest that proves right here."""
        device = self._causal_lm.device
        with context():
            # Norms and rotary embeddings decide between two dtypes at most: the model's, autocast's
            dtype = computing_dtype(torch.empty(0, dtype=self._causal_lm.dtype).to(device))
            self.backend = attention.choose_backend(
                request,
                layers=self._layers_seen,
                device=device,
                dtype=dtype,
                dropout=attention.drops_weights(self.model),
            )
            if self.backend.name == "segments":  # which the layout was proven with
                return
            problem = attention.kernel_problem(
                self.backend.attend, self._layers_seen, device, dtype
            )
            problem = problem or self._probe_sharing(exact=False)
        if problem is None:
            return
        if request == self.backend.name:
            raise ValueError(
                f"attn_backend={request!r} was asked for, but {problem}; "
                'use attn_backend="auto" or "segments"'
            )
        logger.warning("prefopt: not the %s backend: %s", self.backend.name, problem)
        reason = f"not {self.backend.name}: {problem}"
        self.backend = attention.Backend("segments", attention.attend_by_segments, reason)

    def _sharing_problem(self) -> str | None:
        """Return why this model cannot use the shared-prefix layout, or None if it can."""
        if self._head is None:
            return "its head needs the model's own forward"
        config = self._causal_lm.config.get_text_config()
        layer_types = set(getattr(config, "layer_types", None) or ())
        if layer_types - _EXPRESSIBLE_LAYERS:
            return f"it has layers of type {', '.join(sorted(layer_types - _EXPRESSIBLE_LAYERS))}"
        before = self._causal_lm.config._attn_implementation
        with quiet_transformers():
            self._causal_lm.set_attn_implementation(attention.NAME)
            problem = self._probe_sharing(is_exact(self.model))
            slides = getattr(config, "sliding_window", None) is not None and (
                "sliding_attention" in layer_types or not layer_types
            )
            slides = slides and getattr(config, "use_sliding_window", True)
            if problem is None and slides and not any(layer.window for layer in self._layers_seen):
                problem = "its attention hides its sliding window"
            if problem is not None:
                self._causal_lm.set_attn_implementation(before)
        return problem

    def _probe_sharing(self, exact: bool) -> str | None:
        """Score two small trees in both layouts; return what fails or differs, or None."""
        try:
            shared, padded = self._probe_scores()
        except Exception as error:  # any failure here means the same: it cannot be used
            return f"{type(error).__name__}: {error}".splitlines()[0]
        if close(shared, padded, exact):
            return None
        largest = float((shared - padded).abs().max())
        return f"log-probs of a probe differ by {largest:.2g} nats from the plain forward"

    def _probe_scores(self) -> list[Tensor]:
        """Return the log-probs of the tokens of two small trees, in each layout."""
        tokens = probe_inputs(self._causal_lm)["input_ids"][0].cpu().numpy()
        examples = [
            Example(tokens[:5], [tokens[5:9], tokens[8:11]]),
            Example(tokens[2:6], [tokens[6:11], np.concatenate([tokens[6:8], tokens[:3]])]),
        ]
        scored = []
        with self.evaluating(), torch.no_grad():
            for mode in _LAYOUTS:
                batch = LayoutTensors.of(build_layout(examples, mode))
                scored.append(self.score(self.to_device(batch)).per_token_logps)
        return scored


def _through(
    wrapped: nn.Module | None,
    model: nn.Module,
    compute: Callable[[], _Predicted],
    *arguments: Tensor,
) -> _Predicted:
    """Run ``compute`` as the forward pass of ``wrapped``, so that its hooks happen around it.

    Parallel wrappers prepare gradients and gather weights in their own forward, which then calls
    the inner model's; for this one call, the inner forward is ``compute``. The arguments are only
    what the wrapper wants to see.
    """
    if wrapped is None or wrapped is model:
        return compute()
    had_own = "forward" in vars(model)
    original = model.forward

    def forward(*args: Any, **kwargs: Any) -> _Predicted:
        restore()
        return compute()

    def restore() -> None:
        if had_own:
            model.forward = original  # accelerate patches forward on the instance
        elif "forward" in vars(model):
            del model.forward

    model.forward = forward
    try:
        result: _Predicted = wrapped(*arguments)
        return result
    finally:
        restore()
