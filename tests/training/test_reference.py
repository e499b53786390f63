"""The set-up of a reference, without a trainer; and what it decides in runs."""

import pytest
import torch
from datasets import Dataset

from prefopt.data.collate import PreferenceCollator
from prefopt.objective import parse_objective
from prefopt.training.launch import Launch
from prefopt.training.reference import (
    RECORD_FILE,
    ReferenceSetup,
    check_reference_asked_for,
)
from tests.models import tiny_model, tiny_rows, tiny_tokenizer
from tests.runs import config, steps, trainer

LN_2 = pytest.approx(0.6931472, rel=1e-5)

PREPARED = {
    "kind": ["paired"] * 2,
    "prompt_ids": [[3, 4], [5]],
    "completion_ids": [[[6, 7], [8]], [[9], [10, 11]]],
    "desirable": [[True, False]] * 2,
    "ranks": [[0, 1]] * 2,
}


def setup(tmp_path, model=None, loss="dpo", said=None, **options):
    said = [] if said is None else said
    args = config(tmp_path / "out", reference_cache_dir=str(tmp_path / "store"), **options)
    model = tiny_model("llama") if model is None else model
    objective = parse_objective(loss)
    launch = Launch.to_score(model, args)
    return ReferenceSetup(model, tiny_tokenizer(), args, objective, launch, said.append)


def logps(served):
    (batch,) = PreferenceCollator(served.scorer.layout).batches(list(Dataset.from_dict(PREPARED)))
    return served.references.logps(batch.texts).logps


def test_layout_and_scorer_are_decided_before_anything_else(tmp_path):
    made = setup(tmp_path)
    assert (made.scorer.layout, made.references, made.moving) == ("shared_prefix", None, None)
    assert setup(tmp_path, tiny_model("bloom")).scorer.layout == "padded"


def test_the_initial_policy_is_served_and_stays_when_the_policy_moves(tmp_path):
    said = []
    made = setup(tmp_path, said=said)
    made.choose()
    made.serve(("train", Dataset.from_dict(PREPARED)), ("eval", None))
    before = logps(made)
    made.begin(None)
    with torch.no_grad():
        made.scorer.model.lm_head.weight.mul_(2)
    torch.testing.assert_close(logps(made), before)
    made.announce()
    assert said == [f"prefopt: reference: {made.references}"]


def test_a_loss_without_reference_gets_none(tmp_path):
    made = setup(tmp_path, loss="orpo")
    made.choose()
    made.serve(("train", Dataset.from_dict(PREPARED)))
    made.begin(None)
    made.save(tmp_path)
    assert made.references is None
    assert not (tmp_path / RECORD_FILE).exists()


def test_a_saved_record_is_that_of_the_reference(tmp_path):
    made = setup(tmp_path)
    made.choose()
    made.save(tmp_path)
    assert made.references.fingerprint.digest in (tmp_path / RECORD_FILE).read_text()


@pytest.mark.parametrize(
    ("options", "loss", "ref_model", "message"),
    [
        ({}, "orpo", "folder", "ref_model was given, but the loss 'orpo' uses no reference"),
        ({"reference": "cached"}, "orpo", None, "reference='cached' was asked for, but"),
        ({"reference": "adapter:x"}, "dpo", "folder", "the reference is given twice"),
        ({"reference": "cached"}, "tdpo", None, "'tdpo' compares all that policy and reference"),
    ],
)
def test_a_reference_that_cannot_be_used_is_an_error(tmp_path, options, loss, ref_model, message):
    args = config(tmp_path, **options)
    with pytest.raises(ValueError, match=message):
        check_reference_asked_for(args, parse_objective(loss), ref_model)


def test_an_adapter_as_reference_needs_the_base_model_as_it_was(tmp_path):
    peft = pytest.importorskip("peft")
    lora = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    pissa = peft.LoraConfig(init_lora_weights="pissa", **lora)
    with pytest.raises(ValueError, match=r"the policy's own adapter has changed .* ref_model='x'"):
        trainer(tmp_path, tiny_rows(4), peft_config=pissa, reference="adapter:x")


# A reference that cannot share prefixes beside a policy that does ---------------------------------


def stream(rows):
    return rows.to_iterable_dataset()


@pytest.mark.parametrize("loss", ["dpo", "kto", "tdpo"])
def test_a_policy_that_shares_prefixes_has_a_reference_that_does_not(tmp_path, loss):
    """The reference is live: it scores the policy's batches, in rows of its own."""
    rows = tiny_rows(8)
    options = {"loss_type": loss, "ref_model": tiny_model("bloom"), "reference": "live"}
    live = trainer(tmp_path / "live", rows, **options)
    assert live.scorer.layout == live.data_collator.layout == "shared_prefix"
    live.train()
    padded = trainer(tmp_path / "padded", rows, layout="padded", **options)
    padded.train()
    for one, other in zip(steps(live), steps(padded), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


def test_an_evaluation_on_a_new_stream_asks_such_a_reference(tmp_path):
    """The collator was made before it was known that the reference would be asked at all."""
    bloom = tiny_model("bloom")
    rows, held_out = tiny_rows(8), tiny_rows(6, seed=1)
    options = {"ref_model": bloom, "reference_cache_dir": str(tmp_path / "store")}
    run = trainer(tmp_path / "run", rows, **options)
    run.train()
    found = run.evaluate(stream(held_out))["eval_loss"]
    assert found == pytest.approx(run.evaluate(held_out)["eval_loss"], rel=1e-5)


def test_resuming_with_such_a_live_reference_goes_on_as_before(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2, "optim": "sgd"}
    options = {"ref_model": tiny_model("bloom"), "reference": "live", **saving}
    whole = trainer(tmp_path / "whole", tiny_rows(8), **options)
    whole.train()
    resumed = trainer(tmp_path / "again", tiny_rows(8), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
    assert steps(resumed)[-1]["loss"] == pytest.approx(steps(whole)[-1]["loss"], rel=1e-6)


def test_the_first_loss_is_ln_2_whatever_the_layout_of_the_reference(tmp_path):
    for name in ("llama", "bloom"):
        options = {"model": tiny_model(name), "ref_model": tiny_model(name), "reference": "live"}
        run = trainer(tmp_path / name, tiny_rows(4), max_steps=1, **options)
        run.train()
        assert steps(run)[0]["loss"] == LN_2


def test_a_reference_in_half_precision_shares_prefixes_as_the_policy_does(tmp_path):
    """Accelerate has its forward pass cast, which probes in float32 would take for a fault."""
    model = tiny_model("llama", seed=2, initializer_range=0.3)  # logits that rounding is seen in
    model.save_pretrained(tmp_path / "ref")
    tiny_tokenizer().save_pretrained(tmp_path / "ref")
    served = setup(tmp_path, bf16=True, use_cpu=True)
    served.choose(str(tmp_path / "ref"))
    reference = served.references.source.load()
    assert reference.scorer.layout == served.scorer.layout == "shared_prefix"
