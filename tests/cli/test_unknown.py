"""Options that there are not."""

import pytest

from prefopt.cli import UserError
from prefopt.cli.unknown import known_only

OPTIONS = ("max_length", "max-length", "loss_type", "lora_r", "dtype", "learning_rate")


def refused(values, path=None, losses=""):
    with pytest.raises(UserError) as error:
        known_only(values, OPTIONS, path, losses)
    return str(error.value)


def test_what_there_is_is_returned_without_what_changes_nothing():
    given = {"max_length": 5, "padding_value": 0, "rpo_alpha": None}
    assert known_only(given, OPTIONS) == {"max_length": 5}


def test_all_that_is_wrong_is_told_at_once():
    given = {"cutoff_len": 1, "pref_loss": "ipo", "sequence_len": 2, "lora_rank": 3, "loss_tipe": 4}
    head, *lines = refused(given | {"torch_dtype": "auto", "rpo_alpha": 0.2}, "a.yaml").split(
        "\n  "
    )
    assert head == "a.yaml:"
    meanings = (
        "LLaMA-Factory's cutoff_len is max_length here",
        "LLaMA-Factory's pref_loss is loss_type here",
        "Axolotl's sequence_len is max_length here",
        "LLaMA-Factory's lora_rank is lora_r here",
        "did you mean 'loss_type'?",
        "use dtype instead",
        "loss_type='dpo + 0.2*sft'",
    )
    assert len(lines) == len(meanings)
    assert all(meant in line for meant, line in zip(meanings, lines, strict=True))


def test_on_the_command_line_options_have_dashes_and_are_named_once():
    assert "cutoff_len is --max_length here" in refused({"cutoff_len": 1})
    said = refused({"learning_rat": 1})
    assert said == "unknown option '--learning_rat'; did you mean '--learning_rate'?" + (
        " There are: --dtype, --learning_rate, --lora_r, --loss_type, --max_length"
    )


@pytest.mark.parametrize(
    ("name", "losses", "says"),
    [
        ("tau", "DiscoPOP + 0.1*sft", "of discopop: --loss_kwargs tau=0.5, or --discopop_tau 0.5"),
        ("tau", "", "of aqfl, aql, dbaql, ...: --loss_kwargs tau=0.5"),
        ("gamma", "simpo", "gamma is a hyper-parameter of simpo: --loss_kwargs gamma=0.5"),
    ],
)
def test_a_hyper_parameter_of_a_loss_is_told_how_it_is_given(name, losses, says):
    assert refused({name: 0.5}, losses=losses).endswith(says)


@pytest.mark.parametrize(
    ("name", "losses", "says"),
    [
        (
            "tua",
            "discopop",
            "did you mean 'tau'? tau is a hyper-parameter of discopop: --loss_kwar",
        ),
        ("labmda_", "", "did you mean 'lambda_'? lambda_ is a hyper-parameter of "),
        ("dtpe", "discopop", "did you mean '--dtype'?"),
    ],
)
def test_a_misspelt_one_is_told_too(name, losses, says):
    assert says in refused({name: 0.5}, losses=losses)


def test_in_a_file_it_is_told_as_yaml():
    assert "loss_kwargs: {tau: 0.5}" in refused({"tau": 0.5}, "run.yaml")
