"""The checks of a configuration, on plain values; ``tests/bad_input`` has wrong values by field."""

import pytest
from accelerate import ParallelismConfig

from prefopt import PreferenceConfig
from prefopt.config_checks import plain_fields, read_json, read_object


def test_plain_fields_are_numbers_switches_and_text_of_ours():
    found = plain_fields(PreferenceConfig)
    assert found["max_length"] == {int, type(None)}
    assert found["learning_rate"] == {float}
    assert str in found["reference"]
    assert "output_dir" not in found  # of transformers, and no number


def test_numbers_in_another_form_are_taken_as_what_they_say():
    made = PreferenceConfig("o", report_to="none", use_cpu=True, max_length=8.0, use_weighting=0)
    assert made.max_length == 8
    assert type(made.max_length) is int
    assert made.use_weighting is False


def test_an_object_is_read_from_json_in_place():
    made = PreferenceConfig("o", report_to="none", use_cpu=True)
    made.loss_kwargs = '{"beta": 0.5}'
    read_json(made, "loss_kwargs")
    assert made.loss_kwargs == {"beta": 0.5}
    made.loss_kwargs = "[1]"
    with pytest.raises(ValueError, match="loss_kwargs must be an object"):
        read_json(made, "loss_kwargs")


def test_what_is_not_json_is_named():
    with pytest.raises(ValueError, match=r"loss_type is not JSON: .* in '\{a'"):
        read_object("loss_type", "{a")


@pytest.mark.parametrize("given", ['{"dp_shard_size": 2}', {"dp_shard_size": 2}])
def test_parallelism_is_read_from_json_and_dictionaries(given):
    made = PreferenceConfig("o", report_to="none", use_cpu=True, parallelism_config=given)
    assert isinstance(made.parallelism_config, ParallelismConfig)
    assert made.parallelism_config.dp_shard_size == 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("{bad", "parallelism_config is not JSON"),
        ("[1]", "parallelism_config must be an object"),
        ({"bogus": 1}, "parallelism_config has no 'bogus'; it has dp_replicate_size"),
        ({"tp_siz": 1}, "parallelism_config has no 'tp_siz'; did you mean 'tp_size'"),
        ({"tp_size": "x"}, "tp_size must be a whole number, got 'x'"),
        ({"dp_shard_size": 0}, "parallelism_config=.*at least 1"),
        ('{"tp_size": 2}', "tp_size=2 asks for tensor parallelism"),
        ({"cp_size": 2}, "cp_size=2 asks for context parallelism"),
    ],
)
def test_another_parallelism_is_told_what_is_wrong(given, said):
    with pytest.raises(ValueError, match=said):
        PreferenceConfig("o", report_to="none", use_cpu=True, parallelism_config=given)
