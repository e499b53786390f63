"""Options of the runs."""

import pytest

from prefopt.compare.options import check_options, plain_options


def test_numbers_that_yaml_takes_for_text_are_numbers():
    assert plain_options({"learning-rate": "5e-6", "title": "1e"}) == {
        "learning_rate": 5e-6,
        "title": "1e",
    }


@pytest.mark.parametrize("name", ["seed", "output_dir", "dataset", "model", "eval_fraction"])
def test_what_the_comparison_sets_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} is set by the comparison"):
        plain_options({name: 1})


def test_an_option_must_be_one_of_training_or_of_the_model():
    config = check_options({"loss_type": "ipo", "lora_r": 4, "use_peft": True, "max_steps": 3})
    assert (config.objective.name, config.max_steps) == ("ipo", 3)
    with pytest.raises(ValueError, match="no option 'learning_rat'; did you mean learning_rate"):
        check_options({"learning_rat": 1.0})
    with pytest.raises(ValueError, match="learning_rate"):
        check_options({"learning_rate": -1.0})
