"""Options that go with every loss they make sense for: its inputs are changed, not the loss.

Each is a transform of a loss's inputs before it is called, in this order, and is written here once:

- ``ld_alpha``: tokens beyond the shorter completion's length count less (LD-DPO, Liu et al. 2024,
  arXiv:2409.06411), for policy and reference alike;
- ``f_divergence_type``: the log-ratio log r gives way to f'(r) of another divergence than reverse
  KL (f-DPO, Wang et al. 2023, arXiv:2309.16240, in the parametrisation of TRL 1.16), 0 at r = 1;
- ``length_normalize``: log-probs per token in place of sums, and so the divergences beside them;
- ``margin_scale``: the margin of rewards must exceed an offset, ``margin_scale`` times the margin
  of the data (ODPO, Amini et al. 2024, arXiv:2402.10571, its offset the identity).

KTO's KL estimate and the running means of other losses are made of the transformed log-probs too.

Beside them ``beta_schedule`` moves beta over training, and ``use_weighting`` weighs pairs by how
likely the policy is to produce them (WPO, Zhou et al. 2024, arXiv:2406.11827).

Which of them a loss can take follows from its inputs, from its values at made-up ones, and from
what it was registered to refuse: so there is no list of losses here.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.losses.common import (
    average_logps,
    check_choice,
    check_not_negative,
    head_and_tail,
    require_margin,
)
from prefopt.losses.contract import make_inputs
from prefopt.losses.registry import Loss, LossOutput
from prefopt.losses.vocabulary import VOCABULARY, counterpart, specs_of

F_DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
BETA_SCHEDULES = ("constant", "linear", "cosine")

# Fields that belong to another option.
_OF_OPTION = {"f_alpha_divergence_coef": "f_divergence_type", "beta_final": "beta_schedule"}

# Below this distance from 1 an alpha-divergence is reverse KL, as in TRL.
_ALPHA_IS_1 = 1e-6

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class LossOptions:
    """Options of every loss; all are off by default.

    Fields are described by their ``help``, with those of ``PreferenceConfig`` of the same names.

    Raises:
        ValueError: If a value is out of its range, or belongs to an option that is off.
    """

    length_normalize: bool = field(
        default=False,
        metadata={"help": "Log-probs per token instead of sums, as ln_dpo does to dpo."},
    )
    margin_scale: float = field(
        default=0.0,
        metadata={
            "help": "The margin of rewards must exceed this times the margin of the data (column "
            "margin, else the difference of scores), as in ODPO."
        },
    )
    beta_schedule: str = field(
        default="constant",
        metadata={
            "help": "How beta goes to beta_final over training; it is logged as `beta`.",
            "choices": list(BETA_SCHEDULES),
        },
    )
    beta_final: float | None = field(
        default=None, metadata={"help": "Beta at the end of training, for a beta_schedule."}
    )
    ld_alpha: float = field(
        default=1.0,
        metadata={
            "help": "Weight of the tokens beyond the shorter completion's length, from 0 to 1 "
            "(LD-DPO), for policy and reference. Default: 1."
        },
    )
    f_divergence_type: str = field(
        default="reverse_kl",
        metadata={
            "help": "Divergence from the reference (f-DPO). Default: reverse_kl, the log-ratio.",
            "choices": list(F_DIVERGENCES),
        },
    )
    f_alpha_divergence_coef: float = field(
        default=0.5,
        metadata={"help": "Coefficient of alpha_divergence, 1 minus the paper's (default 0.5)."},
    )
    use_weighting: bool = field(
        default=False,
        metadata={"help": "Weight pairs by how probable they are for the policy, at most 1 (WPO)."},
    )

    def __post_init__(self) -> None:
        check_choice("f_divergence_type", self.f_divergence_type, F_DIVERGENCES)
        check_choice("beta_schedule", self.beta_schedule, BETA_SCHEDULES)
        check_not_negative(margin_scale=self.margin_scale)
        if not 0 <= self.ld_alpha <= 1:
            raise ValueError(f"ld_alpha must be from 0 to 1, got {self.ld_alpha}")
        coefficient = self.f_alpha_divergence_coef
        if not math.isfinite(coefficient):
            raise ValueError(f"f_alpha_divergence_coef must be finite, got {coefficient}")
        if self.f_divergence_type != "alpha_divergence" and coefficient != 0.5:
            raise ValueError(
                f"f_alpha_divergence_coef={coefficient} has no effect without "
                "f_divergence_type='alpha_divergence'"
            )
        if (self.beta_schedule == "constant") != (self.beta_final is None):
            raise ValueError(
                f"beta_schedule={self.beta_schedule!r} does not go with beta_final="
                f"{self.beta_final}: a schedule other than 'constant' needs the beta at its end"
            )

    @property
    def active(self) -> tuple[str, ...]:
        """Names of the options that are on."""
        return tuple(name for name in self.chosen() if name not in _OF_OPTION)

    def chosen(self) -> dict[str, Any]:
        """Return the fields that are not at their default, by name."""
        values = {item.name: (getattr(self, item.name), item.default) for item in fields(self)}
        return {name: value for name, (value, default) in values.items() if value != default}

    def extra_inputs(self, loss: Loss) -> tuple[str, ...]:
        """Return the names of the inputs that the options need beside the loss's own."""
        logps = [spec for spec in specs_of(loss.inputs) if spec.quantity == "logps"]
        extra: list[str] = []
        if self.ld_alpha < 1:
            extra += map(_head_of, (spec.name for spec in logps))
        if self.length_normalize:
            extra += [counterpart(s.name, quantity="lengths") for s in logps if not s.of_reference]
            extra += [counterpart("kl", quantity="mean_kl")] if "kl" in loss.inputs else []
        if self.margin_scale:
            extra.append("margins")
        return tuple(extra)


# Which loss takes which option -------------------------------------------------------------------


def fit_options(
    options: LossOptions, losses: Sequence[Loss], settings: Sequence[Settings]
) -> list[LossOptions]:
    """Return for each loss of a sum, with its hyper-parameters, the options that it can take.

    Raises:
        ValueError: If none of the losses can take an option, with the reason of each.
    """
    refused: list[set[str]] = [set() for _ in losses]
    for name in options.active:
        problems = [
            loss.refuses.get(name)
            or _PROBLEMS[name](loss, {**loss.hyperparameters, **own}, options)
            for loss, own in zip(losses, settings, strict=True)
        ]
        if all(problems):
            reasons = "; ".join(
                f"{loss.name} {problem}" for loss, problem in zip(losses, problems, strict=True)
            )
            raise ValueError(f"{name}={getattr(options, name)!r} cannot be used here: {reasons}")
        for its, problem in zip(refused, problems, strict=True):
            if problem:
                its.add(name)
    chosen = options.chosen()
    return [
        LossOptions(**{k: v for k, v in chosen.items() if _OF_OPTION.get(k, k) not in its})
        for its in refused
    ]


def _length_problem(loss: Loss, settings: Settings, options: LossOptions) -> str | None:
    if _inputs_of(loss, "lengths"):
        own = " and has the option `normalize`" if "normalize" in settings else ""
        return f"takes the lengths of completions itself{own}: leave length_normalize out"
    return _of_sums(loss)


def _f_divergence_problem(loss: Loss, settings: Settings, options: LossOptions) -> str | None:
    if loss.data_kind == "preferred" or not loss.needs_reference:
        return "compares no completions by their log-ratios to a reference"
    problem = _of_divergences(loss) or _of_sums(loss)
    if problem is None and not _is_unchanged_by(loss, settings, _shifted_with_reference):
        return "depends on more than the log-ratios of policy and reference"
    return problem


def _margin_problem(loss: Loss, settings: Settings, options: LossOptions) -> str | None:
    if "margins" in loss.inputs:
        return "uses the margins of the data itself: leave margin_scale out"
    problem = _not_on_pairs(loss) or _of_several_pairs(loss) or _of_heads(loss)
    if problem is None and not _is_unchanged_by(loss, settings, _shifted_together):
        return "depends on more than the margin between two summed log-probs or log-ratios"
    return problem


def _schedule_problem(loss: Loss, settings: Settings, options: LossOptions) -> str | None:
    if "beta" not in settings:
        return "has no hyper-parameter beta"
    loss.check_hyperparameters({**settings, "beta": options.beta_final})
    return None


_PROBLEMS: dict[str, Callable[[Loss, Settings, LossOptions], str | None]] = {
    "length_normalize": _length_problem,
    "f_divergence_type": _f_divergence_problem,
    "ld_alpha": lambda loss, *_: _not_on_pairs(loss) or _of_divergences(loss) or _of_sums(loss),
    "margin_scale": _margin_problem,
    "beta_schedule": _schedule_problem,
    "use_weighting": lambda loss, *_: _not_on_pairs(loss) or _of_several_pairs(loss),
}


def _not_on_pairs(loss: Loss) -> str | None:
    return None if loss.data_kind == "paired" else f"is a loss on {loss.data_kind} data, not pairs"


def _of_several_pairs(loss: Loss) -> str | None:
    return "compares the pairs of a step with each other" if loss.batch_dependent else None


def _of_heads(loss: Loss) -> str | None:
    if _inputs_of(loss, "head_logps"):
        return "weighs tokens itself: use ld_alpha, with a loss that does not"
    return None


def _of_divergences(loss: Loss) -> str | None:
    """Return which input is a KL divergence over whole completions."""
    for name in _inputs_of(loss, "kl", "mean_kl", "divergences"):
        return f"takes `{name}`, which is a KL divergence over whole completions"
    return None


def _of_sums(loss: Loss) -> str | None:
    """Return why the log-probs that a loss takes must be sums over all tokens."""
    if loss.data_kind == "preferred":
        return "looks at preferred completions alone"
    return _of_heads(loss)


def _is_unchanged_by(
    loss: Loss, settings: Settings, shifted: Callable[..., dict[str, Tensor]]
) -> bool:
    """Return whether the losses of made-up examples stay as they are under a shift."""
    inputs = make_inputs(loss, torch.float64, size=16)
    generator = torch.Generator().manual_seed(0)
    moved = inputs | shifted(inputs, generator)
    own = {name: settings[name] for name in loss.hyperparameters}
    with torch.no_grad():
        before, after = loss(**inputs, **own).losses, loss(**moved, **own).losses
    return torch.allclose(before, after, rtol=1e-11, atol=1e-12)


def _inputs_of(loss: Loss, *quantities: str) -> list[str]:
    """Return the names of the inputs of a loss that are of some quantities."""
    return [spec.name for spec in specs_of(loss.inputs) if spec.quantity in quantities]


def _shifted_with_reference(
    inputs: Mapping[str, Tensor], generator: torch.Generator
) -> dict[str, Tensor]:
    """Return log-probs of policy and reference, both moved by a number for each completion."""
    moved: dict[str, Tensor] = {}
    for name, reference in policy_and_reference(inputs):
        shifts = 9 * torch.randn(inputs[name].shape, generator=generator, dtype=torch.float64)
        moved |= {name: inputs[name] + shifts, reference: inputs[reference] + shifts}
    return moved


def _shifted_together(
    inputs: Mapping[str, Tensor], generator: torch.Generator
) -> dict[str, Tensor]:
    """Return the policy's log-probs of both completions, moved by a number for each pair."""
    shifts = 9 * torch.randn(inputs["chosen_logps"].shape, generator=generator, dtype=torch.float64)
    return {name: inputs[name] + shifts for name in ("chosen_logps", "rejected_logps")}


# What they do ------------------------------------------------------------------------------------


def transformed(
    options: LossOptions, loss: Loss, settings: Settings, inputs: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the inputs of a loss under the options that ``fit_options`` left to it.

    It is given those and the options' ``extra_inputs``. Rewards that the loss makes of what is
    returned lack the offset of the margin.
    """
    moved = dict(inputs)
    if options.ld_alpha < 1:
        for name in _inputs_of(loss, "logps"):
            moved[name] = head_and_tail(moved[name], moved[_head_of(name)], options.ld_alpha)
    if options.f_divergence_type != "reverse_kl":
        for name, reference in policy_and_reference(moved):
            moved[name] = divergence_scores(
                moved[name] - moved[reference],
                options.f_divergence_type,
                options.f_alpha_divergence_coef,
            )
            moved[reference] = torch.zeros_like(moved[reference])
    if options.length_normalize:
        for name in _inputs_of(loss, "logps", "divergences"):
            moved[name] = average_logps(moved[name], moved[counterpart(name, quantity="lengths")])
        if "kl" in moved:
            moved["kl"] = moved[counterpart("kl", quantity="mean_kl")]
    if options.margin_scale:
        beta = settings.get("beta", loss.hyperparameters.get("beta", 1.0))
        offsets = options.margin_scale * moved["margins"]
        if "ref_chosen_logps" in moved:  # the policy's own are left as they are
            moved["ref_chosen_logps"] = require_margin(moved["ref_chosen_logps"], offsets, beta)
        else:
            moved["chosen_logps"] = require_margin(moved["chosen_logps"], -offsets, beta)
    return {name: moved[name] for name in loss.inputs if name in moved}


def divergence_scores(log_ratios: Tensor, divergence: str, coefficient: float = 0.5) -> Tensor:
    """Return f'(r) of an f-divergence, 0 at r = 1.

    Log-ratios log r, of any shape, are in nats; the coefficient is that of the alpha-divergence.
    Exponentials go on along their tangent where they leave what a square of them can hold: beyond
    22 nats in float32, 643 in float64.
    """
    if divergence == "forward_kl":
        return -_exponential_less_1(-log_ratios)
    if divergence == "js_divergence":
        return math.log(2) + logsigmoid(log_ratios)
    if divergence == "alpha_divergence" and abs(coefficient - 1) >= _ALPHA_IS_1:
        return _exponential_less_1((coefficient - 1) * log_ratios) / (coefficient - 1)
    return log_ratios


def with_whole_rewards(
    options: LossOptions, margins: Tensor | None, output: LossOutput
) -> LossOutput:
    """Return what a loss made of transformed inputs with rewards before the offset of the margin.

    Margins of the data are (B,), None if they have none.
    """
    if not options.margin_scale or margins is None:
        return output
    return output.add_to_chosen(options.margin_scale * margins)


def policy_and_reference(inputs: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """Return the names of the policy's log-probs, each with that of the reference."""
    return [
        (counterpart(spec.name), spec.name)
        for spec in specs_of(inputs)
        if spec.of_reference and spec.quantity == "logps"
    ]


def scheduled_beta(options: LossOptions, first: float, progress: float) -> float:
    """Return beta, which was ``first``, after a share of the optimiser steps, from 0 to 1."""
    if options.beta_final is None:
        return first
    gone = progress if options.beta_schedule == "linear" else (1 - math.cos(math.pi * progress)) / 2
    return first + gone * (options.beta_final - first)


def wpo_weights(
    logps: Tensor, log_collisions: Tensor, lengths: Tensor, chosen: Tensor, rejected: Tensor
) -> Tensor:
    """Return WPO's weight of each pair, at most 1 and without gradient; (P,).

    The mean over tokens of log p minus the log of the sum of squared probabilities says how usual a
    completion is for the policy; the weight is the exponential of the sum of both completions'.
    Log-probs, log-collisions (both summed over tokens) and lengths are those of ``Completions``,
    (N,); ``chosen`` and ``rejected`` the numbers of the completions of each pair, (P,).
    """
    usual = average_logps(logps.detach() - log_collisions.detach(), lengths)
    return (usual[chosen] + usual[rejected]).clamp(max=0).exp()


def _exponential_less_1(exponents: Tensor) -> Tensor:
    limit = math.log(torch.finfo(exponents.dtype).max) - 66
    # Not expm1, whose gradient is 0 where its value rounds to -1.
    exact = torch.exp(exponents.clamp(max=limit)) - 1
    tangent = math.expm1(limit) + math.exp(limit) * (exponents - limit)
    return torch.where(exponents <= limit, exact, tangent)


def _head_of(name: str) -> str:
    """Return the name of the log-probs of the first tokens beside those of a whole completion."""
    reference = VOCABULARY[name].of_reference
    return counterpart(name, quantity="head_logps", of_reference=reference)
