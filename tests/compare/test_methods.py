"""Which methods a comparison has, and what they are called."""

import pytest

from prefopt.compare.methods import Method, read_methods


def test_each_loss_with_a_beta_is_run_with_all_and_others_once():
    methods, notes = read_methods("dpo, orpo, dpo + 0.2*sft", betas=[0.1, 0.5])
    assert [(its.name, dict(its.options)) for its in methods] == [
        ("dpo beta=0.1", {"loss_type": "dpo", "beta": 0.1}),
        ("dpo beta=0.5", {"loss_type": "dpo", "beta": 0.5}),
        ("orpo", {"loss_type": "orpo"}),
        ("dpo + 0.2*sft beta=0.1", {"loss_type": "dpo + 0.2*sft", "beta": 0.1}),
        ("dpo + 0.2*sft beta=0.5", {"loss_type": "dpo + 0.2*sft", "beta": 0.5}),
    ]
    assert notes == ["orpo has no beta: it is run once, with its own settings"]


def test_listed_methods_are_named_by_what_differs():
    methods, _ = read_methods(
        "ipo",
        methods=[
            {"loss_type": "slic", "learning_rate": 1e-5, "loss_kwargs": {"delta": 1.0}},
            {"loss_type": "slic", "learning-rate": 1e-6, "loss_kwargs": '{"delta": 1.0}'},
            {"loss_type": "dpo", "name": "mine"},
        ],
    )
    assert [its.name for its in methods] == ["ipo", "slic lr=1e-05", "slic lr=1e-06", "mine"]
    assert methods[0].slug == "ipo"
    assert Method("dpo + 0.2*sft beta=0.1", {}).slug == "dpo_0.2_sft_beta_0.1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "no methods"),
        ({"losses": "dpoo"}, "unknown loss 'dpoo'"),
        ({"losses": "dpo, dpo"}, "two methods are called 'dpo'"),
        ({"methods": [{"beta": 1}]}, "methods must list losses"),
        ({"losses": ["dpo"], "betas": [0.1, 0.1]}, "two methods are called"),
    ],
)
def test_what_is_no_method_is_told(arguments, message):
    with pytest.raises(ValueError, match=message):
        read_methods(**arguments)


def test_an_option_that_the_loss_refuses_is_told():
    with pytest.raises(ValueError, match="beta"):
        Method("orpo", {"loss_type": "orpo", "beta": 0.1}).objective()
    assert Method("dpo", {"loss_type": "dpo"}).objective({"beta": 0.7}).terms[0].beta == 0.7
