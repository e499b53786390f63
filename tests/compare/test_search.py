"""Learning rates, chosen on the validation rows."""

import contextlib
import json

import pytest

pytest.importorskip("optuna")

from prefopt.compare.budget import RowTokens
from prefopt.compare.methods import read_methods
from prefopt.compare.plan import Plan, Spec
from prefopt.compare.search import Search, rates_around
from prefopt.compare.split import split_rows, write_split


class Computes:
    """Writes the accuracy of a run that is best at one rate, and notes the rates."""

    def __init__(self, best, fails=()):
        self.best, self.fails, self.rates = best, fails, []

    def run(self, tasks, watch):
        import yaml

        for task in tasks:
            options = yaml.safe_load(task.files["train.yaml"])
            rate = options["learning_rate"]
            self.rates.append((options["loss_type"], rate))
            if rate in self.fails:
                continue
            accuracy = 1 / (1 + abs(rate - self.best))
            folder = task.folder / "validation"
            folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps({"metrics": {"accuracy": [accuracy, 0, 1, 9]}})
            (folder / "evaluation.json").write_text(text)
            done = {stage.name: stage.digest for stage in task.stages}
            (task.folder / "state.json").write_text(json.dumps({"done": done}))
        watch()


@pytest.fixture
def search(tmp_path, toy_rows, toy_start):
    """Search rates for losses with an executor; return the methods and what was said."""

    def search_it(executor, losses="dpo", trials=0, rates=(), **more):
        methods, _ = read_methods(losses)
        options = {"max_steps": 2, "learning_rate": 0.1}
        spec = Spec(
            toy_start,
            tuple(methods),
            (3,),
            options,
            search_trials=trials or len(rates),
            search_rates=rates,
            **more,
        )
        data = write_split(split_rows(toy_rows), tmp_path / "data")
        plan = Plan(spec, tmp_path, data, RowTokens(9, 9), "start")
        said = []
        watch = type("Watch", (), {"update": lambda self: None})()
        show = lambda tasks: contextlib.nullcontext(watch)  # noqa: E731
        return Search(plan, executor, said.append, show).choose(methods), said

    return search_it


def test_the_best_of_the_rates_around_the_own_is_taken_for_each_method(search):
    computes = Computes(best=0.3)
    methods, said = search(computes, "dpo, orpo", trials=4)
    expected = [pytest.approx(rate) for rate in (0.1 / 3, 0.1, 0.3, 0.9)]
    assert [rate for loss, rate in computes.rates if loss == "dpo"] == expected
    assert [method.options["learning_rate"] for method in methods] == [pytest.approx(0.3)] * 2
    assert [method.name for method in methods] == ["dpo", "orpo"]
    assert said[0] == "dpo: learning rate 0.3 of 4 tried (accuracy 1.000 on the validation rows)"


def test_a_rate_at_the_end_is_said(search):
    _, said = search(Computes(best=5.0), rates=(0.1, 1.0, 2.0))
    assert said[0].endswith("it is the highest of them, so a wider search may find a better one")


def test_trials_that_were_made_are_not_made_again(search):
    first = Computes(best=0.3)
    search(first, trials=3)
    again = Computes(best=0.3)
    methods, _ = search(again, trials=3)
    assert (len(first.rates), again.rates) == (3, [])
    assert methods[0].options["learning_rate"] == pytest.approx(0.3)


def test_further_trials_are_where_the_sampler_expects_most(search):
    computes = Computes(best=0.2)
    methods, _ = search(computes, trials=7)
    rates = [rate for _, rate in computes.rates]
    assert len(rates) == 7
    assert all(0.1 / 3 <= rate <= 0.9 for rate in rates[4:])
    assert len(set(rates)) == 7
    best = min(rates, key=lambda rate: abs(rate - 0.2))
    assert methods[0].options["learning_rate"] == best


def test_a_search_that_was_cut_off_asks_for_the_same_rates(search):
    class Stops(Computes):
        def run(self, tasks, watch):
            super().run(tasks[:1], watch)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(Stops(best=0.3), trials=4)
    computes = Computes(best=0.3)
    methods, said = search(computes, trials=4)
    assert sorted(rate for _, rate in computes.rates) == pytest.approx(rates_around(0.1, 4))
    assert methods[0].options["learning_rate"] == pytest.approx(0.3)
    assert "of 4 tried" in said[0]


def test_rates_that_fail_are_passed_over(search):
    methods, _ = search(Computes(best=1.0, fails=(1.0,)), rates=(0.5, 1.0))
    assert methods[0].options["learning_rate"] == 0.5
    methods, said = search(Computes(best=1.0, fails=(3.0, 4.0)), rates=(3.0, 4.0), losses="ipo")
    assert "learning_rate" not in methods[0].options
    assert said == ["ipo: no learning rate could be tried; its own is kept"]


def test_a_metric_that_is_not_measured_is_told(search):
    with pytest.raises(ValueError, match="'reward' was not measured of dpo; there are: accuracy"):
        search(Computes(best=1.0), trials=1, search_metric="reward")


def test_a_search_needs_rows_for_validation(tmp_path, toy_rows, toy_start):
    data = write_split(split_rows(toy_rows, validation_size=0), tmp_path / "data")
    plan = Plan(Spec(toy_start, ()), tmp_path, data, RowTokens(9, 9), "start")
    with pytest.raises(ValueError, match="give validation a size"):
        Search(plan, Computes(0), print, print)
