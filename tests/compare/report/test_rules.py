"""What needs no training stands beside the numbers that it can be compared with."""

from prefopt.compare.report.rules import rule_title, rules_of
from prefopt.evaluation import Estimate

HALF = Estimate(0.5, 0.4, 0.6, 100)
BASELINES = dict.fromkeys(
    ("longer", "shorter", "start", "chosen_reward", "rejected_reward", "loudest"), HALF
)


def test_rules_that_choose_stand_beside_accuracies_and_rewards_beside_rewards():
    assert set(rules_of("accuracy", BASELINES)) == {"longer", "shorter", "start", "loudest"}
    assert rules_of("log_ratio_accuracy", BASELINES) == rules_of("accuracy", BASELINES)
    assert set(rules_of("reward", BASELINES)) == {"chosen_reward", "rejected_reward"}
    assert rules_of("balanced_accuracy", BASELINES) == rules_of("kl", BASELINES) == {}


def test_a_rule_that_is_not_known_goes_by_its_own_name():
    assert rule_title("loudest") == "loudest"
    assert rule_title("chosen_reward") == "the data's chosen answers"
