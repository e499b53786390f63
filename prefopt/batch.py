"""What a forward pass is given, and what a micro-batch must know of its optimiser step."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from prefopt.engine.layout import Example, Layout
from prefopt.objective.batch_losses import BatchLoss
from prefopt.objective.preference_index import PreferenceIndex
from prefopt.records import TensorRecord


@dataclass(frozen=True)
class Texts(TensorRecord):
    """Completions laid out for a model.

    Attributes:
        tokens: The layout.
        examples: Token ids of the prompts and completions that it holds, and their masks.
    """

    tokens: Layout
    examples: tuple[Example, ...]


class SourceRow(NamedTuple):
    """A row of the data as they were given.

    Attributes:
        number: From 0; None where the rows do not say.
        dataset: Which dataset it is of; None if there is one only.
    """

    number: int | None = None
    dataset: str | None = None


@dataclass(frozen=True)
class Batch(TensorRecord):
    """Some examples: what one forward pass scores.

    Attributes:
        texts: Their completions.
        index: How these are compared.
        mismatched: For KTO's KL estimate, completions of other prompts: laid out alone, or as the
            ``continuation`` of ``texts``; None where no loss takes the estimate.
        rows: Where each example stands in the data as they were given.
    """

    texts: Texts
    index: PreferenceIndex
    mismatched: Texts | None = None
    rows: tuple[SourceRow, ...] = ()

    @property
    def continues(self) -> bool:
        """Whether the mismatched completions are scored in the same pass as the others."""
        return self.texts.tokens.continuation is not None


@dataclass(frozen=True)
class StepContext(TensorRecord):
    """What a micro-batch must know of its optimiser step before it is scored with gradient.

    Attributes:
        counts: Over what each loss takes its mean in this micro-batch; (terms,). With a
            load-balancing loss, the tokens that it is taken over come last; (terms + 1,).
        denominators: The same over all micro-batches of all processes.
        kl: KTO's KL estimates by input name, () each; None where the micro-batch is the whole step
            and its own mismatched completions tell.
        running_means: Means over training by input name, for each term; None where the micro-batch
            is the whole step.
        batch_losses: Losses that depend on all examples of the step, by number of the term.
    """

    counts: Tensor
    denominators: Tensor
    kl: Mapping[str, Tensor] | None = None
    running_means: tuple[Mapping[str, Tensor], ...] | None = None
    batch_losses: Mapping[int, BatchLoss] = field(default_factory=dict)
