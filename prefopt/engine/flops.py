"""Useful floating-point operations of training: each distinct token once, nothing twice.

With T tokens that pass the model, S keys that they see (a token at depth k of its text sees k), M
predictions, P weights of the transformer's matrices and H of the output layer's, a forward pass is

    2 P T + 4 (layers x query heads x head width) S + 2 H M.

A backward pass is as much again for the gradients of what passes (for attention twice as much), and
2 P' T + 2 H' M for those of the weights that are trained, P' and H' of them. (Kaplan et al. 2020,
arXiv:2001.08361, Section 2.1: 6 P T where all are trained.) Of a mixture of experts those weights
count that a token is sent to. Norms, activations, the embedding lookup, the optimiser, and what is
computed a second time in the backward pass count nothing; attention counts as if no layer had a
window.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import prod
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from prefopt.engine.layout import Example, Layout
from prefopt.engine.partitioned import whole_shape
from prefopt.engine.prefix_tree import common_prefix_length
from prefopt.engine.probe import inside_peft

# Names under which configurations hold how many experts there are, and how many a token goes to.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "top_k")

# Products in half precision, dense, with sums in float32; operations per second, by the vendors'
# data sheets. The first name that is part of the device's counts.
PEAKS = {
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
    "RTX A6000": 155e12,
    "RTX 6000 Ada": 364e12,
    "RTX 5090": 210e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "V100": 125e12,
    "T4": 65e12,
}


class Work(NamedTuple):
    """What a pass over some texts computes: T, S and M of the module's docstring."""

    tokens: int = 0
    keys: int = 0
    predictions: int = 0


class Weights(NamedTuple):
    """What of a model takes part in products.

    Attributes:
        matrices: Weights of the transformer's matrices that a token meets.
        trained: Those of them that are trained.
        head: Weights of the output layer.
        head_trained: Those of them that are trained.
        attention: Layers times query heads times their width.
    """

    matrices: int
    trained: int
    head: int
    head_trained: int
    attention: int

    @classmethod
    def of(cls, model: Any) -> "Weights":
        """Return those of a causal language model, or of a peft model around one."""
        inner = inside_peft(model)
        config = inner.config.get_text_config()
        head = inner.get_output_embeddings()
        in_head = set() if head is None else set(head.modules())
        share = _share_of_experts(config)
        rest = [module for module in model.modules() if module not in in_head]
        return cls(
            *_matrix_weights(rest, share),
            *_matrix_weights(list(in_head), share),
            attention=_attention_width(config),
        )

    def scoring(self, work: Work) -> int:
        """Return the operations of a forward pass."""
        dense = self.matrices * work.tokens + self.head * work.predictions
        return 2 * dense + 4 * self.attention * work.keys

    def training(self, work: Work) -> int:
        """Return the operations of a forward and a backward pass."""
        of_weights = self.trained * work.tokens + self.head_trained * work.predictions
        # Four products of attention in the backward pass stand against two in the forward pass.
        return 2 * self.scoring(work) + 4 * self.attention * work.keys + 2 * of_weights


def work_of(layout: Layout, examples: Sequence[Example]) -> Work:
    """Return the work of a batch, without that of its continuation.

    A padded batch counts as if it shared what its examples' completions share.

    Args:
        layout: The batch, on any device: only what is known without asking the device is read.
        examples: What it holds.
    """
    if layout.attention_mask is not None:
        works = [_work_of_example(example) for example in examples]
        return Work(*map(sum, zip(*works, strict=True))) if works else Work()
    lengths = [segment.length for segment in layout.segments]
    keys = 0
    for segment in layout.segments:
        before = sum(lengths[one] for one in segment.ancestors)
        keys += segment.length * before + _triangle(segment.length)
    return Work(sum(lengths), keys, len(layout.target_ids))


def continued_work_of(layout: Layout) -> Work:
    """Return the work of a batch's continuation, which is scored only."""
    more = layout.continuation
    if more is None:
        return Work()
    lengths = [segment.length for segment in (*layout.segments, *more.segments)]
    keys = sum(
        segment.length * sum(lengths[one] for one in segment.ancestors) + _triangle(segment.length)
        for segment in more.segments
    )
    return Work(sum(its.length for its in more.segments), keys, len(more.target_ids))


def padded_tokens(examples: Sequence[Example]) -> int:
    """Return the tokens of plain rows of these examples, filled up to the longest text."""
    lengths = [
        len(example.prompt_ids) + len(completion)
        for example in examples
        for completion in example.completion_ids
    ]
    return len(lengths) * max(lengths, default=0)


def peak_rate(device_name: str) -> float | None:
    """Return the operations per second that a GPU is sold with; None for one not in ``PEAKS``.

    Examples:
        >>> peak_rate("NVIDIA H100 80GB HBM3") / 1e12
        989.0
        >>> peak_rate("Some GPU")
    """
    return next((rate for name, rate in PEAKS.items() if name in device_name), None)


@lru_cache
def matmul_rate(dtype: torch.dtype, threads: int, size: int = 1024) -> float:
    """Measure matrix products on this CPU: the best of five; operations per second.

    Args:
        dtype: In which they are computed.
        threads: Of torch; what was measured once for a number of them is known.
        size: Of the square matrices.
    """
    ones = torch.ones(size, size, dtype=dtype)
    seconds = []
    for _ in range(5):
        start = perf_counter()
        torch.mm(ones, ones)
        seconds.append(perf_counter() - start)
    return 2 * size**3 / min(seconds)


def _work_of_example(example: Example) -> Work:
    """Return the work of one example alone; the last token of a text predicts nothing."""
    completions = example.completion_ids
    common = common_prefix_length(completions)
    ends = all(len(completion) == common for completion in completions)
    shared = max(len(example.prompt_ids) + common - ends, 0)
    branches = [max(len(completion) - common - 1, 0) for completion in completions]
    keys = _triangle(shared) + sum(length * shared + _triangle(length) for length in branches)
    counted = [example.counted(number) for number in range(len(completions))]
    predictions = sum(int(mask[common:].sum()) for mask in counted)
    predictions += int(counted[0][:common].sum()) if counted else 0
    return Work(shared + sum(branches), keys, predictions)


def _triangle(length: int) -> int:
    return length * (length + 1) // 2


def _share_of_experts(config: Any) -> dict[int, float]:
    """Return the share of the weights that a token meets, by number of experts."""
    experts = _first(config, _EXPERTS)
    chosen = _first(config, _CHOSEN)
    return {experts: chosen / experts} if experts and chosen else {}


def _first(config: Any, names: Sequence[str]) -> int | None:
    found = (getattr(config, name, None) for name in names)
    return next((value for value in found if isinstance(value, int)), None)


def _matrix_weights(modules: Sequence[nn.Module], experts: dict[int, float]) -> tuple[int, int]:
    """Return the weights of matrices in some modules, and those of them that are trained."""
    counted = trained = 0.0
    for module in modules:
        for weight, size in _matrices(module):
            shape = whole_shape(weight)
            if len(shape) == 3:  # a matrix of each expert
                size = round(size * experts.get(int(shape[0]), 1.0))
            counted += size
            trained += size * weight.requires_grad
    return round(counted), round(trained)


def _matrices(module: nn.Module) -> Iterator[tuple[Tensor, int]]:
    """Yield the weights of a module itself that are matrices, and their sizes unpacked."""
    if isinstance(module, nn.Embedding):
        return
    for weight in module._parameters.values():
        if weight is None:
            continue
        if hasattr(weight, "quant_state") and hasattr(module, "in_features"):  # packed 4 bits
            linear: Any = module
            yield weight, linear.in_features * linear.out_features
        elif len(whole_shape(weight)) >= 2:
            yield weight, prod(whole_shape(weight))


def _attention_width(config: Any) -> int:
    layers = getattr(config, "num_hidden_layers", 0) or 0
    heads = getattr(config, "num_attention_heads", 0) or 0
    if not isinstance(heads, int) or not heads:
        return 0
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(layers * heads * width)
