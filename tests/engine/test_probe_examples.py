"""The probe on real data passes what is right and names what is wrong."""

import dataclasses
from functools import partial

import pytest
import torch

from prefopt.engine import Scorer, attention
from prefopt.engine.probe_examples import probe_examples
from tests.engine.trees import trees
from tests.models import tiny_model, tiny_rows
from tests.runs import trainer


@pytest.fixture
def break_branches(monkeypatch):
    """Return a function after which branches of the packed row attend to themselves alone."""

    def lose_the_prompt():
        original = attention.AttentionPlan.__init__

        def without_ancestors(plan, segments, *args, **kwargs):
            alone = [type(segment)(segment.length) for segment in segments]
            original(plan, alone, *args, **kwargs)

        monkeypatch.setattr(attention.AttentionPlan, "__init__", without_ancestors)

    return lose_the_prompt


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss", "falcon_mamba"])
def test_a_right_layout_passes_with_a_small_difference(name):
    model = tiny_model(name)
    scorer = Scorer(model)
    before = model.config._attn_implementation
    assert probe_examples(scorer, trees()) < 2e-5
    assert model.config._attn_implementation == before


def test_half_precision_passes():
    scorer = Scorer(tiny_model("gpt_oss").to(torch.bfloat16))
    assert 2e-3 < probe_examples(scorer, trees()) < 0.1  # 0.02 on a CPU


def test_mixed_precision_is_judged_as_half(monkeypatch):
    scorer = Scorer(tiny_model("llama"))
    original = scorer.score

    def noisy(batch, **options):
        scores = original(batch, **options)
        return dataclasses.replace(scores, per_token_logps=scores.per_token_logps + 0.05)

    monkeypatch.setattr(scorer, "score", noisy)
    assert probe_examples(scorer, trees(), partial(torch.autocast, "cpu", torch.bfloat16)) < 0.06
    with pytest.raises(ValueError, match="more than rounding"):
        probe_examples(scorer, trees())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_broken_attention_is_caught_and_named(break_branches, dtype):
    scorer = Scorer(tiny_model("llama").to(dtype))
    break_branches()
    message = r'example \d, completion \d, differ by up to .* nats .*layout="padded"'
    with pytest.raises(ValueError, match=message):
        probe_examples(scorer, trees())


def test_numbers_that_are_none_are_caught():
    model = tiny_model("llama")
    scorer = Scorer(model)
    torch.nn.init.constant_(model.model.norm.weight, torch.nan)
    with pytest.raises(ValueError, match="differ by up to nan"):
        probe_examples(scorer, trees())


def test_the_trainer_checks_when_asked_and_says_so_once(tmp_path, capsys):
    trainer(tmp_path, tiny_rows(8))
    assert "first batch" not in capsys.readouterr().err
    trainer(tmp_path, tiny_rows(8), check_first_batch=True)
    assert capsys.readouterr().err.count("first batch: log-probs equal") == 1


def test_the_trainer_stops_before_training_where_attention_is_broken(
    tmp_path, monkeypatch, break_branches
):
    scorer = Scorer(tiny_model("llama"))  # found right on the probe, wrong afterwards
    break_branches()
    monkeypatch.setattr("prefopt.training.reference.Scorer", lambda *_, **__: scorer)
    with pytest.raises(ValueError, match="report the model to prefopt"):
        trainer(tmp_path, tiny_rows(8), model=scorer.model, check_first_batch=True)
