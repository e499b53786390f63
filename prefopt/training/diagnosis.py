"""What tells a preference run that goes wrong, from what was logged and from tables of pairs.

Each rule is a test: a limit that can be said in words, and passed by ``STANDARD_ERRORS`` standard
errors, so that noise does not warn. Sources: Razin et al. 2024, arXiv:2410.08847 (likelihood
displacement); Park et al. 2024, arXiv:2403.19159 (length bias); Rafailov et al. 2024,
arXiv:2406.02900 (over-optimisation). ``docs/trainer.md`` says why the limits are what they are.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

__all__ = [
    "DIAGNOSTICS",
    "Diagnostic",
    "PairSummary",
    "Point",
    "diagnostics_of_pairs",
    "likelihood_displacement",
    "over_fitting",
    "over_optimisation",
    "partial_correlation",
    "sampled_drift",
    "worst",
]

OF_REWARD = "length bias of the reward"
DIAGNOSTICS = (
    "likelihood displacement",
    "length bias of the data",
    OF_REWARD,
    "KL drift",
    "saturated pairs",
    "over-optimisation",
    "over-fitting",
)
"""Names of the diagnostics, in the order in which they are given."""

# One-sided, a normal number is beyond 4 standard errors once in 31574 looks; a run has up to a
# few hundred of them.
STANDARD_ERRORS = 4.0
# Fewer pairs say nothing; a window goes back until it has as many as the second number.
LEAST_PAIRS, WANTED_PAIRS = 30, 200
HALF_AS_LIKELY = math.log(2)
LEAST_KEPT = 0.05
LEAST_CORRELATION = 0.1  # a small effect, and 0.15 a medium one of a share (Cohen 1988)
LONGER_CHOSEN = 0.15


@dataclass(frozen=True)
class Diagnostic:
    """What one diagnostic found.

    Attributes:
        name: One of ``DIAGNOSTICS``.
        fires: Whether the user should look.
        text: What was seen, in plain words with its numbers, and what to do where it fires.
        value: The number that was tested; None where it was not measured.
    """

    name: str
    fires: bool
    text: str
    value: float | None = None


@dataclass(frozen=True)
class PairSummary:
    """What is known of some pairs; None for what is not.

    Attributes:
        source: Which pairs, in words.
        pairs: Their number.
        chosen_count: How many chosen (or desirable) completions there are.
        chosen_log_ratio: Mean log-ratio of policy and reference of these, in nats.
        chosen_log_ratio_std: Standard deviation of it, in nats.
        chosen_tokens: Their mean length.
        kept_mass: Mean of min(1, policy / reference) over all completions, rejected ones too.
        longer_chosen: Share of pairs whose chosen completion is the longer one, ties as one half.
        data_length_correlation: Of label and length difference, through the origin.
        reward_length_correlation: Of margin and length difference.
        reward_label_correlation: Of margin and label.
        saturated_pairs: Share of pairs whose gradient is less than a hundredth of the largest.
    """

    source: str
    pairs: int = 0
    chosen_count: int = 0
    chosen_log_ratio: float | None = None
    chosen_log_ratio_std: float | None = None
    chosen_tokens: float | None = None
    kept_mass: float | None = None
    longer_chosen: float | None = None
    data_length_correlation: float | None = None
    reward_length_correlation: float | None = None
    reward_label_correlation: float | None = None
    saturated_pairs: float | None = None


class Point(NamedTuple):
    """A number at one moment of training.

    Attributes:
        step: Optimiser steps so far.
        value: The number.
        error: Its standard error.
    """

    step: int
    value: float
    error: float = 0.0


# Of pairs -----------------------------------------------------------------------------------------


def diagnostics_of_pairs(summary: PairSummary) -> list[Diagnostic]:
    """Return the first five of ``DIAGNOSTICS``, from a summary of pairs."""
    rules = (
        _displacement,
        _length_bias_of_data,
        _length_bias_of_reward,
        _drift,
        _saturation,
    )
    return [rule(summary) for rule in rules]


def _displacement(summary: PairSummary) -> Diagnostic:
    mean, std = summary.chosen_log_ratio, summary.chosen_log_ratio_std
    if mean is None or std is None:
        why = "no loss of this run has a reference, or diagnostics were not logged"
        return _unknown("likelihood displacement", why)
    if summary.chosen_count < LEAST_PAIRS:
        return _too_few("likelihood displacement", summary.chosen_count)
    error = std / math.sqrt(summary.chosen_count)
    return likelihood_displacement(mean, error, summary.chosen_tokens, summary.source)


def likelihood_displacement(
    log_ratio: float,
    error: float,
    tokens: float | None,
    source: str,
    before: str = "the reference",
) -> Diagnostic:
    """Return whether the chosen completions have become less than half as likely.

    Args:
        log_ratio: Mean change of their log-probs since the start, in nats.
        error: Its standard error, in nats.
        tokens: Their mean length; None if it is not known.
        source: Which pairs, in words.
        before: Whose log-probs they have changed from, in words.
    """
    fires = -log_ratio - STANDARD_ERRORS * error > HALF_AS_LIKELY
    per_token = f", {log_ratio / tokens:+.3f} per token" if tokens else ""
    text = (
        f"On {source} the log-probs of chosen completions are {log_ratio:+.2f} nats from those of "
        f"{before}, on average (standard error {error:.2f}{per_token})"
    )
    if fires:
        text += (
            ": the preferred answers lose probability, as a rule to texts that are in no pair. Add "
            "'+ 0.2*sft' to the loss or take dpop, raise beta, lower the learning rate, or leave "
            "out pairs whose two answers are nearly alike."
        )
    else:
        text += f"; at {-HALF_AS_LIKELY:.2f} they would be half as likely."
    return Diagnostic("likelihood displacement", fires, text, log_ratio)


def _length_bias_of_data(summary: PairSummary) -> Diagnostic:
    name, share = "length bias of the data", summary.longer_chosen
    if share is None:
        return _unknown(name, "there are no pairs, or diagnostics were not logged")
    if summary.pairs < LEAST_PAIRS:
        return _too_few(name, summary.pairs)
    distance = abs(share - 0.5)
    fires = distance >= LONGER_CHOSEN and distance > STANDARD_ERRORS * 0.5 / math.sqrt(
        summary.pairs
    )
    text = f"Of {summary.source}, {share:.0%} have the longer completion as the chosen one"
    if fires:
        which = "longer" if share > 0.5 else "shorter"
        text += (
            f": preferring the {which} answer, whatever it says, is right that often. Look at "
            "accuracy on pairs of like length, and take a loss that corrects for length: r_dpo, "
            "simpo, ld_alpha=0.5 or length_normalize=True."
        )
    else:
        text += "; up to 65%, and down to 35%, length says little."
    return Diagnostic(name, fires, text, share)


def _length_bias_of_reward(summary: PairSummary) -> Diagnostic:
    name = OF_REWARD
    reward, data = summary.reward_length_correlation, summary.data_length_correlation
    label = summary.reward_label_correlation
    if reward is None or data is None or label is None:
        why = "no rewards on pairs, all lengths alike, or diagnostics were not logged"
        return _unknown(name, why)
    if summary.pairs < LEAST_PAIRS:
        return _too_few(name, summary.pairs)
    text = (
        f"On {summary.source} the margin of rewards correlates with the difference in length by "
        f"{reward:+.2f}, the labels by {data:+.2f}"
    )
    which = "longer" if reward > 0 else "shorter"
    partial = partial_correlation(data, reward, label)
    found = []
    if _explains_half(reward, summary.pairs):
        found.append(f"length explains {reward**2:.0%} of the margin")
    if _credits_length(reward, partial, summary.pairs):
        found.append(
            f"the reward prefers {which} answers more than the labels do, which among pairs of "
            f"one margin correlate with length by {partial:+.2f}"
        )
    if found:
        text += (
            f": {', and '.join(found)}. Take a loss that corrects for length (r_dpo, simpo, "
            "ld_alpha=0.5, length_normalize=True), and compare answers of equal length."
        )
    else:
        text += "; that is no more than the labels explain."
    return Diagnostic(name, bool(found), text, reward)


def _explains_half(reward: float, pairs: int) -> bool:
    """Return whether the difference in length explains more than half of the margin's variance."""
    error = (1 - reward**2) / math.sqrt(pairs)
    return abs(reward) - STANDARD_ERRORS * error > math.sqrt(0.5)


def _credits_length(reward: float, partial: float, pairs: int) -> bool:
    """Return whether the reward credits length more than the labels do.

    Of pairs with the same margin, whichever is longer should win as often as the other. A partial
    correlation of label and length, given the margin, against that of margin and length means that
    the reward gives length too much.
    """
    excess = -partial if reward > 0 else partial
    error = math.sqrt(max(0.0, 1 - partial**2) / (pairs - 2))
    return (
        abs(reward) > max(LEAST_CORRELATION, STANDARD_ERRORS / math.sqrt(pairs))
        and excess > LEAST_CORRELATION
        and excess > STANDARD_ERRORS * error
    )


def partial_correlation(first: float, second: float, between: float) -> float:
    """Return the correlation of x and y given z.

    Args:
        first: Of x and y.
        second: Of z and y.
        between: Of x and z.

    >>> round(partial_correlation(0.6, 0.5, 0.8), 6)
    0.3849
    """
    scale = math.sqrt(max(0.0, 1 - second**2) * max(0.0, 1 - between**2))
    if scale < 1e-6:  # z is y or x itself: nothing is left of it
        return 0.0
    return max(-1.0, min(1.0, (first - second * between) / scale))


def _drift(summary: PairSummary) -> Diagnostic:
    """Return whether almost no completion of the data keeps its probability.

    The bound is Bretagnolle and Huber's (1979): 1 - TV(P, Q) >= exp(-KL(P || Q)) / 2.
    """
    name, kept = "KL drift", summary.kept_mass
    if kept is None:
        return _unknown(name, "no loss of this run has a reference, or diagnostics were not logged")
    completions = 2 * summary.pairs or summary.chosen_count
    if completions < LEAST_PAIRS:
        return _too_few(name, completions)
    error = math.sqrt(LEAST_KEPT * (1 - LEAST_KEPT) / completions)
    fires = LEAST_KEPT - kept > STANDARD_ERRORS * error
    text = (
        f"On {summary.source} the policy keeps {kept:.1%} of the probability that the reference "
        "gives to chosen and rejected completions together"
    )
    if kept > 0:
        bound = max(0.0, -math.log(2 * kept))
        text += f" (if these are as if sampled from it, the KL is at least {bound:.1f} nats)"
    if fires:
        text += f": it has gone where the data say nothing. {_NEARER}"
    else:
        text += f"; below {LEAST_KEPT:.0%} it would be far from the data."
    return Diagnostic(name, fires, text, kept)


_NEARER = "Raise beta, lower the learning rate, or take an earlier checkpoint."


def sampled_drift(kl: float, low: float, pairs: int) -> Diagnostic:
    """Return whether KL(policy || reference), of samples, is beyond what the data can support.

    The best of n samples is at a KL of at most log n - (n - 1) / n nats (Beirami et al. 2024,
    arXiv:2401.01879): a policy beyond log n is farther from the reference than the best of as many
    samples as there are pairs.

    Args:
        kl: In nats per completion.
        low: Lower end of its interval.
        pairs: That were trained on.
    """
    limit = math.log(max(pairs, 2))
    fires = low > limit
    text = (
        f"Samples of the policy are at a KL of {kl:.1f} nats from the reference (at least "
        f"{low:.1f}); the best of {pairs} samples, as many as there are training pairs, is within "
        f"{limit:.1f}"
    )
    return Diagnostic("KL drift", fires, f"{text}. {_NEARER}" if fires else f"{text}.", kl)


def _saturation(summary: PairSummary) -> Diagnostic:
    name, share = "saturated pairs", summary.saturated_pairs
    if share is None:
        return _unknown(name, "no rewards on pairs, or diagnostics were not logged")
    if summary.pairs < LEAST_PAIRS:
        return _too_few(name, summary.pairs)
    fires = share - 0.5 > STANDARD_ERRORS * 0.5 / math.sqrt(summary.pairs)
    text = f"Of {summary.source}, {share:.0%} teach nothing any more (gradient weight below 0.01)"
    if fires:
        text += (
            ": more steps move the policy by what is left, which is mostly noise. Stop earlier, "
            "take more pairs or fewer epochs, or a loss that does not push pairs further than a "
            "target, such as ipo."
        )
    else:
        text += "; beyond 50% more steps are of little use."
    return Diagnostic(name, fires, text, share)


# Along training -----------------------------------------------------------------------------------


def over_fitting(
    held_out: Sequence[Point], training: Sequence[Point], name: str = "held-out"
) -> Diagnostic:
    """Return whether the held-out loss rises from its lowest value while the training loss falls.

    Args:
        held_out: Losses on pairs that are not trained on, with their standard errors.
        training: Losses of training.
        name: Of the held-out set.
    """
    if len(held_out) < 2 or len(training) < 2:
        why = "it takes two evaluations with a loss: give eval_dataset and eval_strategy"
        return _unknown("over-fitting", why)
    best, last = min(held_out, key=lambda point: point.value), held_out[-1]
    before, after = _near(training, best.step), _near(training, last.step)
    rise = last.value - best.value
    error = math.hypot(best.error, last.error)
    fires = error > 0 and rise > STANDARD_ERRORS * error and after < before
    text = (
        f"The {name} loss was lowest, {best.value:.3f}, at step {best.step} and is "
        f"{last.value:.3f} at step {last.step} (standard error of the difference {error:.3f}), "
        f"while the training loss went from {before:.3f} to {after:.3f}"
    )
    if fires:
        text += (
            f": training learns its own pairs by heart. Take the model of step {best.step} "
            "(load_best_model_at_end=True), fewer epochs, a lower learning rate, LoRA, or more "
            "data."
        )
    else:
        text += "."
    return Diagnostic("over-fitting", fires, text, rise)


def over_optimisation(
    quality: Sequence[Point], margins: Sequence[Point], name: str = "held-out accuracy"
) -> Diagnostic:
    """Return whether a measure of quality falls from its best while the margin grows.

    Args:
        quality: A measure that is not trained on: held-out accuracy, or the true reward of samples,
            with its standard errors.
        margins: Mean margins of rewards in training, or on held-out pairs.
        name: What quality is.
    """
    if len(quality) < 2 or len(margins) < 2:
        why = "it takes two evaluations of pairs, or of a reward (eval_reward)"
        return _unknown("over-optimisation", why)
    best, last = max(quality, key=lambda point: point.value), quality[-1]
    before, after = _near(margins, best.step), _near(margins, last.step)
    fall = best.value - last.value
    error = math.hypot(best.error, last.error)
    fires = error > 0 and fall > STANDARD_ERRORS * error and after > before
    text = (
        f"The {name} was best, {best.value:.3f}, at step {best.step} and is {last.value:.3f} at "
        f"step {last.step} (standard error of the difference {error:.3f}), while the margin went "
        f"from {before:.3f} to {after:.3f}"
    )
    if fires:
        text += (
            ": training still raises what it measures itself by, and no longer what it stands "
            f"for. Take the model of step {best.step}, raise beta, or train less."
        )
    else:
        text += "."
    return Diagnostic("over-optimisation", fires, text, fall)


def _near(points: Sequence[Point], step: int) -> float:
    """Return the value that was known at a step: the last one up to it, else the first."""
    return next((point.value for point in reversed(points) if point.step <= step), points[0].value)


def _unknown(name: str, why: str) -> Diagnostic:
    return Diagnostic(name, False, f"Not measured: {why}.")


def _too_few(name: str, count: int) -> Diagnostic:
    return _unknown(name, f"{count} pairs of one epoch say too little, it takes {LEAST_PAIRS}")


def worst(found: Iterable[Diagnostic]) -> Diagnostic:
    """Return one that fires, else one that was measured, else any."""
    return max(found, key=lambda one: (one.fires, one.value is not None))
