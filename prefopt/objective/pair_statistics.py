"""What diagnostics know of single pairs, summed while training: exact over batches and processes.

Length correlations are taken through the origin, sum(x y) / sqrt(sum(x^2) sum(y^2)): which of two
completions is called the first says nothing, and with either order counted once all means are 0.
That of length with the labels is then mean(d) / sqrt(mean(d^2)), where d is the length of the
chosen completion less that of the rejected one.
"""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from prefopt.losses.registry import LossOutput
from prefopt.objective.metrics import MetricSums, pair_margins, sides
from prefopt.objective.objective import Objective
from prefopt.objective.preference_index import PreferenceIndex

# Names of what is logged; see docs/trainer.md.
PAIR_STATISTICS = tuple(
    f"diagnostics/{name}"
    for name in (
        "chosen_count",
        "chosen_log_ratio",
        "chosen_log_ratio_std",
        "kept_mass",
        "longer_chosen",
        "loss_standard_error",
        "pair_accuracy",
        "pairs",
        "saturated_pairs",
        "data_length_correlation",
        "reward_label_correlation",
        "reward_length_correlation",
    )
)
# A pair is saturated where its gradient is scaled by less than this: sigmoid(-margin) in DPO.
LEAST_WEIGHT = 0.01

# Margins of this size are rounding errors of log-probs: policy and reference are still one.
_ROUNDING = 1e-4

# Sums from which some of them are made; not logged.
_SUMS = "sums/"


def add_pair_statistics(
    sums: MetricSums,
    objective: Objective,
    outputs: Sequence[LossOutput],
    counts: Tensor,
    index: PreferenceIndex,
    logps: Tensor,
    ref_logps: Tensor | None,
    lengths: Tensor,
) -> None:
    """Add what ``pair_statistics`` makes its numbers of.

    Args:
        sums: Added to.
        objective: The losses.
        outputs: One per term.
        counts: What each term takes its mean over; (terms,).
        index: Which completions are compared.
        logps: Of the policy; (N,), nats.
        ref_logps: Of the reference; (N,), nats; None if no loss needs it.
        lengths: Of the completions; (N,), tokens.
    """
    for number, (output, count) in enumerate(zip(outputs, counts, strict=True)):
        sums.add_columns(_moments(f"loss/{number}", output.losses))
        sums.add(f"{_SUMS}loss/{number}/count", count, 1.0)
    if ref_logps is not None:
        log_ratios = (logps - ref_logps).double()
        for side, numbers, mask in sides(objective, index):
            its = log_ratios.index_select(0, numbers)
            columns = {"diagnostics/kept_mass": its.exp().clamp(max=1)}
            sums.add_columns(columns | (_moments("chosen", its) if side == "chosen" else {}), mask)
    for term, output in zip(objective.terms, outputs, strict=True):
        its_index = index.of_rows(term.rows)
        margins = pair_margins(output, its_index, len(logps))
        if margins is not None and len(margins):
            done = output.losses == 0 if output.losses.shape == margins.shape else None
            _add_pairs(sums, margins, its_index, lengths, done)
            break


def _add_pairs(
    sums: MetricSums,
    margins: Tensor,
    index: PreferenceIndex,
    lengths: Tensor,
    done: Tensor | None,
) -> None:
    """Add what is known of the pairs of a batch, from their margins; (P,).

    Those that are ``done``, (P,), have no loss any more: a hinge's gradient is 0 there.
    """
    margins = margins.detach().double()
    gaps = lengths.index_select(0, index.chosen) - lengths.index_select(0, index.rejected)
    gaps = gaps.double()
    saturated = (-margins).sigmoid() < LEAST_WEIGHT
    columns = {
        f"{_SUMS}margin_gap": margins * gaps,
        "diagnostics/longer_chosen": 0.5 + 0.5 * gaps.sign(),
        "diagnostics/pair_accuracy": margins > 0,
        "diagnostics/saturated_pairs": saturated if done is None else saturated | done,
    }
    sums.add_columns(columns | _moments("margin", margins) | _moments("gap", gaps))


def _moments(name: str, values: Tensor) -> dict[str, Tensor]:
    """Return values and their squares by the names of their sums."""
    values = values.double()
    return {f"{_SUMS}{name}": values, f"{_SUMS}{name}/squared": values.square()}


def pair_statistics(
    objective: Objective, totals: Mapping[str, tuple[float, float]]
) -> dict[str, float]:
    """Return the numbers that sums give, and the means of all others.

    Args:
        objective: The losses.
        totals: The sum and the count of each metric, over all processes.

    Returns:
        By name; those that cannot be known are left out.
    """
    means = {name: total / count for name, (total, count) in totals.items() if _SUMS not in name}
    means = dict(sorted(means.items(), key=lambda item: item[0] in PAIR_STATISTICS))  # at the end
    of = {name.split(_SUMS)[1]: pair for name, pair in totals.items() if _SUMS in name}
    if "chosen" in of:
        means["diagnostics/chosen_count"] = of["chosen"][1]
        means["diagnostics/chosen_log_ratio"] = of["chosen"][0] / of["chosen"][1]
        means["diagnostics/chosen_log_ratio_std"] = math.sqrt(_variance(of, "chosen"))
    if "margin" in of:
        means |= _of_margins(of)
    if "loss/0" in of:
        means["diagnostics/loss_standard_error"] = _loss_standard_error(objective, of)
    return means


def _of_margins(of: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Return the number of pairs, and correlations of margin, label and length difference."""
    pairs = of["margin"][1]
    margins, lengths = (math.sqrt(of[f"{name}/squared"][0]) for name in ("margin", "gap"))
    margins = margins if margins > _ROUNDING * math.sqrt(pairs) else 0.0
    correlations = {
        "data_length": (of["gap"][0], math.sqrt(pairs) * lengths),
        "reward_label": (of["margin"][0], math.sqrt(pairs) * margins),
        "reward_length": (of["margin_gap"][0], margins * lengths),
    }
    return {"diagnostics/pairs": pairs} | {
        f"diagnostics/{name}_correlation": product / scale
        for name, (product, scale) in correlations.items()
        if scale
    }


def _variance(of: Mapping[str, tuple[float, float]], name: str) -> float:
    """Return the unbiased variance of values; 0 of a single one."""
    (total, count), (squares, _) = of[name], of[f"{name}/squared"]
    return max(0.0, squares - total * total / count) / max(1.0, count - 1)


def _loss_standard_error(objective: Objective, of: Mapping[str, tuple[float, float]]) -> float:
    """Return that of the loss over another set of examples; of a sum at most (terms may agree)."""
    errors = 0.0
    for number, term in enumerate(objective.terms):
        name = f"loss/{number}"
        if name in of and of[f"{name}/count"][0]:
            spread = math.sqrt(_variance(of, name) * of[name][1])
            errors += abs(term.weight) * spread / of[f"{name}/count"][0]
    return errors
