"""What TRL's trainers are configured with."""

import pytest

from prefopt.compare.baselines.trl_config import make_config, make_model_config

OPTIONS = {"output_dir": "x", "learning_rate": 1e-3, "beta": 0.3, "dataset": "d", "use_peft": True}


def test_each_takes_its_own_options_and_defaults_that_run_on_a_cpu():
    reward, rloo = make_config(OPTIONS, "RewardConfig"), make_config(OPTIONS, "RLOOConfig")
    assert (reward.learning_rate, rloo.learning_rate, rloo.beta) == (1e-3, 1e-3, 0.3)
    assert (reward.bf16, rloo.bf16, rloo.gradient_checkpointing) == (False, False, False)
    assert make_model_config(OPTIONS).use_peft


def test_a_wrong_value_is_told():
    with pytest.raises(ValueError, match="at least 2 generations"):
        make_config({"num_generations": 1}, "RLOOConfig")
