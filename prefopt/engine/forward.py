"""One forward pass of a model over a laid-out batch: from tokens to log-probs of predictions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prefopt.engine import attention
from prefopt.engine.company import ANY, Company, reset_positions
from prefopt.engine.divergences import Predictions, divergences
from prefopt.engine.layout import Example, Layout, build_layout
from prefopt.engine.logprobs import LMHead, plain_logps
from prefopt.engine.memory.last_layer import last_mlp, only_at
from prefopt.engine.memory.recompute import RecomputingLayers
from prefopt.engine.moe import LoadBalancingLoss
from prefopt.engine.noise import Noise, inverse_lengths_of, noisy_embeddings
from prefopt.engine.own_forward import forward_once
from prefopt.engine.partitioned import is_partitioned
from prefopt.engine.precision import at_least_float32
from prefopt.engine.probe import causal_lm_of, quiet_transformers, takes_token_types
from prefopt.engine.recurrent.mixers import WaveForward, install, remove
from prefopt.engine.recurrent.waves import branch_points
from prefopt.engine.sharding import in_own_forward, is_fsdp2
from prefopt.engine.shared_start import SharedStart
from prefopt.engine.token_statistics import StatisticsCollector

# Stands for the head where the model's own forward pass gives the logits themselves.
_LOGITS = LMHead(nn.Identity())


@dataclass(frozen=True)
class Requested:
    """What to compute beside log-probs; see ``Scorer.score``."""

    load_balancing_loss: LoadBalancingLoss | None = None
    collector: StatisticsCollector | None = None
    divergence_from: Predictions | None = None
    predictions: bool = False
    noise: Noise | None = None
    in_company: bool = False  # whether a pass without tokens must go through all layers too
    keep_start: bool = False


class ForwardOutput(NamedTuple):
    """Result of a forward pass; a tuple, since parallel wrappers search it for tensors.

    Attributes:
        logps: Log-probs of the M predictions; (M,), nats.
        load_balancing_loss: Without its weight; scalar, None unless requested.
        divergences: Of the M predictions; (M,), None unless requested.
        predictions: The M predictions themselves; None unless requested.
        continuation_logps: Log-probs of the predictions of the continuation; None without one.
    """

    logps: Tensor
    load_balancing_loss: Tensor | None = None
    divergences: Tensor | None = None
    predictions: Predictions | None = None
    continuation_logps: Tensor | None = None


class _BackboneOutput(NamedTuple):
    """Hidden states (R * T, D), the head that maps them to logits, and the router logits if any."""

    hidden: Tensor
    head: LMHead
    router_logits: Any = None


class Forward:
    """The forward pass of one model: its backbone, then its output layer in chunks.

    Attributes:
        model: A causal language model, or a peft model around one.
        causal_lm: The transformers model in it.
        head: The output layer; None where only the model's own forward pass gives its logits.
        own_attention: The attention implementation that the model came with.
        attend: The attention backend of packed rows.
        company: Which padded rows may be computed together.
        reads_prompts_both_ways: Whether each token of a prompt is read by all others (PaliGemma).
        asked_in_training_mode: Whether the model is another one in evaluation mode, so that it must
            be in training mode wherever its scores are compared with those of training.
        layers_seen: What the attention layers asked for in the last packed row.
        mixers: Its recurrent layers, where they compute packed rows in waves.

    Raises:
        ValueError: If the model has no output embeddings, is an encoder-decoder, or tunes prompts.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.causal_lm = causal_lm_of(model)
        self.head: LMHead | None = LMHead.of(self.causal_lm)
        own = self.causal_lm.config._attn_implementation
        self.own_attention = "eager" if own in (None, attention.NAME) else str(own)
        self.attend: attention.Attend = attention.attend_by_segments
        self.company: Company = ANY
        self.reads_prompts_both_ways = False
        self.asked_in_training_mode = False
        self.layers_seen: frozenset[attention.LayerFacts] = frozenset()
        self.mixers: list[WaveForward] = []
        self._backbone = self.causal_lm.base_model
        self._recomputing = RecomputingLayers(self._backbone)
        self._start = SharedStart(self._backbone)
        self.takes_token_types = takes_token_types(self.causal_lm)

    def __call__(self, batch: Layout, requested: Requested | None = None) -> ForwardOutput:
        """Return the log-probs of a batch's predictions, and what else is requested."""
        requested = requested or Requested()
        with self._recomputing.active():
            cache = _cache_for(batch)
            if batch.input_ids.numel() == 0:
                return self._of_no_tokens(batch, requested, cache)
            hidden, head, router_logits = self._run(batch, cache, requested)
            predicting = hidden.index_select(0, batch.predict_positions)
            if head is _LOGITS:
                predicting = at_least_float32(predicting)
                logps = plain_logps(predicting, batch.target_ids, requested.collector)
            else:
                logps = head.logps(predicting, batch.target_ids, requested.collector)
            aux_loss = divergence = None
            if requested.load_balancing_loss is not None:
                aux_loss = requested.load_balancing_loss(router_logits, batch.attention_mask)
            if requested.divergence_from is not None:
                divergence = divergences(head, predicting, requested.divergence_from)
            return ForwardOutput(
                logps,
                aux_loss,
                divergence,
                Predictions.of(head, predicting) if requested.predictions else None,
                self._continuation_logps(batch.continuation, hidden, cache),
            )

    def carry_states(self) -> None:
        """Let recurrent layers, if there are any, compute packed rows in waves from now on."""
        self.mixers = install(self._backbone)

    def carry_no_states(self) -> None:
        """Give recurrent layers their own forward passes back."""
        remove(self.mixers)
        self.mixers = []

    def hidden_states(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return the last hidden states of plain rows; (R, T, D)."""
        hidden: Tensor = self._backbone(**inputs, use_cache=False).last_hidden_state
        return hidden

    def plain_logits(self, tokens: Tensor, prompt_length: int = 0) -> Tensor:
        """Return the logits of a text (T,) as the model computes them by itself; (T, V).

        That is its own forward pass and attention, of these tokens and nothing else.
        """
        inputs = {"input_ids": tokens.to(self.causal_lm.device)[None]}
        if self.takes_token_types:
            places = torch.arange(len(tokens), device=self.causal_lm.device)[None]
            inputs["token_type_ids"] = self._token_types(places, places.new_tensor([prompt_length]))
        reset_positions(self._backbone)
        current = self.causal_lm.config._attn_implementation
        with quiet_transformers():
            self.causal_lm.set_attn_implementation(self.own_attention)
        try:
            logits: Tensor = self.model(**inputs, use_cache=False).logits
        finally:
            with quiet_transformers():
                self.causal_lm.set_attn_implementation(current)
        return logits[0]

    def plain_logps(self, tokens: Tensor, prompt_length: int) -> Tensor:
        """Return the log-prob of each token of a text but the first, computed plainly; (T - 1,)."""
        logits = at_least_float32(self.plain_logits(tokens, prompt_length)[:-1])
        targets = tokens[1:, None].to(logits.device)
        return logits.log_softmax(-1).gather(-1, targets)[:, 0]

    def _run(
        self, batch: Layout, write_cache: attention.KVCache | None, requested: Requested
    ) -> _BackboneOutput:
        """Run the model over the first row of a batch, or over padded rows."""
        routed, noise = requested.load_balancing_loss is not None, requested.noise
        extras: dict[str, Any] = {"output_router_logits": True} if routed else {}
        if self.company.beyond != "any" and batch.attention_mask is not None:
            return self._run_apart(batch, extras, noise)
        shares = batch.inverse_lengths
        if batch.attention_mask is not None:
            shares = inverse_lengths_of(batch.attention_mask, left_out=1)
        with noisy_embeddings(self.causal_lm, shares, noise):
            if self.head is None:
                output = self.model(**self._inputs(batch), **extras, use_cache=False)
                hidden = output.logits
            else:
                run = partial(self._backbone_output, batch, write_cache=write_cache, **extras)
                plain = write_cache is None and noise is None and not extras
                keep = requested.keep_start
                output = self._start(batch.input_ids, run, keep) if plain else run()
                hidden = output.last_hidden_state
        router_logits = output.router_logits if routed else None
        return _BackboneOutput(hidden.flatten(0, 1), self.head or _LOGITS, router_logits)

    def _run_apart(
        self, batch: Layout, extras: dict[str, Any], noise: Noise | None
    ) -> _BackboneOutput:
        """Run the model over padded rows, those together that may be computed together.

        Where texts change each other, their last tokens count too, from which nothing is predicted.
        """
        assert batch.attention_mask is not None
        groups = self.company.groups((batch.attention_mask.sum(1) + 1).tolist())
        inputs = self._inputs(_with_last_tokens(batch))
        hidden, router_logits = [], []
        for number, rows in enumerate(groups):
            width = int(inputs["attention_mask"][rows].sum(1).max())
            reset_positions(self._backbone)
            model = self.model if self.head is None else self._backbone
            some = {name: it[rows, :width] for name, it in inputs.items()}
            shares = inverse_lengths_of(some["attention_mask"], left_out=0)
            its = None if noise is None else noise._replace(seed=noise.seed + number)
            with noisy_embeddings(self.causal_lm, shares, its):
                output = model(**some, **extras, use_cache=False)
            hidden.append(output.logits if self.head is None else output.last_hidden_state)
            routed = getattr(output, "router_logits", None) or ()
            router_logits.append([it.view(len(rows), width, -1) for it in routed])
        order = torch.tensor(
            [row for rows in groups for row in rows], device=batch.input_ids.device
        )
        put = partial(_in_rows, order.argsort(), batch.input_ids.shape[1])
        layers = tuple(put(layer).flatten(0, 1) for layer in zip(*router_logits, strict=True))
        return _BackboneOutput(put(hidden).flatten(0, 1), self.head or _LOGITS, layers)

    def _of_no_tokens(
        self, batch: Layout, requested: Requested, cache: attention.KVCache | None
    ) -> ForwardOutput:
        """Return the output for a batch in which no token precedes a scored one."""
        # No log-probs, with gradients of zero, for which parallel training waits.
        if is_fsdp2(self.model) or is_partitioned(self.model) or requested.in_company:
            logps = self._nothing_in_company(batch)
        else:
            parameters = list(self.model.parameters())
            trained = [parameter for parameter in parameters if parameter.requires_grad]
            device = self.causal_lm.device
            empty = [parameter.flatten()[:0].to(device) for parameter in trained or parameters[:1]]
            logps = at_least_float32(torch.cat(empty))
        size = int(self.causal_lm.config.get_text_config().hidden_size)
        hidden = logps.new_zeros(0, size, dtype=self.causal_lm.dtype)
        return ForwardOutput(
            logps,
            None if requested.load_balancing_loss is None else logps.sum(),
            None if requested.divergence_from is None else logps,
            Predictions.of(_LOGITS, hidden) if requested.predictions else None,
            self._continuation_logps(batch.continuation, hidden, cache),
        )

    def _nothing_in_company(self, batch: Layout) -> Tensor:
        """Return no log-probs, of a pass over a text: others wait for this process's weights."""
        token = np.zeros(1, dtype=np.int64)
        text = build_layout([Example(token, [token])], batch.name).to(batch.input_ids.device)
        hidden, head, _ = self._run(text, None, Requested())
        if head is _LOGITS:
            logps = plain_logps(at_least_float32(hidden), text.target_ids)
        else:
            logps = head.logps(hidden, text.target_ids)
        return logps.index_select(0, text.target_ids[:0])

    @torch.no_grad()
    def _continuation_logps(
        self, batch: Layout | None, hidden: Tensor, cache: attention.KVCache | None
    ) -> Tensor | None:
        """Return the log-probs of a continuation's predictions; (M,), None without one.

        It continues a row with these hidden states (T, D), and with keys and values in ``cache``.
        """
        if batch is None:
            return None
        assert self.head is not None  # without it nothing is shared
        hidden = hidden.detach()
        if batch.input_ids.numel():
            output = self._backbone_output(batch, read_cache=cache)
            hidden = torch.cat([hidden, output.last_hidden_state.flatten(0, 1)])
        return self.head.logps(hidden.index_select(0, batch.predict_positions), batch.target_ids)

    def _inputs(self, batch: Layout) -> dict[str, Tensor]:
        """Return the model's inputs."""
        inputs = {"input_ids": batch.input_ids, "position_ids": batch.position_ids}
        if batch.attention_mask is not None:
            inputs["attention_mask"] = batch.attention_mask
        elif batch.segments:
            # Without a mask, models search the tokens for padding, and warn of an EOS that pads.
            inputs["attention_mask"] = torch.ones_like(batch.input_ids)
        if self.takes_token_types:
            types = self._token_types(batch.position_ids, batch.prompt_lengths)
            inputs["token_type_ids"] = types
        return inputs

    def _token_types(self, positions: Tensor, prompt_lengths: Tensor | None) -> Tensor:
        """Return the types that say which tokens (R, T) are no images, and which are prompts."""
        if self.reads_prompts_both_ways and prompt_lengths is not None:
            return (positions >= prompt_lengths[:, None]).long()
        return torch.zeros_like(positions)

    def _backbone_output(
        self,
        batch: Layout,
        read_cache: attention.KVCache | None = None,
        write_cache: attention.KVCache | None = None,
        **extras: Any,
    ) -> Any:
        """Run the backbone over padded rows, or over a packed row with our attention."""
        inputs = self._inputs(batch)
        with only_at(last_mlp(self._backbone), batch.hidden_positions):
            if not batch.segments:
                return self._backbone(**inputs, **extras, use_cache=False)
            plan = attention.AttentionPlan(batch.segments, self.attend, read_cache, write_cache)
            with attention.planned_forward():
                output = self._backbone(**inputs, **extras, use_cache=False, prefopt_plan=plan)
        if not plan.calls and not plan.mixers:
            raise NotImplementedError("no attention layer reached our attention function")
        plan.write_cache = None  # a checkpoint runs layers again, whose keys have been stored
        self.layers_seen = frozenset(plan.seen)
        return output


def _cache_for(batch: Layout) -> attention.KVCache | None:
    """Return an empty cache for a row that is continued; None for another."""
    if batch.continuation is None:
        return None
    points = branch_points(batch.continuation.segments, len(batch.segments))
    return attention.KVCache(batch.segments, points)


def _with_last_tokens(batch: Layout) -> Layout:
    """Return padded rows with the last token of each text, where that is known."""
    assert batch.attention_mask is not None
    lengths = batch.attention_mask.sum(1, keepdim=True)
    ids, mask = F.pad(batch.input_ids, (0, 1)), F.pad(batch.attention_mask, (0, 1))
    if batch.last_ids is not None:
        ids = ids.scatter(1, lengths, batch.last_ids[:, None])
    mask = mask.scatter(1, lengths, torch.ones_like(lengths, dtype=torch.bool))
    positions = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
    return replace(batch, input_ids=ids, attention_mask=mask, position_ids=positions)


def _in_rows(order: Tensor, width: int, groups: Sequence[Tensor]) -> Tensor:
    """Return tensors (rows, tokens, D) as one of a width in tokens, its rows in this order."""
    padded = [F.pad(group, (0, 0, 0, width - group.shape[1])) for group in groups]
    return torch.cat(padded).index_select(0, order)


def through_wrapper(
    wrapped: nn.Module | None,
    model: nn.Module,
    compute: Callable[[], ForwardOutput],
    *arguments: Tensor,
) -> ForwardOutput:
    """Run ``compute`` as the forward pass of a parallel wrapper, so that its hooks run around it.

    Parallel wrappers prepare gradients and gather weights in their own forward pass, which then
    calls the inner model's; for this one call, the inner forward pass is ``compute``. The wrapper
    may look at the arguments; the computation ignores them. It is None for the model itself.
    A model that is sharded in place is its own wrapper.
    """
    if is_fsdp2(model):
        return in_own_forward(model, compute, *arguments)
    if wrapped is None or wrapped is model:
        return compute()
    with forward_once(model, compute):
        result: ForwardOutput = wrapped(*arguments)
    return result
