"""Metrics as (sum, count) pairs, so that a mean does not depend on the batches."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prefopt.losses.registry import LossOutput
from prefopt.objective.objective import Objective
from prefopt.objective.preference_index import PreferenceIndex


class MetricSums:
    """Running sums and counts by name, on the device they come from: no wait per step."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, total: Tensor, count: Tensor | float) -> None:
        """Add a sum of values, (), and their number to a metric."""
        total = total.detach().to(torch.float64)
        # A number is filled in, not copied: a copy to a GPU would wait for what it computes.
        count = count.double() if isinstance(count, Tensor) else torch.full_like(total, count)
        pair = torch.stack([total, count])
        self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def add_values(self, name: str, values: Tensor, mask: Tensor | None = None) -> None:
        """Add each value, (n,), that the mask counts; none at all keep the name known."""
        if mask is None:
            self.add(name, values.detach().sum(), float(values.numel()))
        else:
            self.add(name, torch.where(mask, values.detach(), 0).sum(), mask.sum())

    def add_columns(self, columns: Mapping[str, Tensor], mask: Tensor | None = None) -> None:
        """Add values of several metrics, each (n,), that one mask, (n,), counts; in few steps."""
        table = torch.stack([column.detach().double() for column in columns.values()])
        totals = (table if mask is None else torch.where(mask, table, 0)).sum(1)
        if mask is None:
            counts = torch.full_like(totals, table.shape[1])
        else:
            counts = mask.sum().double().expand_as(totals)
        pairs = torch.stack([totals, counts], 1).unbind()
        for name, pair in zip(columns, pairs, strict=True):
            self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    @property
    def names(self) -> list[str]:
        """Names of all metrics that are known, in alphabetical order."""
        return sorted(self._sums)

    def know(self, names: Sequence[str], device: torch.device) -> None:
        """Have metrics of these names, on a device, whether or not a batch had them."""
        for name in names:
            if name not in self._sums:
                self._sums[name] = torch.zeros(2, dtype=torch.float64, device=device)

    def state_dict(self) -> dict[str, list[float]]:
        """Return the sum and the count of each metric, for a checkpoint."""
        return {name: pair.tolist() for name, pair in self._sums.items()}

    def load_state_dict(self, state: Mapping[str, Sequence[float]], device: Any = None) -> None:
        """Go on with sums and counts in place of those that there are."""
        self._sums = {
            name: torch.tensor(pair, dtype=torch.float64, device=device)
            for name, pair in state.items()
        }

    def copy(self) -> "MetricSums":
        """Return the same sums, to go back to."""
        other = MetricSums()
        other.go_back_to(self)
        return other

    def go_back_to(self, other: "MetricSums") -> None:
        """Take the sums of a copy that was made before."""
        self._sums = dict(other._sums)  # tensors are replaced, never changed

    def means(self, reduce: Any = None) -> dict[str, float]:
        """Return sum / count of every metric that has a count, and forget everything.

        ``reduce`` is that of ``totals``.
        """
        return {name: total / count for name, (total, count) in self.totals(reduce).items()}

    def totals(self, reduce: Any = None) -> dict[str, tuple[float, float]]:
        """Return sum and count of every metric that has a count, and forget everything.

        ``reduce`` sums a tensor over all processes, which must know the same names; None for one
        process.
        """
        names = self.names
        if not names:
            return {}
        table = torch.stack([self._sums[name] for name in names])
        table = table if reduce is None else reduce(table)
        self._sums.clear()
        rows = table.tolist()
        return {name: (row[0], row[1]) for name, row in zip(names, rows, strict=True) if row[1]}


def add_batch_metrics(
    sums: MetricSums,
    objective: Objective,
    outputs: Sequence[LossOutput],
    counts: Tensor,
    index: PreferenceIndex,
    logps: Tensor,
    lengths: Tensor,
) -> None:
    """Add what TRL logs, under its names: rewards, accuracies, margins, log-probs, and lengths.

    ``rewards/*`` come from the first loss of the objective that defines rewards. On pairs an
    accuracy is the share of pairs with a positive margin, ties counting as not, whether the loss
    sees pairs or single completions; of single completions
    ``rewards/margins`` is the mean reward of the desirable minus that of the undesirable, taken
    where both are known.

    There is an output for each term, and in ``counts``, (terms,), what it takes its mean over.
    ``logps``, in nats, and ``lengths``, in tokens, are those of the completions, (N,).
    """
    if len(outputs) > 1:
        for term, output, count in zip(objective.terms, outputs, counts, strict=True):
            sums.add(f"loss/{term.loss.name}", output.losses.sum(), count)
    for side, numbers, mask in sides(objective, index):
        sums.add_values(f"logps/{side}", logps.index_select(0, numbers), mask)
        sums.add_values(f"lengths/{side}", lengths.index_select(0, numbers), mask)
    for term, output in zip(objective.terms, outputs, strict=True):
        if output.chosen_rewards is not None and output.rejected_rewards is not None:
            margins = output.chosen_rewards - output.rejected_rewards
            sums.add_values("rewards/chosen", output.chosen_rewards)
            sums.add_values("rewards/rejected", output.rejected_rewards)
            sums.add_values("rewards/margins", margins)
            sums.add_values("rewards/accuracies", (margins > 0).float())
            return
        if output.rewards is not None:
            desirable = index.of_rows(term.rows).labels
            sums.add_values("rewards/chosen", output.rewards, desirable)
            sums.add_values("rewards/rejected", output.rewards, ~desirable)
            of_pairs = pair_margins(output, index.of_rows(term.rows), len(logps))
            if of_pairs is not None:  # of no pairs where the data are unpaired
                sums.add_values("rewards/accuracies", (of_pairs > 0).float())
            return


def pair_margins(output: LossOutput, index: PreferenceIndex, completions: int) -> Tensor | None:
    """Return the reward of the chosen less that of the rejected completion of each pair; (P,).

    A loss on single completions gives the pairs of the data their margins too.

    Args:
        output: Of a loss.
        index: Of the rows that it looks at.
        completions: Their number in the batch, N.

    Returns:
        None where the loss defines no rewards.
    """
    if output.chosen_rewards is not None and output.rejected_rewards is not None:
        return output.chosen_rewards - output.rejected_rewards
    if output.rewards is None:
        return None
    rewards = output.rewards.new_zeros(completions).index_copy(0, index.unpaired, output.rewards)
    return rewards.index_select(0, index.chosen) - rewards.index_select(0, index.rejected)


def add_log_ratios(
    sums: MetricSums, objective: Objective, index: PreferenceIndex, log_ratios: Tensor
) -> None:
    """Add by how much completions are more likely than at the start: one scale for all losses.

    Args:
        sums: Where they are added, as ``log_ratios/*``.
        objective: The losses.
        index: Which completions are compared.
        log_ratios: Of policy and reference, of each completion; (N,), nats.
    """
    for side, numbers, mask in sides(objective, index):
        sums.add_values(f"log_ratios/{side}", log_ratios.index_select(0, numbers), mask)
    margins = log_ratios.index_select(0, index.chosen) - log_ratios.index_select(0, index.rejected)
    sums.add_values("log_ratios/margins", margins)
    sums.add_values("log_ratios/accuracies", (margins > 0).float())


def add_token_metrics(
    sums: MetricSums,
    objective: Objective,
    index: PreferenceIndex,
    lengths: Tensor,
    *,
    entropies: Tensor,
    hits: Tensor,
    mean_logits: Tensor,
) -> None:
    """Add what TRL logs of single tokens, under its names: means over completion tokens.

    ``entropy`` is over all completions; ``mean_token_accuracy``, the share of tokens that were the
    most probable ones, over chosen (or desirable) completions; ``logits/*`` over either side.

    All tensors are sums over the tokens of each completion, (N,): ``entropies`` of the predictions
    in nats, ``hits`` how many tokens were the most probable ones, ``mean_logits``.
    """
    sums.add("entropy", entropies.sum(), lengths.sum())
    for side, numbers, mask in sides(objective, index):
        tokens, right, logits = (
            of_completions.index_select(0, numbers)
            if mask is None
            # Masked, not picked: what is picked by a mask has a size that a GPU must be asked for.
            else of_completions.index_select(0, numbers) * mask
            for of_completions in (lengths, hits, mean_logits)
        )
        if side == "chosen":
            sums.add("mean_token_accuracy", right.sum(), tokens.sum())
        sums.add(f"logits/{side}", logits.sum(), tokens.sum())


def sides(
    objective: Objective, index: PreferenceIndex
) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """Yield the sides of a batch: its name, its completions, and which of these belong to it.

    Where losses are for rows of one kind each, every kind is seen in its own way.
    """
    for rows in dict.fromkeys(term.rows for term in objective.terms):
        terms = [term for term in objective.terms if term.rows == rows]
        its = index.of_rows(rows)
        if any(term.loss.data_kind == "unpaired" for term in terms):
            yield "chosen", its.unpaired, its.labels
            yield "rejected", its.unpaired, ~its.labels
        else:
            yield "chosen", its.chosen, None
            yield "rejected", its.rejected, None


class BatchRewards(NamedTuple):
    """Rewards of a batch: of its pairs, and of its unpaired completions with their labels.

    Attributes:
        chosen: Rewards of the better completions of pairs; (P,), None where no loss gives some.
        rejected: Those of the others; (P,).
        unpaired: Rewards of completions with a label; (U,), None where no loss gives some.
        labels: Their labels; (U,), bool.
        pairs: Numbers of the better completions in the batch; (P,).
        completions: Numbers of the unpaired ones; (U,).
    """

    chosen: Tensor | None = None
    rejected: Tensor | None = None
    unpaired: Tensor | None = None
    labels: Tensor | None = None
    pairs: Tensor | None = None
    completions: Tensor | None = None


def batch_rewards(
    objective: Objective, outputs: Sequence[LossOutput], index: PreferenceIndex
) -> BatchRewards:
    """Return the rewards of the first loss that defines some; of each kind of rows, if it has one.

    Args:
        objective: The losses.
        outputs: One per term.
        index: Which of the completions are compared.
    """
    found: dict[str | None, LossOutput] = {}
    for term, output in zip(objective.terms, outputs, strict=True):
        if output.chosen_rewards is not None or output.rewards is not None:
            found.setdefault(term.rows, output)
    columns: list[list[Tensor]] = [[] for _ in BatchRewards._fields]
    for rows, output in found.items():
        its = index.of_rows(rows)
        parts: tuple[Tensor | None, ...]
        if output.chosen_rewards is not None:
            parts = (output.chosen_rewards, output.rejected_rewards, None, None, its.chosen, None)
        else:
            parts = (None, None, output.rewards, its.labels, None, its.unpaired)
        for column, part in zip(columns, parts, strict=True):
            column += [] if part is None else [part]
    return BatchRewards(*(torch.cat(column) if column else None for column in columns))


def with_margins(means: dict[str, float]) -> dict[str, float]:
    """Add ``rewards/margins`` of unpaired data, the difference of the means of both sides."""
    if "rewards/chosen" in means and "rewards/rejected" in means:
        means.setdefault("rewards/margins", means["rewards/chosen"] - means["rewards/rejected"])
    return means
