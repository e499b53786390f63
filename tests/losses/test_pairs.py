"""What whole groups of losses for pairs have in common."""

import pytest
import torch

from prefopt.losses import get_loss, list_losses
from prefopt.losses.contract import make_inputs
from prefopt.losses.dpo import dpo_loss
from prefopt.losses.vocabulary import VOCABULARY, specs_of

LOG_PROBS = ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")

# Settings at which a loss is DPO, at the same beta.
DPO_AT = {
    "robust": {"label_smoothing": 0.0},
    "gpo": {"f": "logistic"},
    "dpop": {"lambda_": 0.0},
    "r_dpo": {"alpha": 0.0},
    "odpo": {"alpha": 0.0},
    "beta_dpo": {"alpha": 0.0},
    "ld_dpo": {"alpha": 1.0},
    "tdpo": {"alpha": 0.0},
}
CERTAIN = ["soft_dpo", "geometric_dpo"]

# Losses that look at the rewards themselves, not only at their difference.
ABSOLUTE = {
    "apo_down",
    "apo_zero",
    "bco_pair",
    "cal_dpo",
    "chi_po",
    "dpop",
    "nca",
    "sppo",
    "squared_log_ratio",
}
RELATIVE = [
    loss.name
    for loss in list_losses()
    if loss.data_kind == "paired" and loss.needs_reference and loss.name not in ABSOLUTE
]

# Those of the papers as far as they are known, else of the authors' code or of TRL.
DEFAULTS = {
    "robust": {"beta": 0.1, "label_smoothing": 0.1},
    "exo": {"beta": 0.1, "label_smoothing": 0.001},
    "nca": {"beta": 0.1},
    "sppo": {"beta": 0.001, "reduction": "mean"},
    "bco_pair": {"beta": 0.01, "shift": True},
    "apo_zero": {"beta": 0.1},
    "apo_down": {"beta": 0.1},
    "aot": {"beta": 0.01, "label_smoothing": 0.0},
    "aot_unpaired": {"beta": 0.01, "label_smoothing": 0.0},
    "gpo": {"beta": 0.1, "f": "logistic"},
    "dbaql": {"beta": 0.05, "tau": 0.05},
    "aql": {"beta": 0.05, "tau": 0.05, "blend_temperature": 1.0},
    "padll": {"beta": 0.05},
    "aqfl": {"beta": 0.05, "tau": 0.05},
    "cell": {"beta": 0.05},
    "pfl": {"beta": 0.05, "tau": 0.05},
    "dpop": {"beta": 0.3, "lambda_": 50.0},
    "r_dpo": {"beta": 0.1, "alpha": 0.01},
    "ln_dpo": {"beta": 5.0},
    "odpo": {"beta": 0.1, "alpha": 1.0, "scale": "log"},
    "rpo": {"beta": 0.2, "eta": 1.0, "distance": "backward_kl"},
    "beta_dpo": {"beta": 0.1, "alpha": 0.6},
    "chi_po": {"beta": 0.1, "reward_range": None},
    "cal_dpo": {"beta": 0.1},
    "ld_dpo": {"beta": 0.1, "alpha": 0.5, "reference": "alike"},
    "tdpo": {"beta": 0.1, "alpha": 0.5, "stop_gradient": True},
    "soft_dpo": {"beta": 0.1},
    "geometric_dpo": {"beta": 0.1},
}


def moved(inputs, **by):
    """Return the inputs, the log-probs of chosen or rejected completions moved by some nats."""
    result = dict(inputs)
    for spec in specs_of(inputs):
        of_policy = spec.quantity in ("logps", "head_logps") and not spec.of_reference
        if of_policy and spec.side in by:
            result[spec.name] = inputs[spec.name].detach() + by[spec.side]
    return result


def tokens_alike(inputs):
    return {
        name: torch.full_like(value, 4) if VOCABULARY[name].quantity == "lengths" else value
        for name, value in inputs.items()
    }


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_are_these(name):
    assert get_loss(name).hyperparameters == DEFAULTS[name]


@pytest.mark.parametrize("name", [*DPO_AT, *CERTAIN])
def test_these_are_dpo_at_some_setting(name):
    loss = get_loss(name)
    inputs = make_inputs(loss, torch.float64)
    if name in CERTAIN:
        inputs["preference_probabilities"] = torch.ones(5, dtype=torch.float64)
    losses = loss(**inputs, beta=0.2, **DPO_AT.get(name, {})).losses
    wanted = dpo_loss(*(inputs[key] for key in LOG_PROBS), beta=0.2).losses
    torch.testing.assert_close(losses, wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
def test_sorting_one_pair_leaves_dpo(name):
    loss = get_loss(name)
    inputs = make_inputs(loss, torch.float64, size=1)
    losses = loss(**inputs, beta=0.2, label_smoothing=0.1).losses
    wanted = dpo_loss(**inputs, beta=0.2, label_smoothing=0.1).losses
    torch.testing.assert_close(losses, wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", RELATIVE)
def test_raising_both_completions_alike_changes_nothing(name):
    loss = get_loss(name)
    inputs = tokens_alike(make_inputs(loss, torch.float64))
    raised = moved(inputs, chosen=3.0, rejected=3.0)
    torch.testing.assert_close(loss(**raised).losses, loss(**inputs).losses, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", sorted(ABSOLUTE))
def test_losses_of_the_rewards_themselves_see_it(name):
    loss = get_loss(name)
    inputs = make_inputs(loss, torch.float64)
    raised = moved(inputs, chosen=3.0, rejected=3.0)
    assert not torch.allclose(loss(**raised).losses, loss(**inputs).losses)
