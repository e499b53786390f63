"""The answer in two sentences."""

from prefopt.compare.results import MethodResult, PairedTest
from prefopt.compare.verdict import write_verdict
from prefopt.evaluation import Estimate


def method(name, accuracy, baseline=False):
    metrics = {"accuracy": Estimate(accuracy, accuracy - 0.02, accuracy + 0.02, 500)}
    return MethodResult(name, name, is_baseline=baseline, metrics=metrics)


def test(first, second, difference, p):
    interval = Estimate(difference, difference - 0.01, difference + 0.03, 500)
    return PairedTest(first, second, "accuracy", interval, p / 2, p)


test.__test__ = False


def test_methods_alike_and_worse_are_named_with_their_uncertainty():
    text = write_verdict(
        [
            method("start", 0.9, True),
            method("ipo", 0.709),
            method("dpo", 0.712),
            method("kto", 0.6),
        ],
        [
            test("ipo", "dpo", -0.003, 0.62),
            test("ipo", "kto", 0.1, 0.0002),
            test("dpo", "kto", 0.112, 0.0004),
        ],
    )
    assert text == (
        "dpo and ipo are indistinguishable (accuracy 71.2% and 70.9%, p = 0.62). "
        "Worse is kto by 11.2 points (95% interval 10.2 to 14.2, p < 0.001)."
    )


def test_a_best_method_alone_and_the_sign_of_the_test_reversed():
    text = write_verdict(
        [method("a", 0.6), method("b", 0.7), method("c", 0.5)],
        [test("a", "b", -0.1, 0.01), test("c", "b", -0.2, 0.02), test("a", "c", 0.1, 0.5)],
    )
    assert text == (
        "b is best: it orders 70.0% of the held-out pairs rightly. Worse are a by 10.0 points "
        "(95% interval 7.0 to 11.0, p = 0.01) and c by 20.0 points (95% interval 17.0 to 21.0, "
        "p = 0.02)."
    )


def test_one_method_or_none():
    assert write_verdict([], []) == "No method was measured."
    assert "70.0%" in write_verdict([method("a", 0.7)], [])


def test_when_none_is_worse_that_is_said():
    text = write_verdict([method("a", 0.6), method("b", 0.61)], [test("a", "b", -0.01, 0.8)])
    assert text.endswith(
        "No method is worse beyond the uncertainty of the held-out rows and seeds."
    )


def test_the_best_baselines_are_named_beside_the_losses():
    def rewarded(name, reward, baseline=True):
        found = {"reward": Estimate(reward, reward - 0.1, reward + 0.1, 90)}
        return MethodResult(name, name, is_baseline=baseline, metrics=found)

    text = write_verdict(
        [
            method("start", 0.9, True),
            method("dpo", 0.7),
            method("reward model", 0.72, True),
            method("sft", 0.5, True),
            rewarded("best of 8", 1.5),
            rewarded("rl", 2.25),
            rewarded("kto", 1.0, baseline=False),
        ],
        [test("dpo", "reward model", -0.02, 0.3), test("dpo", "sft", 0.2, 0.001)],
    )
    assert text == (
        "dpo orders 70.0% of the held-out pairs as the data do. Of the baselines, reward model "
        "orders 72.0% rightly (p = 0.30 against dpo) and rl has the highest reward, 2.25 (95% "
        "interval 2.15 to 2.35); of the losses kto has it, 1.00 (95% interval 0.90 to 1.10)."
    )


def test_of_many_worse_methods_the_least_and_the_most_are_told():
    worse = [method(name, 0.7 - 0.01 * place) for place, name in enumerate("bcde", 1)]
    tests = [test("a", one.name, 0.01 * place, 0.01) for place, one in enumerate(worse, 1)]
    tests += [test(one.name, two.name, 0.0, 1.0) for one in worse for two in worse if one != two]
    text = write_verdict([method("a", 0.7), *worse], tests)
    assert text.endswith(
        "Worse are 4 others, from b by 1.0 points (95% interval 0.0 to 4.0, p = 0.01) "
        "to e by 4.0 points (95% interval 3.0 to 7.0, p = 0.01)."
    )


def test_a_rule_that_does_as_well_without_training_is_told():
    rules = {
        "longer": Estimate(0.69, 0.65, 0.73, 500),
        "shorter": Estimate(0.31, 0.27, 0.35, 500),
        "chosen_reward": Estimate(2.0, 1.9, 2.1, 500),
    }
    assert write_verdict([method("a", 0.7)], [], rules).endswith(
        "None is beyond what needs no training: always the longer answer is right in 69.0%."
    )
    assert "None is beyond" not in write_verdict([method("a", 0.72)], [], rules)
