"""The kinds of method."""

from prefopt.compare.baselines import KINDS, common_options
from prefopt.compare.baselines.kinds import BASELINES


def test_all_but_losses_and_the_start_can_be_asked_for():
    assert set(BASELINES) == {"sft", "reward_model", "rl", "rl_true", "best_of_n"}
    assert [name for name in KINDS if not KINDS[name].trained_by] == ["start", "best_of_n"]


def test_what_only_losses_have_is_not_for_trl():
    common = {"beta": 0.3, "layout": "padded", "learning_rate": 1e-4, "use_peft": True}
    common |= {"max_length": 64, "seed": 3}
    for_trl = {"learning_rate": 1e-4, "use_peft": True, "max_length": 64, "seed": 3}
    assert common_options("rl", common) == common_options("reward_model", common) == for_trl
    assert common_options("sft", common) == common_options("loss", common) == common
