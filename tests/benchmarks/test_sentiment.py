"""Controlled sentiment: its parts by hand, and all of it on a tiny model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_no_snippet_is_in_two_parts(load, shared_dir):
    data = load("sentiment_data")
    parts = data.parts(data.Sizes())
    assert [len(rows) for rows in parts.values()] == list(data.Sizes()[:5])
    identities = [row["id"] for rows in parts.values() for row in rows]
    assert len(set(identities)) == len(identities)
    prompt, completion = data.divided({"text": "one two three four five six"})
    assert (prompt, completion) == ("one two three four", " five six")


def test_the_reward_is_ridge_regression_with_a_free_constant(load):
    reward = load("sentiment_reward")
    torch.manual_seed(0)
    features, ratings = torch.randn(40, 3).double(), torch.randn(40).double() + 5
    weights = reward._ridge(features, ratings, 2.0)
    centred = features - features.mean(0)  # centring takes the constant out of the penalty
    slopes = torch.linalg.solve(
        centred.T @ centred + 2 * torch.eye(3).double(), centred.T @ (ratings - ratings.mean())
    )
    torch.testing.assert_close(weights[:3], slopes)
    predicted = reward._predicted(weights, features)
    assert predicted.mean() == pytest.approx(ratings.mean())
    assert reward._error(weights, features, ratings)["rmse"] == pytest.approx(
        (predicted - ratings).square().mean().sqrt()
    )


def test_published_points_are_means_over_samplings(load, shared_dir):
    found = load("sentiment_data").published()
    assert {loss: len(points) for loss, points in found.items()}["dpo"] == 9
    for beta, reward, distance in (
        (0.01, 0.9751, 1.683),
        (0.1, 0.9642, 0.549),
        (1.0, 0.8522, 0.074),
    ):
        near = next(point for point in found["dpo"] if point[0] == beta)
        assert near[1:] == pytest.approx((reward, distance), abs=6e-4)


@pytest.mark.slow
def test_the_experiment_goes_from_ratings_to_a_table_and_a_picture(load, tmp_path, shared_dir):
    pytest.importorskip("peft")
    model = load("throughput_models").make_model("tiny", 0, dtype=torch.float32, attention="eager")
    model.save_pretrained(tmp_path / "model")
    load("throughput_data").make_tokenizer("tiny", shared_dir).save_pretrained(tmp_path / "model")
    methods = [{"loss_type": "dpo", "beta": 0.1}, {"loss_type": "orpo"}]
    command = [sys.executable, str(BENCHMARKS / "sentiment.py"), "--allow-dirty"]
    command += ["--folder", str(tmp_path / "work"), "--model", str(tmp_path / "model")]
    command += ["--results", str(tmp_path / "sentiment"), "--methods", json.dumps(methods)]
    command += ["--sizes", "96", "32", "32", "24", "16", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "sentiment.json").read_text())
    assert found["reward"]["rows"] == [96, 32, 32]
    assert 0 < found["pairs"]["train"] <= 24
    assert [run[1] for run in found["runs"]] == ["done"] * 3
    pairs = json.loads((tmp_path / "work" / "train.json").read_text())
    assert all(pair["reward_chosen"] > pair["reward_rejected"] for pair in pairs)
    assert set(found["methods"]) >= {"start", "orpo"}
    for metrics in found["methods"].values():
        assert {"reward", "kl", "accuracy"} <= metrics.keys()
    text = (tmp_path / "sentiment.md").read_text()
    assert "| start |" in text
    assert "- **orpo**" in text
    assert "| 0.964, 0.549 |" in text
    assert (tmp_path / "sentiment.png").stat().st_size > 1000
