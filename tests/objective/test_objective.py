import math
import pickle

import pytest

from prefopt.losses import get_loss
from prefopt.objective import Objective, Term, parse_objective


def test_a_name_is_a_sum_of_one():
    assert parse_objective("dpo") == Objective((Term(get_loss("dpo"), 1.0, {}),))


@pytest.mark.parametrize(
    ("loss_type", "loss_weights"),
    [
        ("dpo + 0.2*sft", None),
        ("dpo+.2 * sft", None),
        ("1.0*dpo + 2e-1*sft", None),
        ("sigmoid + sft", [1, 0.2]),
        (["dpo", "sft"], [1.0, 0.2]),
        (("dpo", "0.2*sft"), None),
    ],
)
def test_expression_list_and_weights_describe_the_same_sum(loss_type, loss_weights):
    objective = parse_objective(loss_type, loss_weights)
    assert [(term.loss.name, term.weight) for term in objective.terms] == [("dpo", 1), ("sft", 0.2)]
    assert objective.name == "dpo + 0.2*sft"


def test_an_exponent_with_a_plus_is_not_a_sum():
    assert parse_objective("1e+1*dpo").terms == (Term(get_loss("dpo"), 10.0, {}),)


def test_the_name_is_read_back_as_the_same_sum():
    objective = parse_objective("0.8*dpo + 0.1234567891*slic + orpo")
    assert parse_objective(objective.name) == objective


def test_what_a_sum_needs_is_what_its_losses_need():
    objective = parse_objective("orpo + sft")
    assert objective.inputs == {*get_loss("orpo").inputs, *get_loss("sft").inputs}
    assert objective.data_kinds == {"paired", "preferred"}
    assert not objective.needs_reference
    assert not objective.needs_kl
    objective = parse_objective("sft + kto")
    assert objective.data_kinds == {"unpaired", "preferred"}
    assert objective.needs_reference
    assert objective.needs_kl


def test_options_go_to_every_loss_that_has_them_and_nested_ones_come_first():
    options = {"beta": 0.5, "hinge": {"beta": 0.7}, "lambda": 0.3}
    objective = parse_objective("sigmoid + rso + orpo + sft", options=options)
    assert [term.hyperparameters for term in objective.terms] == [
        {"beta": 0.5},
        {"beta": 0.7},
        {"lambda_": 0.3},
        {},
    ]


def test_nested_options_may_use_an_alias_and_the_word_lambda():
    objective = parse_objective(
        "dpo + slic", options={"sigmoid": {"beta": 2}, "slic": {"lambda": 0}}
    )
    assert [term.hyperparameters for term in objective.terms] == [{"beta": 2}, {"lambda_": 0}]


def test_names_are_read_in_any_case_and_told_in_ours():
    objective = parse_objective("DPO + 0.2*SFT", options={"Sft": {"normalize": "sequence"}})
    assert objective.name == "dpo + 0.2*sft"
    assert objective.terms[1].hyperparameters == {"normalize": "sequence"}


def test_only_what_the_user_sets_is_in_the_term():
    assert parse_objective("dpo").terms[0].hyperparameters == {}


@pytest.mark.parametrize(
    ("loss_type", "loss_weights", "options", "message"),
    [
        ("ipoo", None, None, "unknown loss 'ipoo'; did you mean 'ipo'"),
        ("dpo - sft", None, None, "cannot read the loss 'dpo - sft' at 'dpo - sft'"),
        ("dpo + ", None, None, "cannot read the loss"),
        ("dpo sft", None, None, "cannot read the loss"),
        ("", None, None, "cannot read the loss ''"),
        ([], None, None, "loss_type is empty"),
        ("dpo + sigmoid", None, None, "'dpo' is listed twice"),
        ("dpo + 0.2*sft", [1, 0.2], None, "weights are given twice"),
        (["dpo", "sft"], [1.0], None, "loss_weights has 1 values for 2 losses"),
        ("-1*dpo", None, None, "weight of 'dpo' must be finite and at least 0, got -1"),
        ("dpo", [math.nan], None, "weight of 'dpo' must be finite"),
        ("dpo + sft", None, {"tau": 1}, "takes the option 'tau'; .* dpo: beta, label.*; sft: norm"),
        (
            "dpo",
            None,
            {"ipo": {"beta": 1}},
            "options are given for 'ipo', which is not among .* dpo",
        ),
        ("slic", None, {"lamda_": 1}, r"delta, lambda_\. Did you mean 'lambda_'\?"),
        ("slic", None, {"slic": {"lamda_": 1}}, r"lambda_\. Did you mean 'lambda_'\?"),
        ("dpo", None, {"dpo": {"tau": 1}}, "loss 'dpo' has no hyper-parameter 'tau'"),
        ("dpo", None, {"beta": -1.0}, "beta must be greater than 0"),
        ("dpo", None, {"beta": "high"}, "beta must be a number"),
    ],
)
def test_wrong_input_raises(loss_type, loss_weights, options, message):
    with pytest.raises(ValueError, match=message):
        parse_objective(loss_type, loss_weights, options)


def test_pickles():
    objective = parse_objective("dpo + 0.2*sft", options={"beta": 0.3})
    assert pickle.loads(pickle.dumps(objective)) == objective


def test_mpo_is_a_sum():
    """Wang et al. 2024, arXiv:2411.10442: 0.8 preference, 0.2 quality, 1 generation."""
    objective = parse_objective("0.8*dpo + 0.2*bco_pair + sft")
    assert [(term.loss.name, term.weight) for term in objective.terms] == [
        ("dpo", 0.8),
        ("bco_pair", 0.2),
        ("sft", 1.0),
    ]
