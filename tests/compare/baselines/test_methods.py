"""Which baselines are asked for."""

import pytest

from prefopt.compare.baselines import read_baselines

REWARD = {"reward": "r.py:reward"}


def test_names_make_methods_with_what_their_kind_adds():
    evaluation = {**REWARD, "max_new_tokens": 32}
    methods, notes = read_baselines("sft, reward_model, rl, rl_true, best_of_n", {}, evaluation)
    assert notes == []
    assert {one.name: (one.kind, one.loss, one.options) for one in methods} == {
        "sft on the chosen": ("sft", "sft", {"loss_type": "sft"}),
        "reward model": ("reward_model", "reward_model", {}),
        "rl, learnt reward": (
            "rl",
            "rl",
            {"max_completion_length": 32, "reward_model": "reward model"},
        ),
        "rl, true reward": (
            "rl_true",
            "rl_true",
            {"max_completion_length": 32, "reward": "r.py:reward"},
        ),
        "best of 16": ("best_of_n", "best_of_n", {"n": 16, "by": "reward"}),
    }


def test_a_reward_model_is_added_where_it_is_needed():
    methods, notes = read_baselines(["rl", {"kind": "best_of_n", "n": 4, "by": "reward_model"}])
    assert [one.name for one in methods] == [
        "reward model",
        "rl, learnt reward",
        "best of 4 by reward model",
    ]
    assert len(notes) == 1
    assert methods[2].options["reward_model"] == "reward model"


def test_two_of_a_kind_are_named_by_what_differs_and_may_choose_their_reward_model():
    methods, _ = read_baselines(
        [
            {"kind": "reward_model", "learning_rate": "1e-4"},
            {"kind": "reward_model", "learning_rate": 1e-3, "name": "fast"},
            {"kind": "rl", "beta": 0.1},
            {"kind": "rl", "beta": 0.2, "reward-model": "fast"},
        ]
    )
    assert [one.name for one in methods][:2] == ["reward model", "fast"]
    assert methods[0].options == {"learning_rate": 1e-4}
    assert [one.options["reward_model"] for one in methods[2:]] == ["reward model", "fast"]
    assert methods[2].name.startswith("rl, learnt reward beta=0.1")


def test_a_judge_picks_where_there_is_no_reward():
    (method,), _ = read_baselines("best_of_n", {}, {"judge": "logprob:M"})
    assert method.options["by"] == "judge"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("sfft", "no baseline 'sfft'.*did you mean sft"),
        (["sft", 3], "baselines must list kinds"),
        ([{"kind": "rl", "num_generation": 4}], "rl: there is no option 'num_generation'; did you"),
        ([{"kind": "rl", "num_generations": 3}], "rl: .*divisible by num_generations"),
        ([{"kind": "rl", "reward_model": "x"}], "no reward model 'x'; there are"),
        ([{"kind": "reward_model", "beta": 1}], "reward_model: there is no option 'beta'"),
        ([{"kind": "sft", "beta": 1}], "sft: .*beta"),
        ("rl_true", "rl_true: the true reward is not known: give it with --reward"),
        ("best_of_n", "best_of_n: what picks the best answer is missing"),
        ([{"kind": "best_of_n", "by": "reward"}], "best_of_n: by reward needs --reward"),
        ([{"kind": "best_of_n", "by": "x"}], "best_of_n: by must be one of"),
        ([{"kind": "best_of_n", "n": 1, "by": "reward_model"}], "n must be a whole number"),
        ([{"kind": "sft", "seed": 1}], "seed is set by the comparison"),
        (["reward_model", "reward_model"], "two methods are called"),
    ],
)
def test_a_mistake_is_told(given, message):
    with pytest.raises(ValueError, match=message):
        read_baselines(given)


def test_options_of_all_methods_are_checked_with_those_of_a_baseline():
    common = {"per_device_train_batch_size": 6, "beta": 0.3}
    with pytest.raises(ValueError, match=r"rl: .*divisible by num_generations"):
        read_baselines([{"kind": "rl", "num_generations": 4}], common)
    read_baselines([{"kind": "rl", "num_generations": 3}], common)
