"""Read the golden losses, tell which are targets of ours, and compute ours for each of them."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.losses import get_loss
from prefopt.losses.common import average_logps
from prefopt.losses.orpo import log_odds_ratio

# The label of a golden case -> our loss, and how its hyper-parameters are called in ours.
LABELS: dict[str, tuple[str, dict[str, str]]] = {
    "dpo": ("dpo", {"beta": "beta", "label_smoothing": "label_smoothing"}),
    "sigmoid": ("dpo", {"beta": "beta", "label_smoothing": "label_smoothing"}),
    "fdpo_loss": ("dpo", {"beta": "beta"}),
    "dpo_reference_free": ("dpo", {"beta": "beta"}),
    "cdpo": (
        "dpo",
        {"beta": "beta", "label_smoothing": "label_smoothing", "epsilon": "label_smoothing"},
    ),
    "ipo": ("ipo", {"beta": "beta", "tau": "beta"}),
    "ipo_sum": ("ipo", {"beta": "beta", "tau": "beta"}),
    "hinge": ("hinge", {"beta": "beta", "gamma": "beta"}),
    "discopop": ("discopop", {"beta": "beta", "discopop_tau": "tau"}),
    "lrml (DiscoPOP)": ("discopop", {"beta": "beta"}),
    "lrml_old": ("discopop", {}),
    "kto": (
        "kto",
        {
            "beta": "beta",
            "desirable_weight": "desirable_weight",
            "undesirable_weight": "undesirable_weight",
        },
    ),
    "kto_no_kl": ("kto", {"beta": "beta"}),
    "kto_pair": ("kto", {}),
    "slic": ("slic", {"beta": "delta", "lambda_coef": "lambda_"}),
    "slic_halos_head": ("slic", {}),
    "orpo": ("orpo", {"beta": "lambda_"}),
    "orpo_or": ("orpo", {"beta": "lambda_"}),
    "sft": ("sft", {}),
}

# Labels of losses that prefopt does not have yet: no case of theirs is looked at here.
# fmt: off
OTHER_LABELS = frozenset([
    "alphapo", "aot", "aot_unpaired", "apo_down", "apo_zero", "apo_zero_unpaired", "aqfl", "aql",
    "arpo", "bco", "bco_pair", "bco_pair(delta=0)", "cell", "cpo_hinge", "cpo_ipo", "cpo_sigmoid",
    "cpo_simpo", "dbaql", "dpo-rw", "exo-rw", "exo_pair", "f_alpha_dpo", "fforward_dpo_loss",
    "fjs_dpo_loss", "ld_dpo_policy_only", "nca_pair", "padll", "pfl", "robust",
    "sigmoid+bco_pair+sft", "sigmoid_norm", "simpo", "simpo_hinge", "sppo", "sppo_hard", "wpo",
])
# fmt: on

# Cases of our losses that are not to be copied: a pattern of their names -> why.
NOT_TARGETS: dict[str, str] = {
    r"/float32$": "float32 on log-ratios of up to 500: shows what stays finite, not digits",
    r"f_divergence_type=(forward_kl|js_divergence)/\w+$": "another f-divergence than reverse KL",
    r"f_alpha_divergence_coef=(0\.25|0\.5|2\.0)/\w+$": "another f-divergence than reverse KL",
    r"^trl1\.16/dpo/sigmoid/beta=[\d.]+,label_smoothing=0\.1/\w+$": (
        "TRL 1.16 ignores label_smoothing in its sigmoid loss; ours is cDPO"
    ),
    r"use_weighting=True/": "WPO weights, a method of its own",
    r"ld_alpha=0\.[03]/": "LD-DPO, a method of its own (ld_alpha=1 is plain and matched)",
    r"^llamafactory@ff6d4d12ee\+trl0\.24\.0/(ipo|hinge)/": (
        "the code runs the sigmoid loss whatever pref_loss says"
    ),
    r"^halos@4831988636/IPO/.*/pair_equal$": "0/0: HALOs divides by the count of nonzero ratios",
    r"^halos@4831988636/SLiC/": "the regulariser is divided by the padded width",
    r"/(kto_pair|KTO\(in-batch KL\)|VanillaKTOLoss)/": (
        "KTO on pairs: the reference point is the other half of the batch, and carries gradient"
    ),
    r"^discopop@3307865a49/lrml_old/": "an older form of the loss: its blend leaves out beta, tau",
    r"/(orpo|odds_ratio)/.*/avg_extreme$": (
        "NaN or inaccurate near log-prob 0; test_orpo.py checks these inputs against mpmath"
    ),
    r"^trl1\.16/orpo/e2e/": "TRL's likelihood term covers the prompt too; its odds term is matched",
    r"^orpo@208d2d6480/": "the authors' code averages over one token too many",
}


@dataclass(frozen=True)
class Golden:
    """The golden file: cases as recorded, and the inputs they were made from."""

    cases: list[dict[str, Any]]
    sets: dict[str, dict[str, Any]]


def read_golden(folder: Path) -> Golden:
    """Read both files of the folder ``golden``."""
    cases = json.loads((folder / "golden_losses.json").read_text())["cases"]
    return Golden(cases, json.loads((folder / "inputs.json").read_text())["sets"])


def reasons_not_target(name: str) -> list[str]:
    """Return the patterns of NOT_TARGETS that a case's name fits."""
    return [pattern for pattern in NOT_TARGETS if re.search(pattern, name)]


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


def compute(case: dict[str, Any], golden: Golden, dtype: torch.dtype = torch.float64) -> Ours:
    """Compute losses, their mean, and its gradient for what the case has gradients of."""
    name, renames = LABELS[case["loss"]]
    options = {
        renames[key]: value for key, value in case["hyperparameters"].items() if key in renames
    }
    if name == "ipo":
        sums = case["loss"] == "ipo_sum" or case["name"].startswith("discopop@")
        options["normalize"] = "sum" if sums or "/ipo/sum/" in case["name"] else "mean"
    if case["name"].startswith("exo@"):
        options = {"beta": case["hyperparameters"]["beta_model"]}
    leaves, inputs = make_inputs(case, golden.sets[case["input_set"]], dtype)
    loss = get_loss(name)
    inputs = {key: value for key, value in inputs.items() if key in loss.inputs}
    if case["loss"] == "orpo_or":
        losses = odds_ratio_losses(inputs, **options)
    else:
        losses = loss(**inputs, **options).losses
    mean_loss = losses.sum() / loss.unit_counts(inputs, options).sum()
    needed = {key: leaves[key] for key in case["grads"] or {}}
    grads = torch.autograd.grad(mean_loss, list(needed.values()), allow_unused=True)
    return Ours(
        losses.detach(),
        mean_loss.detach(),
        {
            key: torch.zeros_like(needed[key]) if grad is None else grad
            for key, grad in zip(needed, grads, strict=True)
        },
    )


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
    return inputs


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
    sums = torch.where(mask, scores, 0).sum(1)
    ref_sums = torch.where(mask, as_tensor(data["ref_token_logps"]).to(dtype), 0).sum(1)
    inputs = {
        "chosen_logps": sums[:pairs],
        "rejected_logps": sums[pairs:],
        "ref_chosen_logps": ref_sums[:pairs],
        "ref_rejected_logps": ref_sums[pairs:],
        "chosen_lengths": mask.sum(1)[:pairs],
        "rejected_lengths": mask.sum(1)[pairs:],
    }
    leaves = {"policy_logits": logits, "policy_logits_chosen": chosen, "policy_token_logps": tokens}
    return leaves, inputs


def meaningful(key: str, grads: Tensor, data: dict[str, Any]) -> Tensor:
    """Return gradients with those outside the completion, which mean nothing, set to 0."""
    if key != "policy_token_logps":
        return grads
    return torch.where(torch.tensor(data["completion_mask"])[:, 1:].bool(), grads, 0)
