"""The probe of recurrent layers: a third tree, and texts that change each other."""

import pytest
import torch

from prefopt.engine import Scorer, build_layout
from prefopt.engine.forward import Forward
from prefopt.engine.recurrent.mixers import WaveForward
from prefopt.engine.recurrent.probe import probe_leaks, probe_trees
from tests.models import tiny_model


def test_recurrent_layers_are_probed_with_branches_of_branches():
    forward = Forward(tiny_model("mamba2"))
    assert len(probe_trees(forward)) == 2
    forward.carry_states()
    segments = build_layout(probe_trees(forward)).segments
    assert max(len(one.ancestors) for one in segments) == 2


@pytest.mark.parametrize("amount", [1e-7, 1e-2])
def test_a_text_that_changes_another_is_noticed(amount, monkeypatch):
    scorer = Scorer(tiny_model("mamba2"))
    assert probe_leaks(scorer._forward, mixing=False) is None
    own = WaveForward._in_waves

    def leaking(self, hidden_states, plan):
        output = own(self, hidden_states, plan)
        return output + amount * output[:, -1:]  # of the last text, to all

    monkeypatch.setattr(WaveForward, "_in_waves", leaking)
    assert "change with another text" in str(probe_leaks(scorer._forward, mixing=False))
    assert (probe_leaks(scorer._forward, mixing=True) is None) == (amount < 1e-6)


def test_a_model_whose_texts_change_each_other_is_padded(monkeypatch, caplog):
    own = WaveForward._in_waves
    leak = lambda self, hidden, plan: own(self, hidden, plan) + 1e-2 * hidden[:, -1:]  # noqa: E731
    monkeypatch.setattr(WaveForward, "_in_waves", leak)
    scorer = Scorer(tiny_model("lfm2"))
    assert scorer.layout == "padded"
    assert len([it for it in caplog.records if it.name == "prefopt"]) == 1
    assert torch.isfinite(scorer.score(build_layout([], "padded")).logps).all()
