"""What all conversions share: lines, numbers as text, unknown keys, and whose a file is."""

import pytest

from prefopt.cli.foreign import PROGRAMS, convert
from prefopt.cli.foreign.conversion import (
    Conversion,
    as_number,
    cannot,
    differs,
    nothing,
    number,
    same,
)

KEYS = {
    "rate": same("learning_rate", default=1e-3),
    "cut": differs("max_length", "cut elsewhere"),
    "plot": nothing("a picture"),
    "galore": cannot("use optim", False),
}


def applied(**values):
    made = Conversion.of("Other", values)
    made.apply(KEYS)
    return made


def test_each_key_has_a_line():
    made = applied(rate="1e-5", cut=8, plot=True, galore=True, rat=1, blank=None)
    assert made.options == {"learning_rate": 1e-5, "max_length": 8}
    outcomes = {line.keys[0]: line.outcome for line in made.lines}
    assert outcomes == {
        "rate": "same",
        "cut": "differs",
        "plot": "nothing",
        "galore": "cannot",
        "rat": "cannot",
    }
    assert "did you mean 'rate'" in made.lost[1].note


def test_a_default_is_written_where_the_key_is_missing():
    made = applied(galore=False)
    assert made.options == {"learning_rate": 1e-3}
    assert not made.lost
    assert made.lines[-1].note == "the default of Other"


def test_two_keys_that_contradict_each_other_are_told():
    made = Conversion.of("Other", {"a": 1, "b": 2})
    made.put("x", 1, "a")
    made.put("x", 2, "b")
    assert made.options == {"x": 1}
    assert made.lost[0].keys == ("b",)


@pytest.mark.parametrize(
    ("text", "value"),
    [("5e-6", 5e-6), ("1E3", 1000.0), (".5e1", 5.0), ("e5", "e5"), ("7b", "7b"), (True, True)],
)
def test_numbers_that_yaml_reads_as_text(text, value):
    assert as_number(text) == value


def test_what_is_no_number_is_told():
    with pytest.raises(ValueError, match="rl_beta must be a number, got 'low'"):
        number("low", "rl_beta")


@pytest.mark.parametrize(
    "values",
    [
        {"model": "m", "loss_type": "ipo"},
        {"model": "m", "loss_type": "ipo", "stage": "dpo"},  # a mistake in a file of ours
        {"model_name_or_path": "m", "beta": 0.1, "rl": "dpo"},
        {"stage": "dpo", "base_model": "m"},  # of two programs
        {"datasets": ["a"], "torch_dtype": "auto"},
        {},
    ],
)
def test_a_file_of_ours_or_of_none_is_left_alone(values):
    assert convert(values, "x.yaml") is None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"stage": "dpo", "pref_beta": "high"}, "pref_beta must be a number, got 'high'"),
        ({"stage": "dpo", "lora_rank": "many"}, "lora_rank must be a number"),
        ({"stage": "dpo", "lora_rank": 8.5}, "lora_rank must be a whole number"),
        ({"rl": "dpo", "base_model": "m", "micro_batch_size": "two"}, "micro_batch_size must be"),
        ({"dataset_mixer": {"d": 1}, "beta": "x"}, "beta must be a number"),
    ],
)
def test_a_value_of_the_wrong_kind_names_file_and_key(values, said):
    with pytest.raises(ValueError, match=rf"^x.yaml: {said}"):
        convert(values, "x.yaml")


@pytest.mark.parametrize(
    "values",
    [
        {"stage": ["dpo"]},
        {"stage": "dpo", "pref_loss": ["sigmoid"]},
        {"stage": "dpo", "dataset": "d", "dataset_dir": 7},
        {"rl": ["dpo"], "base_model": "m"},
        {"rl": "dpo", "base_model": "m", "datasets": "d.jsonl"},
        {"dataset_mixer": ["a"]},
        {"dataset_mixture": {"datasets": ["a"]}},
    ],
)
def test_a_value_of_the_wrong_shape_cannot_be_had(values):
    assert convert(values, "x.yaml").lost


def test_no_mark_is_of_two_programs():
    marks = [mark for one in PROGRAMS for mark in one.MARKS]
    assert len(marks) == len(set(marks))
    for one in PROGRAMS:
        assert set(one.KEYS) >= one.MARKS


def test_a_key_that_another_program_has_is_told_with_what_it_is_here():
    made = convert({"dataset_mixer": {"d": 1.0}, "val_size": 0.1, "qqqq": 1}, "x.yaml")
    assert made is not None
    told, unknown = (line.note for line in made.lost)
    assert told.startswith("LLaMA-Factory's val_size is eval_fraction, eval_rows here (a share")
    assert unknown == "alignment-handbook has no such key, as far as is known"
