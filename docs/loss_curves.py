"""Curves of the losses, made from the code: a loss along one axis, and its slope by autograd.

The axis depends on what the loss takes:

- paired: the reward margin, half of it above the reference for the chosen completion, half below
  for the rejected one. The rewards of a loss without reference are (mean) log-probs;
- unpaired: the reward of the completion, one curve for each label;
- ranked: the reward between neighbours in the ranking, which are equally far apart;
- preferred: the mean log-prob of the completion, or its log-ratio if the loss has a reference.

Where the loss of a pair depends on its batch, the curve is what the pair adds to the loss of a
batch of others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from prefopt.losses import Loss, get_loss
from prefopt.losses.vocabulary import specs_of

POINTS = 401
OTHERS = 15  # pairs in a batch where the loss looks at the batch
SPAN = 5.0  # half the width of the axis, in units of the reward


@dataclass(frozen=True)
class Variant:
    """A line of a picture: a setting of the loss.

    Attributes:
        label: In the legend.
        options: Hyper-parameters off their defaults.
        inputs: Inputs off the values of ``make_inputs``, one number for all examples.
    """

    label: str
    options: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Curve:
    """Values of a loss and their slopes along an axis, each (N,)."""

    label: str
    x: Tensor
    losses: Tensor
    slopes: Tensor


SMOOTHING = [{"label_smoothing": 0.1}, {"label_smoothing": 0.3}]

# Half the width of the axis where the usual one hides or misses what there is to see.
SPANS: dict[str, float] = {
    "arpo": 0.6,
    "chi_po": 0.4,
    "discopop": 1.0,
    "dpop": 2.0,
    "orpo": 3.0,
    "slic": 4.0,
}

# What to call the default where there are other settings beside it, and those.
VARIANTS: dict[str, tuple[str, list[Variant]]] = {
    "alphapo": ("alpha = 0.25", [Variant("alpha = −0.5", {"alpha": -0.5})]),
    "beta_dpo": (
        "batch at the mean",
        [
            Variant("1 nat above", {}, {"mean_margin": -1}),
            Variant("1 nat below", {}, {"mean_margin": 1}),
        ],
    ),
    "bco": ("", [Variant("desirable, δ = 2", {}, {"desirable": 1, "mean_log_ratio": 20})]),
    "bco_pair": ("δ = 0", [Variant("δ = 2", {}, {"mean_log_ratio": 20})]),
    "discopop": ("tau = 0.05", [Variant("tau = 1", {"tau": 1.0})]),
    "dpo": (
        "no smoothing",
        [Variant("smoothing 0.1", SMOOTHING[0]), Variant("smoothing 0.3", SMOOTHING[1])],
    ),
    "dpop": ("lambda = 50", [Variant("lambda = 5", {"lambda_": 5.0})]),
    "exo": ("smoothing 0.001", [Variant("smoothing 0.1", SMOOTHING[0])]),
    "geometric_dpo": ("p = 1", [Variant("p = 0.8", {}, {"preference_probabilities": 0.8})]),
    "gpo": (
        "logistic",
        [
            Variant(name.replace("_", " "), {"f": name})
            for name in ("hinge", "squared", "exponential", "truncated_quadratic", "savage")
        ],
    ),
    "kto": ("", [Variant("desirable, kl = 20 nats", {}, {"desirable": 1, "kl": 20})]),
    "ld_dpo": ("equal lengths", [Variant("half of the chosen in its tail", {}, {"tail": 0.5})]),
    "ln_dpo": ("equal lengths", [Variant("chosen twice as long", {}, {"chosen_lengths": 2})]),
    "odpo": ("margin 1", [Variant("margin 4", {}, {"margins": 4})]),
    "orpo": ("lambda = 0.1", [Variant("lambda = 1", {"lambda_": 1.0})]),
    "r_dpo": (
        "equal lengths",
        [
            Variant("chosen longer by 100", {}, {"chosen_lengths": 101}),
            Variant("chosen shorter by 100", {}, {"rejected_lengths": 101}),
        ],
    ),
    "robust": ("smoothing 0.1", [Variant("smoothing 0.3", SMOOTHING[1])]),
    "rpo": ("margin 1", [Variant("margin 3", {}, {"margins": 3})]),
    "simpo": ("gamma = 1", [Variant("gamma = 0", {"gamma": 0.0})]),
    "slic": ("lambda = 0.1", [Variant("lambda = 0", {"lambda_": 0.0})]),
    "soft_dpo": ("p = 1", [Variant("p = 0.8", {}, {"preference_probabilities": 0.8})]),
    "sppo": (
        "win rates 1 and 0",
        [Variant("0.7 and 0.3", {}, {"chosen_win_rates": 0.7, "rejected_win_rates": 0.3})],
    ),
    "tdpo": ("no drift", [Variant("rejected drifts 40 nats", {}, {"rejected_divergences": 40})]),
}


def loss_curves(loss: Loss) -> list[Curve]:
    """Return the curves of a loss: of its default, and of its variants."""
    shapes = {
        "unpaired": [
            Variant("desirable", inputs={"desirable": 1}),
            Variant("undesirable", inputs={"desirable": 0}),
        ],
        "ranked": [Variant("K = 2", inputs={"k": 2}), Variant("K = 4", inputs={"k": 4})],
    }
    label, others = VARIANTS.get(loss.name, (loss.name, []))
    first = shapes.get(loss.data_kind, [Variant(label)])
    return [curve(loss, variant, axis_of(loss)) for variant in [*first, *others]]


def axis_of(loss: Loss) -> Tensor:
    """Return where to evaluate a loss; (N,), float64."""
    if loss.data_kind == "preferred" and not loss.needs_reference:
        return torch.linspace(-4, 0, POINTS, dtype=torch.float64)
    span = SPANS.get(loss.name, SPAN)
    return torch.linspace(-span, span, POINTS, dtype=torch.float64)


def axis_label(loss: Loss) -> str:
    """Return what is on the horizontal axis."""
    if loss.data_kind == "preferred":
        return "log-ratio (nats)" if loss.needs_reference else "mean log-prob (nats per token)"
    if loss.data_kind == "unpaired":
        return "reward of the completion"
    if loss.data_kind == "ranked":
        return "reward between neighbours"
    factor = "beta × " if "beta" in loss.hyperparameters else ""
    what = "log-ratio" if loss.needs_reference else "log-prob"
    return f"{factor}{what} margin" + ("" if factor else " (nats)")


def curve(loss: Loss, variant: Variant, x: Tensor) -> Curve:
    """Return a loss and its slope along an axis, by autograd.

    Args:
        loss: The loss.
        variant: Its setting.
        x: The axis; (N,).
    """
    x = x.clone().requires_grad_()
    inputs = make_inputs(loss, variant, x)
    if loss.name == "beta_dpo":
        losses = beside_mirrored(loss, variant, inputs, make_inputs(loss, variant, -x.detach()))
    elif loss.batch_dependent:
        losses = contributions(loss, variant, inputs)
    else:
        losses = loss(**inputs, **variant.options).losses
    (slopes,) = torch.autograd.grad(losses.sum(), x)
    return Curve(variant.label, x.detach(), losses.detach(), slopes)


def contributions(loss: Loss, variant: Variant, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return by how much each example raises the loss of a batch of others, when it joins them.

    The others' reward margins are spread around 0, and their log-probs under the reference too.

    Args:
        loss: A loss of pairs that depends on its batch.
        variant: Its setting.
        inputs: Of the examples, each by itself.
    """
    spread = torch.linspace(-2, 2, OTHERS, dtype=torch.float64)
    others = make_inputs(loss, variant, spread)
    shift = 20 * spread[torch.arange(OTHERS) * 4 % OTHERS]  # in another order than the margins
    for name in ("chosen_logps", "ref_chosen_logps"):
        others[name] = others[name] + shift
    alone = loss(**others, **variant.options).losses.sum()
    totals = []
    for i in range(POINTS):
        joined = {
            name: value if value.ndim == 0 else torch.cat([value[i : i + 1], others[name]])
            for name, value in inputs.items()
        }
        totals.append(loss(**joined, **variant.options).losses.sum())
    return torch.stack(totals) - alone


def beside_mirrored(
    loss: Loss, variant: Variant, inputs: Mapping[str, Tensor], mirrored: Mapping[str, Tensor]
) -> Tensor:
    """Return the loss of each example in a batch with its mirror image: the batch's mean stays 0.

    Args:
        loss: A loss of pairs that depends on the mean of its batch.
        variant: Its setting.
        inputs: Of the examples.
        mirrored: Of examples with the opposite margins.
    """
    values = []
    for i in range(POINTS):
        joined = {
            name: value if value.ndim == 0 else torch.stack([value[i], mirrored[name][i]])
            for name, value in inputs.items()
        }
        values.append(loss(**joined, **variant.options).losses[0])
    return torch.stack(values)


def make_inputs(loss: Loss, variant: Variant, x: Tensor) -> dict[str, Tensor]:
    """Return the inputs of a loss along the axis; see the module's docstring.

    Completions are one token long, so that sums are means, and the reference gives them all the
    same log-prob, low enough that no log-prob of the policy is above 0.
    """
    scale = variant.options.get("beta", loss.hyperparameters.get("beta", 1.0))
    nats = x / scale
    level = torch.full_like(x, -1.25 * float(nats.detach().abs().max()) / 2)
    if loss.data_kind == "preferred":
        start = 2 * level if loss.needs_reference else torch.zeros_like(x)
        values = {"chosen_logps": start + x, "ref_chosen_logps": start}
    elif loss.data_kind == "unpaired":
        values = {"logps": 2 * level + nats, "ref_logps": 2 * level}
        values["desirable"] = torch.ones_like(x).bool()
    elif loss.data_kind == "ranked":
        k = int(variant.inputs["k"])
        steps = (k - 1) / 2 - torch.arange(k, dtype=x.dtype)
        low = (k * level)[:, None].expand(-1, k)
        values = {"ranked_logps": low + nats[:, None] * steps, "ref_ranked_logps": low}
        values["ranked_scores"] = (k - 1 - torch.arange(k, dtype=x.dtype)).expand(len(x), k)
    else:
        values = _pair_inputs(level, nats, tail=variant.inputs.get("tail", 0.0))
    for spec in specs_of(loss.inputs):
        name = spec.name
        if name not in values:
            example = spec.examples(len(x), places=int(variant.inputs.get("k", 2)))
            values[name] = example.to(x.dtype) if example.is_floating_point() else example
        if name in variant.inputs:
            given = torch.full_like(values[name].double(), variant.inputs[name])
            values[name] = given.to(values[name].dtype)
    return {name: values[name] for name in loss.inputs}


def _pair_inputs(level: Tensor, nats: Tensor, tail: float) -> dict[str, Tensor]:
    """Return log-probs of pairs; ``tail`` is the share of the chosen log-ratio beyond the head."""
    references = {
        f"ref_{side}_{head}logps": level
        for side in ("chosen", "rejected")
        for head in ("", "head_")
    }
    return references | {
        "chosen_logps": level + nats / 2,
        "chosen_head_logps": level + (1 - tail) * nats / 2,
        "rejected_logps": level - nats / 2,
        "rejected_head_logps": level - nats / 2,
    }


def dpo_beside(loss: Loss, curves: Sequence[Curve]) -> Curve | None:
    """Return DPO's curve along the axis of a loss; None for a term, which is no preference."""
    if loss.data_kind == "preferred":
        return None
    return curve(get_loss("dpo"), Variant("dpo"), curves[0].x)
