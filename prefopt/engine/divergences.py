r"""KL(reference || policy) at each predicted token, over the whole vocabulary, in chunks.

.. math::
    D_t = \sum_v q_v (\log q_v - \log p_v), \qquad
    \frac{\partial D_t}{\partial z} = p - q,

with q the reference's distribution, p the policy's, and z the policy's logits. Of the reference the
hidden states are stored, not the logits: both models' logits of a chunk are computed from hidden
states, once forward and once backward, and no (tokens, vocabulary) tensor is larger than a chunk.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from prefopt.engine.linear_head import HeadGradients, LinearHead, is_bare_linear, rows_within
from prefopt.engine.logprobs import CHUNK_BYTES, LMHead
from prefopt.engine.precision import at_least_float32, computing_dtype
from prefopt.engine.weight_sharing import copy_sharing_weights


@dataclass(frozen=True)
class Predictions:
    """Predictions of a model at M places, without gradient, from which its logits can be computed.

    Attributes:
        hidden: Hidden states after the final norm; (M, D).
        head: The output layer, as it was at the time of the predictions.
        autocast: Autocast's dtype then; None without autocast.
    """

    hidden: Tensor
    head: LMHead
    autocast: torch.dtype | None

    @classmethod
    def of(cls, head: LMHead, hidden: Tensor) -> "Predictions":
        """Return the predictions of a head from hidden states (M, D), with its current adapters.

        They stay as they are when the model's adapters are switched or its weights replaced.
        """
        device = hidden.device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        frozen = replace(head, module=copy_sharing_weights(head.module))
        return cls(hidden.detach(), frozen, autocast)

    def reader(self) -> Callable[[slice], Tensor]:
        """Return a function that computes the logits of some places; (rows, V), float32 or better.

        The weights are cast once for all calls.
        """
        module = self.head.module
        if not is_bare_linear(module):
            return self._module_logits
        dtype = self.hidden.dtype if self.autocast is None else self.autocast
        head = LinearHead(self.head.scale, self.head.softcap, dtype, len(self.hidden))
        weight, bias = module.weight.detach().to(dtype), module.bias
        return lambda rows: head.logits(self.hidden[rows], weight, bias)

    @torch.no_grad()
    def _module_logits(self, rows: slice) -> Tensor:
        device = self.hidden.device.type
        with torch.autocast(device, self.autocast, enabled=self.autocast is not None):
            return self.head.transform(at_least_float32(self.head.module(self.hidden[rows])))


def divergences(head: LMHead, hidden: Tensor, reference: Predictions) -> Tensor:
    """Return KL(reference || policy) at each place, with gradient to the policy; (M,), nats.

    ``hidden``: the policy's hidden states after the final norm; (M, D).

    Raises:
        ValueError: If the vocabularies are of different sizes.
    """
    module = head.module
    if is_bare_linear(module):
        return chunked_divergences(
            hidden,
            module.weight,
            reference,
            bias=module.bias,
            scale=head.scale,
            softcap=head.softcap,
        )
    rows = head.rows_within(CHUNK_BYTES // 2)
    parts = [
        checkpoint(_module_divergences, head, hidden[block], reference, block, use_reentrant=False)
        for block in (slice(start, start + rows) for start in range(0, len(hidden), rows))
    ]
    return torch.cat(parts) if parts else at_least_float32(hidden.sum(-1))


def _module_divergences(
    head: LMHead, hidden: Tensor, reference: Predictions, block: slice
) -> Tensor:
    logits = head.transform(at_least_float32(head.module(hidden)))
    ref_logits = reference.reader()(block)
    _check_vocabularies(logits, ref_logits)
    ref_logps = ref_logits.log_softmax(-1)
    return (ref_logps.exp() * (ref_logps - logits.log_softmax(-1))).sum(-1)


def _check_vocabularies(logits: Tensor, ref_logits: Tensor) -> None:
    mine, other = logits.shape[-1], ref_logits.shape[-1]
    if mine != other:
        raise ValueError(
            f"the policy predicts {mine} tokens and the reference {other}: a divergence is "
            "defined over one vocabulary; resize the embeddings of one of them"
        )


def chunked_divergences(
    hidden: Tensor,
    weight: Tensor,
    reference: Predictions,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    chunk_rows: int | None = None,
) -> Tensor:
    """Return KL(reference || softmax(transform(hidden @ weight.T + bias))) at each place.

    (M,), nats, where ``hidden`` is (M, D), ``weight`` (V, D), ``bias`` (V,). Under autocast
    products run in autocast's dtype; sums are float32 or better always. Without ``chunk_rows``,
    both models' logits of a chunk fill ``CHUNK_BYTES``.

    Raises:
        ValueError: If the vocabularies are of different sizes.
    """
    rows = rows_within(CHUNK_BYTES // 2, weight.shape[0]) if chunk_rows is None else chunk_rows
    head = LinearHead(scale, softcap, computing_dtype(hidden), rows)
    result: Tensor = _ChunkedDivergences.apply(  # type: ignore[no-untyped-call] # as torch ships it
        hidden, weight, bias, reference, head
    )
    return result


class _ChunkedDivergences(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        reference: Predictions,
        head: LinearHead,
    ) -> Tensor:
        # Normalisers of the policy and of the reference.
        normalisers = hidden.new_empty(2, len(hidden), dtype=head.exact)
        result = torch.empty_like(normalisers[0])
        with torch.autocast(hidden.device.type, enabled=False):
            cast_weight, ref_logits_of = weight.to(head.dtype), reference.reader()
            for block in head.blocks(len(hidden)):
                logits = head.logits(hidden[block], cast_weight, bias)
                ref_logits = ref_logits_of(block)
                _check_vocabularies(logits, ref_logits)
                mine, other = normalisers[0, block], normalisers[1, block]
                mine.copy_(logits.logsumexp(-1))
                other.copy_(ref_logits.logsumexp(-1))
                probabilities = (ref_logits - other[:, None]).exp_()
                expected = probabilities.mul_(logits.sub_(ref_logits)).sum(-1)
                result[block] = mine - other - expected
        ctx.head, ctx.reference = head, reference
        ctx.save_for_backward(hidden, weight, bias, normalisers)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, normalisers = ctx.saved_tensors
        head: LinearHead = ctx.head
        gradients = HeadGradients(head, hidden, weight, bias, ctx.needs_input_grad[:3])
        ref_logits_of = ctx.reference.reader()
        for block in head.blocks(len(hidden)):
            logits = gradients.logits(block)
            slope = head.slope(logits)
            mine, other = normalisers[0, block, None], normalisers[1, block, None]
            error = logits.sub_(mine).exp_()
            error.sub_((ref_logits_of(block) - other).exp_())
            gradients.add(block, head.raw_gradient(error, slope), grads[0][block])
            del logits, error, slope
        return *gradients.result(), None, None
