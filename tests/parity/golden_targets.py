"""Which golden case is a target of which of our losses, and why the others are none.

Only data and names, so that the documentation can read it without torch. ``test_golden.py`` holds
it to the golden file: each case is matched or fits exactly one reason, and the counts are these.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

BETA = {"beta": "beta"}
SMOOTHED = {**BETA, "label_smoothing": "label_smoothing"}
SIMPO = {**SMOOTHED, "gamma": "gamma", "simpo_gamma": "gamma"}
WEIGHTS = {
    "desirable_weight": "desirable_weight",
    "undesirable_weight": "undesirable_weight",
}


@dataclass(frozen=True)
class Target:
    """What a label of the golden file is here.

    Attributes:
        loss: Our loss.
        renames: Their hyper-parameters by our names.
        fixed: Options of ours that their code has no word for.
        options: Options of every loss that their code has as a loss of its own.
    """

    loss: str
    renames: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class NotTarget:
    """Cases that are not to be copied.

    Attributes:
        pattern: Of their names.
        reason: Why.
        cases: How many there are.
    """

    pattern: str
    reason: str
    cases: int


LABELS: dict[str, Target] = {
    # Pairs with a reference.
    "dpo": Target("dpo", SMOOTHED),
    "sigmoid": Target("dpo", SMOOTHED),
    "fdpo_loss": Target("dpo", BETA),
    "dpo_reference_free": Target("dpo", BETA),
    "cdpo": Target("dpo", {**SMOOTHED, "epsilon": "label_smoothing"}),
    "dpo_exo": Target("dpo", {"beta_model": "beta"}),
    "robust": Target("robust", SMOOTHED),
    "ipo": Target("ipo", {**BETA, "tau": "beta"}, {"normalize": "mean"}),
    "ipo_sum": Target("ipo", {**BETA, "tau": "beta"}, {"normalize": "sum"}),
    "hinge": Target("hinge", {**BETA, "gamma": "beta"}),
    "exo_pair": Target("exo", SMOOTHED),
    "nca_pair": Target("nca", BETA),
    "sppo": Target("sppo", BETA, {"reduction": "mean"}),
    "sppo_hard": Target("sppo", BETA, {"reduction": "sum"}),
    "bco_pair": Target("bco_pair", BETA, {"shift": False}),
    "bco_pair(delta=0)": Target("bco_pair", BETA, {"shift": False}),
    "bco_pair(running)": Target("bco_pair", BETA),
    "apo_zero": Target("apo_zero", BETA),
    "apo_down": Target("apo_down", BETA),
    "aot": Target("aot", SMOOTHED),
    "aot_unpaired": Target("aot_unpaired", SMOOTHED),
    "sigmoid_norm": Target("ln_dpo", BETA),
    "ld_dpo": Target("ld_dpo", {**BETA, "ld_alpha": "alpha"}, {"reference": "alike"}),
    "ld_dpo_policy_only": Target("ld_dpo", {**BETA, "ld_alpha": "alpha"}, {"reference": "full"}),
    "fforward_dpo_loss": Target("dpo", BETA, options={"f_divergence_type": "forward_kl"}),
    "fjs_dpo_loss": Target("dpo", BETA, options={"f_divergence_type": "js_divergence"}),
    "f_alpha_dpo": Target("dpo", BETA, options={"f_divergence_type": "alpha_divergence"}),
    "wpo": Target("dpo", SMOOTHED, options={"use_weighting": True}),
    "sigmoid+bco_pair+sft": Target("dpo", BETA),  # with its other terms: see golden_cases.terms_of
    # Found by a language model.
    "discopop": Target("discopop", {**BETA, "discopop_tau": "tau"}),
    "lrml (DiscoPOP)": Target("discopop", BETA),
    "lrml_old": Target("discopop"),
    "cell": Target("cell", BETA),
    "padll": Target("padll", BETA),
    "dbaql": Target("dbaql", BETA),
    "aql": Target("aql", BETA, {"blend_temperature": 0.05}),
    "aqfl": Target("aqfl", BETA),
    "pfl": Target("pfl", BETA, {"tau": 1.0}),
    # Pairs without a reference.
    "slic": Target("slic", {"beta": "delta", "lambda_coef": "lambda_"}),
    "slic_halos_head": Target("slic"),
    "orpo": Target("orpo", {"beta": "lambda_"}),
    "orpo_or": Target("orpo", {"beta": "lambda_"}),
    "cpo_sigmoid": Target("cpo", SMOOTHED),
    "cpo_hinge": Target("cpo_hinge", BETA),
    "cpo_ipo": Target("cpo_ipo", BETA),
    "arpo": Target("arpo", {**BETA, "relax_cofficient_1": "eta_1", "relax_cofficient_2": "eta_2"}),
    "simpo": Target("simpo", SIMPO),
    "cpo_simpo": Target("simpo", SIMPO),
    "simpo_hinge": Target("simpo_hinge", BETA),
    "alphapo": Target("alphapo", {**BETA, "simpo_gamma": "gamma", "alpha": "alpha"}),
    "alphapo(sigmoid)": Target("alphapo", {**BETA, "alpha": "alpha"}, {"gamma": 0.0}),
    # Single completions.
    "kto": Target("kto", {**BETA, **WEIGHTS}),
    "kto_no_kl": Target("kto", BETA),
    "kto_pair": Target("kto"),
    "bco": Target("bco", BETA),
    "apo_zero_unpaired": Target("apo_zero_unpaired", {**BETA, **WEIGHTS}),
    # Rankings: pairs with scores 1 and 0.
    "exo-rw": Target("exo_ranked", {"beta_model": "beta", "beta": "alpha"}),
    "dpo-rw": Target("infonca", {"beta_model": "beta", "beta": "alpha"}),
    # Terms.
    "sft": Target("sft"),
}

# Cases whose label says less than their name: a pattern of the name -> the label that it should be.
RELABELLED: dict[str, str] = {
    r"^exo@.*/dpo/": "dpo_exo",
    r"^(trl0\.28\.0/dpo|llamafactory)/(bco_pair|bco)\(running\)/": "bco_pair(running)",
    r"^trl1\.16/dpo/sigmoid/.*ld_alpha=": "ld_dpo",
    r"^llamafactory@ff6d4d12ee/ld_dpo/ipo/.*ld_alpha=1\.0": "ipo",
    r"^discopop@3307865a49/ipo/": "ipo_sum",
    r"^trl1\.16/cpo/sigmoid/": "cpo_sigmoid",
    r"^trl1\.16/cpo/hinge/": "cpo_hinge",
    r"^trl1\.16/cpo/ipo/avg/": "cpo_ipo",
    r"^trl1\.16/cpo/ipo/sum/": "ipo_sum",
    r"^trl1\.16/cpo/alphapo\(sigmoid\)/": "alphapo(sigmoid)",
    r"^trl1\.16/cpo/e2e/simpo/.*alpha=0\.25/": "alphapo",
}

NOT_TARGETS: tuple[NotTarget, ...] = (
    NotTarget(
        r"/float32$",
        "float32 on log-ratios of up to 500: shows what stays finite, not digits",
        66,
    ),
    NotTarget(
        r"^trl1\.16/dpo/sigmoid/beta=[\d.]+,label_smoothing=0\.1/\w+$",
        "TRL 1.16 ignores `label_smoothing` in its sigmoid loss; ours is cDPO",
        8,
    ),
    NotTarget(
        r"f_alpha_divergence_coef=(0\.25|0\.5|2\.0)/pair_extreme$",
        "TRL computes alpha-divergences in float32 and cuts them off at exp(80)",
        6,
    ),
    NotTarget(
        r"use_weighting=True/",
        "TRL 1.16 sets no limit to WPO's weights; the authors' code, matched, has 1",
        8,
    ),
    NotTarget(
        r"^llamafactory@ff6d4d12ee/ld_dpo/ipo/.*ld_alpha=0\.[03]/",
        "length desensitisation of the policy alone, of another loss than DPO",
        4,
    ),
    NotTarget(
        r"^llamafactory@ff6d4d12ee\+trl0\.24\.0/(ipo|hinge)/",
        "the code runs the sigmoid loss whatever `pref_loss` says",
        2,
    ),
    NotTarget(
        r"^halos@4831988636/(IPO|SimPO)/.*/pair_equal$",
        "0/0: HALOs divides by the count of nonzero log-ratios",
        4,
    ),
    NotTarget(r"^halos@4831988636/SLiC/", "the regulariser is divided by the padded width", 1),
    NotTarget(
        r"/(kto_pair|KTO\(in-batch KL\)|VanillaKTOLoss)/",
        "KTO on pairs: the reference point is the other half of the batch, and carries gradient",
        24,
    ),
    NotTarget(
        r"^discopop@3307865a49/lrml_old/",
        "an older form of the loss: its blend leaves out beta and tau",
        8,
    ),
    NotTarget(
        r"/(orpo|odds_ratio)/.*/avg_extreme$",
        "NaN or inaccurate near log-prob 0; `tests/losses/test_orpo.py` checks these inputs "
        "against mpmath",
        6,
    ),
    NotTarget(
        r"^trl1\.16/orpo/e2e/",
        "TRL's likelihood term covers the prompt too; its odds term is matched",
        2,
    ),
    NotTarget(r"^orpo@208d2d6480/", "the authors' code averages over one token too many", 4),
    NotTarget(
        r"^exo@a8ab36011e/exo-pref/",
        "the authors' targets (0, -10) are not normalised: 4.5e-5 off the paper's loss",
        2,
    ),
)

# Labels of no loss of ours, whose cases all fit a reason above.
OTHER_LABELS: frozenset[str] = frozenset()

MATCHED: dict[str, int] = {  # our loss -> cases
    "alphapo": 32,
    "aot": 16,
    "aot_unpaired": 16,
    "apo_down": 14,
    "apo_zero": 14,
    "apo_zero_unpaired": 24,
    "aqfl": 8,
    "aql": 8,
    "arpo": 4,
    "bco": 16,
    "bco_pair": 38,
    "cell": 8,
    "cpo": 24,
    "cpo_hinge": 14,
    "cpo_ipo": 12,
    "dbaql": 8,
    "discopop": 30,
    "dpo": 281,
    "exo": 38,
    "exo_ranked": 2,
    "hinge": 52,
    "infonca": 2,
    "ipo": 90,
    "kto": 120,
    "ld_dpo": 12,
    "ln_dpo": 26,
    "nca": 22,
    "orpo": 16,
    "padll": 8,
    "pfl": 8,
    "robust": 38,
    "sft": 11,
    "simpo": 78,
    "simpo_hinge": 6,
    "slic": 8,
    "sppo": 38,
}
NOT_TARGET: dict[str, int] = {  # our loss -> cases
    "aot": 4,
    "aot_unpaired": 4,
    "apo_down": 2,
    "apo_zero": 4,
    "bco_pair": 2,
    "discopop": 12,
    "dpo": 30,
    "exo": 6,
    "hinge": 6,
    "ipo": 10,
    "kto": 24,
    "ld_dpo": 4,
    "ln_dpo": 6,
    "nca": 2,
    "orpo": 12,
    "robust": 8,
    "sft": 2,
    "simpo": 2,
    "slic": 1,
    "sppo": 4,
}


def label_of(case: Mapping[str, Any]) -> str:
    """Return the label of a case: its own, or the one that its name gives it."""
    for pattern, label in RELABELLED.items():
        if re.search(pattern, case["name"]):
            return label
    return str(case["loss"])


def reasons_not_target(name: str) -> list[NotTarget]:
    """Return the entries of NOT_TARGETS that a case's name fits."""
    return [item for item in NOT_TARGETS if re.search(item.pattern, name)]
