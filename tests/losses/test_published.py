"""Ranges of hyper-parameters that losses declare, and the warnings they lead to.

The values were looked up outside the code: in papers, in lists of what papers used, or in the
configurations and commands of their authors.
"""

import inspect

import pytest
from torch import Tensor

from prefopt.losses import LossOutput, get_loss, list_losses, register_loss
from prefopt.losses.contract import broken_checks
from prefopt.objective.options import LossOptions, fit_options

DISCOPOP_BETAS = [0.025, 0.05, 0.1, 0.25, 0.5, 1.0]  # figures 5 and 8

# What was published, by loss and hyper-parameter.
PUBLISHED = {
    "apo_down": {"beta": [0.1]},  # section 5.2, by TRL's list of papers
    "apo_zero": {"beta": [0.1]},  # section 5.2, by TRL's list of papers
    "aqfl": {"beta": DISCOPOP_BETAS, "tau": [0.05]},
    "aql": {"beta": DISCOPOP_BETAS, "tau": [0.05]},
    "bco": {"beta": [0.01]},  # appendix C, by TRL's list of papers
    "bco_pair": {"beta": [0.01]},  # the same
    "cal_dpo": {"beta": [0.1, 0.001, 0.002]},  # Cal-DPO/Cal-DPO: HH, TL;DR; tengxiao1/Cal-DPO
    "cell": {"beta": DISCOPOP_BETAS},
    "cpo": {"beta": [0.1]},  # section 4.2, by TRL's list; fe1ixxu/ALMA: runs/cpo_ft.sh
    "dbaql": {"beta": DISCOPOP_BETAS, "tau": [0.05]},
    "discopop": {"beta": DISCOPOP_BETAS, "tau": [0.05]},
    "dpo": {"beta": [0.05, 0.1, 1, 5, 0.5]},  # section 6.1 (IMDB); appendix B: 0.1, TL;DR 0.5
    "dpop": {"beta": [0.1, 0.3, 1.0], "lambda_": [5, 50, 500]},  # section 5 and its ablations
    "exo": {"beta": [0.1, 0.5]},  # haozheji/exact-optimization: imdb; hh and tldr
    "exo_ranked": {"beta": [0.1, 0.5]},  # the same scripts
    "hinge": {"beta": [0.05]},  # gamma of RSO, by TRL's list of papers
    "infonca": {"beta": [0.01]},  # thu-ml/Noise-Contrastive-Alignment: reward_qlora.yaml
    "kto": {"beta": [0.1, 0.05, 0.25, 0.5]},  # table 1
    "ln_dpo": {"beta": [5, 10, 15, 2]},  # table 18
    "nca": {"beta": [0.1, 0.01]},  # appendix C (8x7B); preference_qlora.yaml
    "nca_ranked": {"beta": [0.01]},  # reward_qlora.yaml
    "orpo": {"lambda_": [0.1, 0.2, 0.25, 0.5, 1.0, 0.05]},  # 6.1, E.1; run_mistral_orpo_capybara.sh
    "padll": {"beta": DISCOPOP_BETAS},
    "pfl": {"beta": DISCOPOP_BETAS, "tau": [0.05]},
    "robust": {"beta": [0.1]},  # appendix B, by TRL's list of papers (0.01 in older versions of it)
    "simpo": {"beta": [2.0, 2.5, 10.0]},  # table 8, appendix H
    "simpo_hinge": {"beta": [2.0, 2.5, 10.0]},  # the same code
    "sppo": {"beta": [0.001]},  # eta = 1000
}

DECLARED = [(loss.name, name) for loss in list_losses() for name in loss.published]


def test_ranges_span_what_was_published_and_nothing_else_is_declared():
    declared = {loss.name: loss.published for loss in list_losses() if loss.published}
    spans = {
        loss: {name: (min(values), max(values)) for name, values in its.items()}
        for loss, its in PUBLISHED.items()
    }
    assert declared == spans


def test_defaults_are_within_the_ranges(warned):
    for loss in list_losses():
        loss.check_hyperparameters(loss.hyperparameters)
    assert warned == []


@pytest.mark.parametrize(("name", "hyperparameter"), DECLARED)
def test_a_value_above_the_range_warns_once_with_loss_value_range_and_paper(
    name, hyperparameter, warned
):
    loss = get_loss(name)
    low, high = loss.published[hyperparameter]
    for factor in (2, 3):
        # The ratio of two hyper-parameters of SimPO has a warning of its own.
        loss.check_hyperparameters({hyperparameter: factor * high, **_ratio_kept(name, factor)})
    (message,) = warned
    assert message.startswith(f"{name}: {hyperparameter}={2 * high} is outside")
    assert f"{high:g}" in message
    assert f"{low:g}" in message
    number = message.split("arXiv:")[1].split(",")[0]
    assert number in inspect.getsource(inspect.getmodule(loss.function))


def _ratio_kept(name, factor):
    return {"gamma": 0.5 * factor * 10} if name.startswith("simpo") else {}


def test_a_value_below_the_range_warns_and_its_ends_do_not(warned):
    for beta in (0.05, 5.0, 0.01):
        get_loss("dpo").check_hyperparameters({"beta": beta})
    assert warned == [
        "dpo: beta=0.01 is outside the published range: "
        "Rafailov et al. 2023, arXiv:2305.18290, used 0.05 to 5"
    ]


def test_the_end_of_a_schedule_is_a_choice_too(warned):
    dpo = get_loss("dpo")
    fit_options(LossOptions(beta_schedule="linear", beta_final=8.0), [dpo], [{"beta": 1.0}])
    assert len(warned) == 1
    assert warned[0].startswith("dpo: beta=8.0 is outside")


def test_a_refused_value_raises_and_does_not_warn(warned):
    with pytest.raises(ValueError, match="beta must be greater than 0"):
        get_loss("dpo").check_hyperparameters({"beta": -1.0})
    assert warned == []


def test_calls_that_probe_a_loss_warn_of_nothing(warned, pairs):
    dpo = get_loss("dpo")
    dpo(**pairs, beta=1e-4)
    broken_checks(dpo)
    fit_options(LossOptions(f_divergence_type="forward_kl"), [dpo], [{"beta": 1e-4}])
    assert warned == []


def sliding_loss(chosen_logps: Tensor, *, beta: float = 0.1) -> LossOutput:
    """Slide.

    Source: Doe and Roe 2031, arXiv:3101.00001, Eq. 1. Departures from it: none.
    """
    return LossOutput(-beta * chosen_logps)


@pytest.mark.usefixtures("scratch_registry")
def test_third_parties_declare_ranges_of_their_own(warned):
    register_loss("sliding", published={"beta": (0.1, 0.2)})(sliding_loss)
    get_loss("sliding").check_hyperparameters({"beta": 0.3})
    assert warned == [
        "sliding: beta=0.3 is outside the published range: "
        "Doe and Roe 2031, arXiv:3101.00001, used 0.1 to 0.2"
    ]


@pytest.mark.usefixtures("scratch_registry")
@pytest.mark.parametrize("published", [{"gamma": (0.1, 0.2)}, {"beta": (0.2, 0.1)}])
def test_a_range_of_nothing_or_upside_down_is_refused(published):
    with pytest.raises(ValueError, match=r"loss 'sliding': published\['(beta|gamma)'\] must be"):
        register_loss("sliding", published=published)(sliding_loss)
