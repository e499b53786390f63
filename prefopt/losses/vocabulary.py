"""The inputs that a loss may take: one record each, which says all that others must know of it.

Nothing reads the name of an input to learn what it is: inputs are found by side and quantity.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Generator, Tensor

Draw = Callable[[tuple[int, ...], Generator], Tensor]


@dataclass(frozen=True)
class InputSpec:
    """One input of losses.

    Attributes:
        name: Name of the positional parameter.
        side: Whose it is: ``chosen``, ``rejected``, ``pair``, ``completion`` (of unpaired data),
            ``ranking``; or what it is a mean over: ``mismatched`` completions, or ``training``.
        quantity: What is known of that side: ``logps``, ``lengths``, ``margins``, ...
        description: Meaning, without shape and unit.
        draw: Makes random values of a shape, for checks of losses.
        example: One harmless value.
        of_reference: Whether the reference model computed it, where the policy computes the input
            of the same side and quantity.
        needs_reference: Whether a loss that takes it needs the reference model.
        differentiable: Whether the policy's gradient flows through it.
        gradient_optional: Whether a loss may use it as a constant all the same.
        shape: Its dimensions: B examples, K ranked completions; none for one number a batch.
        unit: Its unit; empty for a plain number.
        extremes: Values at which losses must stay finite.
    """

    name: str
    side: str
    quantity: str
    description: str
    draw: Draw
    example: float
    of_reference: bool = False
    needs_reference: bool = False
    differentiable: bool = False
    gradient_optional: bool = False
    shape: tuple[str, ...] = ("B",)
    unit: str = ""
    extremes: tuple[float, ...] = ()

    @property
    def scalar(self) -> bool:
        """Whether it is one number for the whole batch."""
        return not self.shape

    @property
    def meaning(self) -> str:
        """Description, shape and unit."""
        shape = f"({self.shape[0]},)" if len(self.shape) == 1 else f"({', '.join(self.shape)})"
        return f"{self.description}; {shape}" + (f", {self.unit}" if self.unit else "")

    def made_up(
        self, size: int, places: int, dtype: torch.dtype = torch.float32, seed: int = 0
    ) -> Tensor:
        """Return random values of some examples, with ``places`` completions in a ranking.

        They are the same at every call; a leaf with gradient if differentiable.
        """
        generator = torch.Generator().manual_seed(sum(map(ord, self.name)) + seed)
        values = self.draw(self._sizes(size, places), generator)
        if not values.is_floating_point():
            return values
        return values.to(dtype).requires_grad_(self.differentiable)

    def examples(self, size: int = 1, places: int = 2) -> Tensor:
        """Return the harmless value for every example, with ``places`` in a ranking."""
        return torch.full(self._sizes(size, places), self.example)

    def _sizes(self, size: int, places: int) -> tuple[int, ...]:
        sizes = {"B": size, "K": places}
        return tuple(sizes[dimension] for dimension in self.shape)


# Random values ------------------------------------------------------------------------------------


def _draw_logps(shape: tuple[int, ...], generator: Generator) -> Tensor:
    return -30 * torch.rand(shape, generator=generator) - 0.1


def _draw_lengths(shape: tuple[int, ...], generator: Generator) -> Tensor:
    return torch.randint(1, 9, shape, generator=generator)


def _draw_fractions(shape: tuple[int, ...], generator: Generator) -> Tensor:
    return torch.rand(shape, generator=generator)


def _draw_labels(shape: tuple[int, ...], generator: Generator) -> Tensor:
    return torch.rand(shape, generator=generator) < 0.5


# The table ----------------------------------------------------------------------------------------

# What the name of an input has before its quantity, by side.
_PREFIXES = {"chosen": "chosen_", "rejected": "rejected_", "ranking": "ranked_"}


def _input(side: str, quantity: str, description: str, **fields: Any) -> InputSpec:
    """Return the record of an input that is named after its side and quantity."""
    shape = ("B", "K") if side == "ranking" else ("B",)
    fields = {"draw": _draw_fractions, "example": 1.0, "shape": shape, **fields}
    return InputSpec(_PREFIXES.get(side, "") + quantity, side, quantity, description, **fields)


def _logps(side: str, quantity: str, description: str) -> tuple[InputSpec, InputSpec]:
    """Return log-probs that the policy computes, and their counterpart of the reference."""
    values = {"draw": _draw_logps, "example": -1.0, "unit": "nats", "extremes": (0.0, -1e3)}
    policy = _input(side, quantity, description, differentiable=True, **values)
    reference = replace(
        policy,
        name=f"ref_{policy.name}",
        description=f"reference counterpart of {policy.name}",
        of_reference=True,
        needs_reference=True,
        differentiable=False,
    )
    return policy, reference


def _lengths(side: str, description: str) -> InputSpec:
    # With one token each, sums are means.
    values = {"draw": _draw_lengths, "example": 1, "unit": "tokens", "extremes": (1,)}
    return _input(side, "lengths", description, **values)


def _divergences(side: str, description: str) -> InputSpec:
    policy = {"differentiable": True, "gradient_optional": True}
    values = {"example": 0.0, "needs_reference": True, "unit": "nats", **policy}
    return _input(side, "divergences", description, **values)


def _mean(side: str, quantity: str, description: str, **fields: Any) -> InputSpec:
    values = {"example": 0.0, "needs_reference": True, "shape": (), "unit": "nats"}
    return _input(side, quantity, description, **{**values, **fields})


_SPECS = (
    *_logps("chosen", "logps", "policy log-prob of the chosen completion, summed over tokens"),
    *_logps("rejected", "logps", "policy log-prob of the rejected completion, summed over tokens"),
    _lengths("chosen", "length of the chosen completion"),
    _lengths("rejected", "length of the rejected completion"),
    *_logps(
        "chosen",
        "head_logps",
        "policy log-prob of the first min(chosen, rejected length) tokens of the chosen completion",
    ),
    *_logps("rejected", "head_logps", "the same of the rejected completion"),
    _divergences(
        "chosen",
        "KL(reference || policy) at each token of the chosen completion, over the vocabulary, "
        "summed over tokens, with gradient",
    ),
    _divergences("rejected", "the same of the rejected completion"),
    _input(
        "pair",
        "margins",
        "by how much the chosen completion is better on the data's own scale: column margin, else "
        "the difference of the scores",
    ),
    _input(
        "pair",
        "preference_probabilities",
        "probability that the chosen completion is preferred, 1 where the data do not say",
    ),
    _input(
        "chosen",
        "win_rates",
        "how often the chosen completion wins against the policy's own, its preference "
        "probability where the data do not say",
    ),
    _input(
        "rejected",
        "win_rates",
        "the same of the rejected completion, 1 less its opponent's preference probability where "
        "the data do not say",
        example=0.0,
    ),
    *_logps("completion", "logps", "policy log-prob of the completion, summed over tokens"),
    _lengths("completion", "length of the completion"),
    InputSpec(
        "desirable",
        "completion",
        "label",
        "whether the completion is desirable",
        _draw_labels,
        True,
        unit="bool",
    ),
    *_logps("ranking", "logps", "policy log-probs of ranked completions, best first"),
    _lengths("ranking", "lengths of the ranked completions"),
    _input(
        "ranking",
        "scores",
        "scores of the ranked completions on the data's own scale, K - 1 to 0 where the data have "
        "none",
    ),
    _mean(
        "mismatched",
        "kl",
        "mean log-ratio of mismatched completions, at least 0, without gradient",
        extremes=(0.0, 1e3),
    ),
    _mean(
        "mismatched",
        "mean_kl",
        "kl of log-ratios per token, without gradient",
        unit="nats per token",
    ),
    _mean(
        "training",
        "mean_log_ratio",
        "mean log-ratio of all completions the loss has been given in training, the step's own "
        "included, without gradient",
    ),
    _mean(
        "training",
        "mean_margin",
        "running mean over training of chosen minus rejected log-ratio, without gradient",
    ),
)

VOCABULARY: Mapping[str, InputSpec] = MappingProxyType({spec.name: spec for spec in _SPECS})
"""What a loss may take, by the name of a positional parameter."""

SCALARS = frozenset(spec.name for spec in _SPECS if spec.scalar)
"""Names of the inputs that are one number for the whole batch."""


def specs_of(names: Iterable[str]) -> list[InputSpec]:
    """Return the records of some inputs."""
    return [VOCABULARY[name] for name in names]


def counterpart(name: str, *, quantity: str | None = None, of_reference: bool = False) -> str:
    """Return the name of another input of the same side, or raise ValueError if there is none.

    It is of the same quantity unless one is given, such as the lengths of log-probs.

    Examples:
        >>> counterpart("chosen_logps", of_reference=True)
        'ref_chosen_logps'
        >>> counterpart("ref_chosen_logps", quantity="lengths")
        'chosen_lengths'
    """
    side, quantity = VOCABULARY[name].side, quantity or VOCABULARY[name].quantity
    for spec in _SPECS:
        if (spec.side, spec.quantity, spec.of_reference) == (side, quantity, of_reference):
            return spec.name
    raise ValueError(f"there are no {quantity} beside the input {name!r}")
