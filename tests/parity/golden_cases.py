"""Read the golden losses and compute ours for each of them, in the case's own terms."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from golden_targets import LABELS, label_of
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.losses import Loss, get_loss
from prefopt.losses.common import average_logps
from prefopt.losses.orpo import log_odds_ratio
from prefopt.objective.options import LossOptions, fit_options, transformed, wpo_weights


@dataclass(frozen=True)
class Golden:
    """The golden file: cases as recorded, and the inputs they were made from."""

    cases: list[dict[str, Any]]
    sets: dict[str, dict[str, Any]]


def read_golden(folder: Path) -> Golden:
    """Read both files of the folder ``golden``."""
    cases = json.loads((folder / "golden_losses.json").read_text())["cases"]
    return Golden(cases, json.loads((folder / "inputs.json").read_text())["sets"])


def as_tensor(values: Any) -> Tensor:
    """Return float64 numbers, reading the strings that stand for non-finite ones."""
    if isinstance(values, list):
        return torch.stack([as_tensor(value) for value in values])
    return torch.tensor(float(values), dtype=torch.float64)


@dataclass
class Ours:
    """What prefopt computes for a case, in the case's own terms."""

    losses: Tensor
    mean_loss: Tensor
    grads: dict[str, Tensor]


@dataclass(frozen=True)
class Part:
    """A term of what a case minimises: a loss of ours with its settings, and its weight."""

    loss: Loss
    options: Mapping[str, Any]
    weight: float = 1.0
    of_every_loss: LossOptions = field(default_factory=LossOptions)


def compute(case: dict[str, Any], golden: Golden, dtype: torch.dtype = torch.float64) -> Ours:
    """Compute losses, their mean, and its gradient for what the case has gradients of."""
    leaves, inputs = make_inputs(case, golden.sets[case["input_set"]], dtype)
    parts = parts_of(case)
    values, means = [], []
    for part in parts:
        given = inputs_of(part, inputs)
        if case["loss"] == "orpo_or":
            losses = odds_ratio_losses(inputs, **part.options)
        else:
            losses = part.loss(**given, **part.options).losses
        if part.of_every_loss.use_weighting:
            losses = losses * inputs["wpo_weights"]
        values.append(losses)
        means.append(part.weight * losses.sum() / part.loss.unit_counts(given, part.options).sum())
    mean_loss = torch.stack(means).sum()
    needed = {key: leaves[key] for key in case["grads"] or {}}
    grads = torch.autograd.grad(mean_loss, list(needed.values()), allow_unused=True)
    return Ours(
        in_their_order(case, values[0].detach(), inputs),
        mean_loss.detach(),
        {
            key: torch.zeros_like(needed[key]) if grad is None else grad
            for key, grad in zip(needed, grads, strict=True)
        },
    )


def parts_of(case: dict[str, Any]) -> list[Part]:
    """Return what a case minimises: the preference loss first, then a likelihood if it adds one."""
    target = LABELS[label_of(case)]
    given = case["hyperparameters"]
    options = {target.renames[key]: value for key, value in given.items() if key in target.renames}
    options |= target.fixed
    if "gamma_beta_ratio" in given:
        options["gamma"] = given["gamma_beta_ratio"] * given["beta"]
    if case["loss"] == "sigmoid+bco_pair+sft":
        parts = [("dpo", options), ("bco_pair", {**options, "shift": False}), ("sft", {})]
        return [
            Part(get_loss(name), settings, weight)
            for (name, settings), weight in zip(parts, given["loss_weights"], strict=True)
        ]
    loss = get_loss(target.loss)
    (fitted,) = fit_options(loss_options_of(case), [loss], [options])
    parts = [Part(loss, options, 1.0, fitted)]
    likelihood = given.get("cpo_alpha", 0) or given.get("sft_weight", 0)
    return [*parts, Part(get_loss("sft"), {}, likelihood)] if likelihood else parts


def loss_options_of(case: dict[str, Any]) -> LossOptions:
    """Return the options of every loss that a case uses, by our names."""
    target, given = LABELS[label_of(case)], case["hyperparameters"]
    options = dict(target.options)
    if options.get("f_divergence_type") == "alpha_divergence":
        alpha = given.get("alpha", given.get("alpha_divergence_coef"))  # of the f-DPO paper
        options["f_alpha_divergence_coef"] = 1 - alpha
    names = ["f_divergence_type", "f_alpha_divergence_coef"]
    names += ["ld_alpha"] if "ld_alpha" not in target.renames else []
    return LossOptions(**options, **{name: given[name] for name in names if name in given})


def inputs_of(part: Part, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the inputs that a loss asks for; pairs as rankings with scores 1 and 0 if it does."""
    loss, extra = part.loss, part.of_every_loss.extra_inputs(part.loss)
    if loss.data_kind != "ranked":
        picked = {name: inputs[name] for name in (*loss.inputs, *extra)}
        return transformed(part.of_every_loss, loss, part.options, picked)
    logps, ref_logps = (
        torch.stack([inputs[f"{prefix}chosen_logps"], inputs[f"{prefix}rejected_logps"]], 1)
        for prefix in ("", "ref_")
    )
    scores = torch.tensor([1.0, 0.0], dtype=logps.dtype).expand_as(logps)
    return {"ranked_logps": logps, "ref_ranked_logps": ref_logps, "ranked_scores": scores}


def in_their_order(case: dict[str, Any], losses: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return losses in the order of the case: AOT's are recorded by rank, ours by example."""
    if not case["loss"].startswith("aot"):
        return losses
    ranked_by = inputs["chosen_logps"].detach() - (
        inputs["ref_chosen_logps"]
        if case["loss"] == "aot_unpaired"
        else inputs["rejected_logps"].detach()
    )
    return losses[ranked_by.argsort(stable=True)]


def odds_ratio_losses(inputs: dict[str, Tensor], lambda_: float) -> Tensor:
    """Return ORPO's second term alone, which is all that some implementations record."""
    ratios = log_odds_ratio(
        average_logps(inputs["chosen_logps"], inputs["chosen_lengths"]),
        average_logps(inputs["rejected_logps"], inputs["rejected_lengths"]),
    )
    return -lambda_ * logsigmoid(ratios)


def make_inputs(
    case: dict[str, Any], data: dict[str, Any], dtype: torch.dtype
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return what the case has gradients of, by its names, and the inputs of ours made from it."""
    if case["input_set"] == "tokens":
        return token_inputs(case, data, dtype)
    leaves = {
        key: as_tensor(data[key]).to(dtype).requires_grad_()
        for key in data
        if key.startswith("policy_")
    }
    values = {
        key: torch.tensor(values) if key.endswith(("lengths", "labels")) else as_tensor(values)
        for key, values in data.items()
        if not key.startswith("policy_")
    }
    values = {k: v.to(dtype) if v.is_floating_point() else v for k, v in values.items()}
    if case["input_set"].startswith("kto"):
        kl = (values["kl_policy_logps"] - values["kl_ref_logps"]).mean().clamp(min=0)
        return leaves, {
            "logps": leaves["policy_logps"],
            "ref_logps": values["ref_logps"],
            "desirable": values["labels"],
            "kl": torch.zeros_like(kl) if case["loss"] == "kto_no_kl" else kl,
            "mean_log_ratio": running_mean(case, dtype),
        }
    return leaves, pair_inputs(case, leaves, values)


def pair_inputs(
    case: dict[str, Any], leaves: dict[str, Tensor], values: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return the inputs of a paired loss; a loss without reference is ours with zeros."""
    no_reference = case["loss"] == "dpo_reference_free" or "/cpo/" in case["name"]
    inputs = {}
    for side in ("chosen", "rejected"):
        policy = leaves[f"policy_{side}_logps"]
        reference = values.get(f"ref_{side}_logps", torch.zeros_like(policy))
        inputs[f"{side}_logps"] = policy
        inputs[f"ref_{side}_logps"] = torch.zeros_like(reference) if no_reference else reference
        inputs[f"{side}_lengths"] = values[f"{side}_lengths"]
    logps = inputs["chosen_logps"]
    given = case["hyperparameters"]
    wins = given.get("chosen_probs_win", given.get("chosen_probs", 1.0))
    inputs["preference_probabilities"] = torch.full_like(logps, wins)
    inputs["chosen_win_rates"] = torch.full_like(logps, wins)
    inputs["rejected_win_rates"] = torch.full_like(logps, given.get("chosen_probs_lose", 1 - wins))
    inputs["mean_log_ratio"] = running_mean(case, logps.dtype)
    return inputs


def running_mean(case: dict[str, Any], dtype: torch.dtype) -> Tensor:
    """Return the mean log-ratio that a case of BCO recorded: its delta is beta times that."""
    delta = (case["extra"] or {}).get("delta", 0.0)
    return torch.tensor(delta / case["hyperparameters"].get("beta", 1.0), dtype=dtype)


def token_inputs(
    case: dict[str, Any], data: dict[str, Any], dtype: torch.dtype
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return leaves and inputs of a case on token log-probs or logits: sums over completions."""
    targets = torch.tensor(data["input_ids"])[:, 1:]
    mask = torch.tensor(data["completion_mask"])[:, 1:].bool()
    pairs = data["n_pairs"]
    chosen, rejected = as_tensor(data["policy_logits"]).to(dtype).requires_grad_().split(pairs)
    logits = torch.cat([chosen, rejected])
    tokens = as_tensor(data["policy_token_logps"]).to(dtype).requires_grad_()
    if case["input_transform"].startswith("logits"):
        scores = logits.log_softmax(-1)[:, :-1].gather(-1, targets[..., None])[..., 0]
    else:
        scores = tokens
    ref_scores = as_tensor(data["ref_token_logps"]).to(dtype)
    lengths = mask.sum(1)
    shorter = torch.minimum(lengths[:pairs], lengths[pairs:]).repeat(2)
    head = mask & (mask.cumsum(1) <= shorter[:, None])
    inputs = {
        "chosen_lengths": lengths[:pairs],
        "rejected_lengths": lengths[pairs:],
        "preference_probabilities": torch.ones(pairs, dtype=dtype),
        "chosen_win_rates": torch.ones(pairs, dtype=dtype),
        "rejected_win_rates": torch.zeros(pairs, dtype=dtype),
    }
    for prefix, values in (("", scores), ("ref_", ref_scores)):
        for part, counted in (("", mask), ("head_", head)):
            sums = torch.where(counted, values, 0).sum(1)
            inputs[f"{prefix}chosen_{part}logps"] = sums[:pairs]
            inputs[f"{prefix}rejected_{part}logps"] = sums[pairs:]
    collisions = as_tensor(data["policy_log_sum_sq_probs"]).to(dtype)
    inputs["wpo_weights"] = wpo_weights(
        torch.where(mask, scores, 0).sum(1),
        torch.where(mask, collisions, 0).sum(1),
        lengths,
        torch.arange(pairs),
        torch.arange(pairs, 2 * pairs),
    )
    leaves = {"policy_logits": logits, "policy_logits_chosen": chosen, "policy_token_logps": tokens}
    return leaves, inputs


def meaningful(key: str, grads: Tensor, data: dict[str, Any]) -> Tensor:
    """Return gradients with those outside the completion, which mean nothing, set to 0."""
    if key != "policy_token_logps":
        return grads
    return torch.where(torch.tensor(data["completion_mask"])[:, 1:].bool(), grads, 0)
