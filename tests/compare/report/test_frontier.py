"""Reward against KL."""

import json
from dataclasses import replace

from prefopt.compare import Comparison, MethodResult
from prefopt.compare.report.frontier import frontier
from prefopt.evaluation import Estimate

HALF = Estimate(0.5, 0.4, 0.6, 100)
NAN = Estimate(float("nan"), float("nan"), float("nan"), 0)


def test_the_frontier_has_methods_seeds_and_the_best_reachable(comparison):
    data = next(iter(frontier(comparison))).spec["datasets"]
    rewards = {it.name: it.metrics["reward"].value for it in comparison.methods}
    assert {row["method"]: row["reward"] for row in data["rows"]} == rewards
    assert len(data["seeds"]) == 8 * 3
    assert [row["kl"] for row in data["best"]] == sorted(it.kl for it in comparison.frontier)


def test_a_kl_far_from_the_others_makes_the_scale_a_root(comparison):
    def scale(chart):
        return json.dumps(chart.spec).count('"sqrt"')

    assert scale(next(iter(frontier(comparison)))) == 0
    far = replace(
        comparison.methods[-1], metrics={"reward": HALF, "kl": Estimate(90.0, 80.0, 99.0, 9)}
    )
    chart = next(iter(frontier(replace(comparison, methods=(*comparison.methods[:-1], far)))))
    assert scale(chart) > 0
    assert "(square-root scale)" in json.dumps(chart.spec)


def test_methods_of_one_loss_are_joined(comparison):
    assert '"oneOf": ["dpo", "ipo"]' in json.dumps(next(iter(frontier(comparison))).spec)


def test_a_method_without_reward_or_kl_has_no_place():
    methods = (
        MethodResult("a", "a", metrics={"reward": HALF}),
        MethodResult("b", "b", metrics={"reward": HALF, "kl": NAN}),
    )
    assert list(frontier(Comparison("", "", "", methods=methods))) == []


def test_the_caption_explains_what_is_drawn_and_nothing_else(comparison):
    whole = next(iter(frontier(comparison))).caption
    assert "joined" in whole
    assert "single seeds" in whole
    assert "data's chosen answers" in whole
    method = MethodResult(
        "a", "a", metrics={"reward": HALF, "kl": HALF}, by_seed={"reward": (0.5,)}
    )
    (chart,) = frontier(Comparison("", "", "", methods=(method,)))
    assert chart.caption == "Up is better, left is cheaper. Crosses of lines are 95% intervals."
