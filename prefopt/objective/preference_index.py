"""How the completions of a batch may be compared: as pairs, by their labels, as rankings."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from prefopt.records import TensorRecord


@dataclass(frozen=True)
class Ranking(TensorRecord):
    """The rankings of a batch that have the same number of completions.

    Attributes:
        index: Numbers of the completions, best first; (G, K).
        scores: Their scores on the data's own scale, K - 1 to 0 where the data have none; (G, K).
    """

    index: Tensor
    scores: Tensor


@dataclass(frozen=True)
class PreferenceIndex(TensorRecord):
    """Which of the N completions of a batch are compared, and what the data say of them.

    Attributes:
        chosen: The better completion of each pair; (P,), int64.
        rejected: The other; (P,), int64.
        unpaired: Every completion with a label; (U,), int64.
        labels: Whether it is desirable; (U,), bool.
        preferred: The best completion of each example, or each desirable one; (S,), int64.
        rankings: For each number K of ranked completions that occurs, the rankings of that size.
        margins: By how much the chosen completion is better; (P,), None if the data do not say.
        preference_probabilities: That the chosen completion is preferred; (P,), or None.
        chosen_win_rates: How often the chosen completion wins against the policy's own; (P,), or
            None.
        rejected_win_rates: The same of the rejected one; (P,), or None.
        pair_weights: Weight of each pair; (P,), None where the data have no column ``weight``.
        unpaired_weights: Of each completion with a label; (U,), or None.
        preferred_weights: Of each preferred completion; (S,), or None.
        ranked_weights: Of each ranking, those of the smallest K first; (G,), or None.
        by_kind: The same of the rows of each kind of data; empty unless asked for.
    """

    chosen: Tensor
    rejected: Tensor
    unpaired: Tensor
    labels: Tensor
    preferred: Tensor
    rankings: tuple[Ranking, ...] = ()
    margins: Tensor | None = None
    preference_probabilities: Tensor | None = None
    chosen_win_rates: Tensor | None = None
    rejected_win_rates: Tensor | None = None
    pair_weights: Tensor | None = None
    unpaired_weights: Tensor | None = None
    preferred_weights: Tensor | None = None
    ranked_weights: Tensor | None = None
    by_kind: Mapping[str, "PreferenceIndex"] = field(default_factory=dict)

    def of_rows(self, kind: str | None) -> "PreferenceIndex":
        """Return the index of the rows of one kind (``paired``, ...), or of all."""
        return self if kind is None else self.by_kind[kind]

    def weights_of(self, data_kind: str) -> Tensor | None:
        """Return the weight of each unit that a loss sees; None where all count as one."""
        return {
            "paired": self.pair_weights,
            "unpaired": self.unpaired_weights,
            "preferred": self.preferred_weights,
            "ranked": self.ranked_weights,
        }[data_kind]
