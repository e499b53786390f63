"""The bandit of IPO's paper ends where it should, and the script writes figures and numbers."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def claims():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("paper_claims")


@pytest.mark.parametrize("tau", [0.1, 0.5, 1.0])
def test_the_limit_of_ipo_is_the_minimum_of_its_loss(claims, tau):
    scores = claims.ipo_limit(tau).log()[None].requires_grad_()
    claims.bandit_losses("ipo", tau, scores, claims.PAIRS[None]).sum().backward()
    torch.testing.assert_close(scores.grad, torch.zeros_like(scores), rtol=0, atol=1e-12)


def test_the_limit_of_ipo_nears_the_reference_as_tau_grows(claims):
    reference = torch.full((3,), 1 / 3, dtype=torch.float64)
    distances = [float((claims.ipo_limit(tau) - reference).abs().sum()) for tau in (0.1, 0.5, 1, 9)]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.05


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_dpo_gets_no_minimum_but_a_deterministic_policy(claims, beta):
    for gap in (1.0, 10.0, 20.0):
        scores = torch.tensor([[2 * gap, gap, 0.0]], dtype=torch.float64, requires_grad=True)
        claims.bandit_losses("dpo", beta, scores, claims.PAIRS[None]).sum().backward()
        assert scores.grad[0, 0] < 0 < scores.grad[0, 2]  # descent still spreads the arms


def test_training_goes_towards_these_ends(claims):
    dpo = claims.train_bandit("dpo", 0.5, steps=400, seeds=3, every=200)
    ipo = claims.train_bandit("ipo", 0.5, steps=400, seeds=3, every=200)
    assert dpo.mean[-1, 0] > 0.9
    torch.testing.assert_close(ipo.mean[-1], claims.ipo_limit(0.5), rtol=0, atol=0.02)
    assert (dpo.low <= dpo.mean).all()
    assert (dpo.mean <= dpo.high).all()


@pytest.mark.slow
def test_the_script_writes_figures_and_numbers(tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, str(BENCHMARKS / "paper_claims.py"), "--out", str(out)]
    command += ["--steps", "50", "--allow-dirty"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    numbers = json.loads((out / "paper_claims.json").read_text())
    assert numbers["environment"]["dtype"] == "float64"
    assert numbers["dpo_largest_difference_of_weight_and_sigmoid"] < 1e-15
    assert {path.name for path in out.glob("*.png")} == {"ipo_bandit.png", "paper_claims.png"}
