"""The inputs that a loss may take: one record each, which says all that others must know of it.

Nothing else reads the name of an input to learn what it is: an input is found, and its counterpart
of the reference or its lengths, by side and quantity.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

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
        """Return random values, the same at every call; a leaf with gradient if differentiable.

        Args:
            size: Number of examples.
            places: Completions in a ranking.
            dtype: Of the values, unless they are no floating-point numbers.
            seed: Of the values.
        """
        generator = torch.Generator().manual_seed(sum(map(ord, self.name)) + seed)
        values = self.draw(self._sizes(size, places), generator)
        if not values.is_floating_point():
            return values
        return values.to(dtype).requires_grad_(self.differentiable)

    def examples(self, size: int = 1, places: int = 2) -> Tensor:
        """Return the harmless value, for every example.

        Args:
            size: Number of examples.
            places: Completions in a ranking.
        """
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

# With one token each, sums are means.
_lengths = partial(
    InputSpec, quantity="lengths", draw=_draw_lengths, example=1, unit="tokens", extremes=(1,)
)
_divergences = partial(
    InputSpec,
    quantity="divergences",
    draw=_draw_fractions,
    example=0.0,
    needs_reference=True,
    differentiable=True,
    gradient_optional=True,
    unit="nats",
)
_column = partial(InputSpec, draw=_draw_fractions, example=1.0)
_mean = partial(
    InputSpec, draw=_draw_fractions, example=0.0, needs_reference=True, shape=(), unit="nats"
)


def _logps(
    name: str, side: str, quantity: str, description: str, shape: tuple[str, ...] = ("B",)
) -> tuple[InputSpec, InputSpec]:
    """Return log-probs that the policy computes, and their counterpart of the reference."""
    policy = InputSpec(
        name,
        side,
        quantity,
        description,
        _draw_logps,
        example=-1.0,
        differentiable=True,
        shape=shape,
        unit="nats",
        extremes=(0.0, -1e3),
    )
    reference = replace(
        policy,
        name=f"ref_{name}",
        description=f"reference counterpart of {name}",
        of_reference=True,
        needs_reference=True,
        differentiable=False,
    )
    return policy, reference


_SPECS = (
    *_logps(
        "chosen_logps",
        "chosen",
        "logps",
        "policy log-prob of the chosen completion, summed over tokens",
    ),
    *_logps(
        "rejected_logps",
        "rejected",
        "logps",
        "policy log-prob of the rejected completion, summed over tokens",
    ),
    _lengths("chosen_lengths", "chosen", description="length of the chosen completion"),
    _lengths("rejected_lengths", "rejected", description="length of the rejected completion"),
    *_logps(
        "chosen_head_logps",
        "chosen",
        "head_logps",
        "policy log-prob of the first min(chosen, rejected length) tokens of the chosen completion",
    ),
    *_logps("rejected_head_logps", "rejected", "head_logps", "the same of the rejected completion"),
    _divergences(
        "chosen_divergences",
        "chosen",
        description="KL(reference || policy) at each token of the chosen completion, over the "
        "vocabulary, summed over tokens, with gradient",
    ),
    _divergences(
        "rejected_divergences", "rejected", description="the same of the rejected completion"
    ),
    _column(
        "margins",
        "pair",
        "margins",
        "by how much the chosen completion is better on the data's own scale: column margin, else "
        "the difference of the scores",
    ),
    _column(
        "preference_probabilities",
        "pair",
        "preference_probabilities",
        "probability that the chosen completion is preferred, 1 where the data do not say",
    ),
    _column(
        "chosen_win_rates",
        "chosen",
        "win_rates",
        "how often the chosen completion wins against the policy's own, its preference "
        "probability where the data do not say",
    ),
    _column(
        "rejected_win_rates",
        "rejected",
        "win_rates",
        "the same of the rejected completion, 1 less its opponent's preference probability where "
        "the data do not say",
        example=0.0,
    ),
    *_logps(
        "logps", "completion", "logps", "policy log-prob of the completion, summed over tokens"
    ),
    _lengths("lengths", "completion", description="length of the completion"),
    InputSpec(
        "desirable",
        "completion",
        "label",
        "whether the completion is desirable",
        _draw_labels,
        True,
        unit="bool",
    ),
    *_logps(
        "ranked_logps",
        "ranking",
        "logps",
        "policy log-probs of ranked completions, best first",
        shape=("B", "K"),
    ),
    _lengths(
        "ranked_lengths",
        "ranking",
        description="lengths of the ranked completions",
        shape=("B", "K"),
    ),
    _column(
        "ranked_scores",
        "ranking",
        "scores",
        "scores of the ranked completions on the data's own scale, K - 1 to 0 where the data have "
        "none",
        shape=("B", "K"),
    ),
    _mean(
        "kl",
        "mismatched",
        "kl",
        "mean log-ratio of mismatched completions, at least 0, without gradient",
        extremes=(0.0, 1e3),
    ),
    _mean(
        "mean_kl",
        "mismatched",
        "mean_kl",
        "kl of log-ratios per token, without gradient",
        unit="nats per token",
    ),
    _mean(
        "mean_log_ratio",
        "training",
        "mean_log_ratio",
        "mean log-ratio of all completions the loss has been given in training, the step's own "
        "included, without gradient",
    ),
    _mean(
        "mean_margin",
        "training",
        "mean_margin",
        "running mean over training of chosen minus rejected log-ratio, without gradient",
    ),
)

VOCABULARY: Mapping[str, InputSpec] = MappingProxyType({spec.name: spec for spec in _SPECS})
"""What a loss may ask for, by the name of a positional parameter."""

SCALARS = frozenset(spec.name for spec in _SPECS if spec.scalar)
"""Names of the inputs that are one number for the whole batch."""


def specs_of(names: Iterable[str]) -> list[InputSpec]:
    """Return the records of some inputs.

    Args:
        names: Names in the vocabulary.
    """
    return [VOCABULARY[name] for name in names]


def counterpart(name: str, *, quantity: str | None = None, of_reference: bool = False) -> str:
    """Return the name of another input of the same side, such as the lengths of log-probs.

    Args:
        name: The input.
        quantity: What is looked for; None for the same quantity.
        of_reference: Whether it must be the reference's.

    Raises:
        ValueError: If there is none.

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
