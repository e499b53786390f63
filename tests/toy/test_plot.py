"""The picture shows every method and the frontier."""

import pytest
from matplotlib.figure import Figure

from prefopt.evaluation import Estimate, FrontierPoint
from prefopt.toy.experiment import Measurement, MethodRun
from prefopt.toy.plot import plot_experiment


def measured(step, reward, kl, accuracy=0.6):
    def estimate(value):
        return Estimate(value, value - 0.1, value + 0.1, 9)

    return Measurement(step, estimate(accuracy), 0.2 * step, estimate(reward), estimate(kl), 0.9)


def run(name, reward):
    return MethodRun(name, [measured(0, 0.0, 0.0), measured(10, reward, 0.5)], 1.0, [])


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Draw two methods; return the axes and the file."""
    figures = []
    saved = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, path: (figures.append(figure), saved(figure, path))
    )
    frontier = [FrontierPoint(float("inf"), 0.0, 0.0, 99.0), FrontierPoint(1.0, 2.0, 1.0, 50.0)]
    path = tmp_path / "toy.png"
    runs = [run("dpo", 1.0), run("kto", 1.5)]
    plot_experiment(
        path, runs, frontier, best_accuracy=0.8, frontier_samples=2000, subtitle="small print"
    )
    return figures[0].axes, path


def test_a_png_is_written(drawn):
    assert drawn[1].read_bytes().startswith(b"\x89PNG")


def test_the_curves_are_the_frontier_and_the_measurements(drawn):
    rewards, accuracy, margin = drawn[0]
    curves = {line.get_label(): line.get_xydata().tolist() for line in rewards.get_lines()}
    assert curves["best reachable: start × exp(reward / β)"] == [[0.0, 0.0], [1.0, 2.0]]
    assert curves["dpo"] == [[0.0, 0.0], [0.5, 1.0]]
    assert curves["kto"] == [[0.0, 0.0], [0.5, 1.5]]
    assert accuracy.get_lines()[0].get_xydata().tolist() == [[0.0, 60.0], [10.0, 60.0]]
    assert [line.get_ydata().tolist() for line in margin.get_lines()] == [[0.0, 2.0]] * 2


def test_the_picture_says_what_it_shows(drawn):
    rewards, accuracy, _ = drawn[0]
    assert "2,000 samples" in rewards.get_title(loc="left")
    assert {text.get_text() for text in rewards.texts} >= {"start", "β = 1"}
    assert accuracy.get_ylabel() == "held-out accuracy, %"
