"""Which reference a run has: saved adapters, other models, moving ones, that of a checkpoint."""

import gc
import json
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from prefopt.reference.live import FrozenCopy, ReferenceModel
from prefopt.training.reference import RECORD_FILE, WEIGHTS_FILE
from tests.models import tiny_model, tiny_rows, tiny_tokenizer
from tests.runs import steps, trainer

LN_2 = pytest.approx(0.6931472, rel=1e-5)


def flat(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def lora_config(**options):
    peft = pytest.importorskip("peft")
    fields = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"} | options
    return peft.LoraConfig(**fields)


def adapted(model=None, seed=3, **options):
    """Return a model with an adapter that has been trained."""
    peft = pytest.importorskip("peft")
    config = lora_config(**options)
    model = peft.get_peft_model(tiny_model("llama") if model is None else model, config)
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def passes(monkeypatch):
    """What the reference was asked to score, one entry a forward pass."""
    seen = []
    for strategy in (ReferenceModel, FrozenCopy):
        score = strategy.score

        def counted(self, *args, _score=score, **kwargs):
            seen.append(type(self).__name__)
            return _score(self, *args, **kwargs)

        monkeypatch.setattr(strategy, "score", counted)
    return seen


@pytest.fixture
def base(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


# A saved adapter ----------------------------------------------------------------------------------


def test_dpo_on_top_of_a_saved_adapter(tmp_path, passes):
    adapted().save_pretrained(tmp_path / "sft")
    rows, name = tiny_rows(8), f"adapter:{tmp_path / 'sft'}"
    continued = trainer(tmp_path / "a", rows, model=adapted(), reference=name)
    filled = len(passes)
    assert filled > 0
    continued.train()
    assert steps(continued)[0]["loss"] == LN_2  # the policy began as that adapter
    assert steps(continued)[-1]["loss"] < 0.69
    # The same reference by other ways is found, and not computed again.
    trainer(tmp_path / "b", rows, model=adapted())
    fresh = trainer(tmp_path / "c", rows, peft_config=lora_config(), reference=name)
    plain = trainer(tmp_path / "d", rows, reference=name)
    assert len(passes) == filled
    fresh.train()
    assert steps(fresh)[0]["loss"] != pytest.approx(0.6931472, rel=1e-3)
    plain.train()
    assert steps(plain)[0]["loss"] == pytest.approx(steps(fresh)[0]["loss"], rel=1e-4)


def test_a_saved_adapter_serves_streams_and_rows_that_come_after_training(tmp_path):
    adapted().save_pretrained(tmp_path / "sft")
    rows, later = tiny_rows(8), tiny_rows(3, seed=9)
    options = {"reference": f"adapter:{tmp_path / 'sft'}", "train_sampling_strategy": "sequential"}
    known = trainer(tmp_path, rows, model=adapted(), eval_dataset=later, **options)
    streamed = trainer(tmp_path, rows.to_iterable_dataset(), model=adapted(), **options)
    for run in (known, streamed):
        run.train()
    for mine, wanted in zip(steps(streamed), steps(known), strict=True):
        assert mine["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
    again = trainer(
        tmp_path, rows, model=adapted(), reference_cache_dir=str(tmp_path / "empty"), **options
    )
    again.train()
    late = again.evaluate(later)["eval_loss"]
    assert late == pytest.approx(known.evaluate()["eval_loss"], rel=1e-5)


def test_a_reference_given_twice_or_to_a_loss_without_one_is_an_error(tmp_path):
    for options, message in (
        ({"ref_model": tiny_model("llama"), "reference": "adapter:x"}, "given twice"),
        ({"loss_type": "orpo", "reference": "adapter:x"}, "'orpo' uses no reference"),
        ({"loss_type": "orpo", "sync_ref_model": True}, "sync_ref_model=True was asked for"),
        ({"reference": f"adapter:{tmp_path / 'nowhere'}"}, "no adapter at"),
    ):
        with pytest.raises(ValueError, match=message):
            trainer(tmp_path, tiny_rows(4), **options)


# Another model ------------------------------------------------------------------------------------


def saved_model(folder, seed=1, tokenizer=None):
    tiny_model("llama", seed=seed).save_pretrained(folder)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    return str(folder)


def test_a_ref_model_by_path_is_not_loaded_where_the_store_has_everything(
    tmp_path, passes, monkeypatch
):
    path, rows = saved_model(tmp_path / "ref"), tiny_rows(8)
    first = trainer(tmp_path / "a", rows, ref_model=path)
    filled = len(passes)
    monkeypatch.setattr(
        "prefopt.training.reference.load_reference", lambda *args: pytest.fail("it was loaded")
    )
    second = trainer(tmp_path / "b", rows, ref_model=path, learning_rate=1e-3, loss_type="ipo")
    assert len(passes) == filled > 0
    assert second.references.fingerprint == first.references.fingerprint
    # Nor is it for its tokenizer, which is checked all the same.
    odd = json.loads((tmp_path / "ref" / "tokenizer.json").read_text())
    words = odd["model"]["vocab"]
    words["w5"], words["w6"] = words["w6"], words["w5"]
    (tmp_path / "ref" / "tokenizer.json").write_text(json.dumps(odd))
    with pytest.raises(ValueError, match=r"'w5' has id 5 for the policy and 6 for the reference"):
        trainer(tmp_path / "c", rows, ref_model=path)


def test_a_tokenizer_that_cuts_texts_otherwise_is_an_error(tmp_path):
    from tokenizers import normalizers

    other = tiny_tokenizer()
    other.backend_tokenizer.normalizer = normalizers.Replace("é", " w9 ")
    path = saved_model(tmp_path / "ref", tokenizer=other)
    with pytest.raises(ValueError, match=r"ref_model .*ref reads other token ids.*naïve café.* is"):
        trainer(tmp_path, tiny_rows(4), ref_model=path)


def test_tokens_of_a_chat_template_must_be_known_to_the_reference(tmp_path):
    path = saved_model(tmp_path / "ref")
    mine = tiny_tokenizer()
    mine.chat_template = "{% for m in messages %}<|im|>{{ m['content'] }}{% endfor %}"
    rows = tiny_rows(4)
    trainer(tmp_path / "plain", rows, ref_model=path, processing_class=mine)
    mine.add_tokens(["<|im|>"], special_tokens=True)
    policy = tiny_model("llama", vocab_size=100)
    with pytest.raises(ValueError, match=r"'<\|im\|>What is 2 \+ 2"):
        trainer(tmp_path / "chat", rows, model=policy, ref_model=path, processing_class=mine)


def test_neither_a_loaded_reference_nor_an_adapter_stays_in_memory(tmp_path, monkeypatch):
    import prefopt.reference.sources as sources
    import prefopt.training.reference as module

    loaded = []
    load = module.load_reference
    monkeypatch.setattr(
        module,
        "load_reference",
        lambda *args: loaded.append(weakref.ref(model := load(*args))) or model,
    )
    rows, later = tiny_rows(8), tiny_rows(3, seed=2)
    by_path = trainer(
        tmp_path / "a", rows, ref_model=saved_model(tmp_path / "ref"), eval_dataset=later
    )
    assert len(loaded) == 1  # once, for both datasets
    given = trainer(tmp_path / "b", rows, ref_model=tiny_model("llama", seed=2))
    by_path.train()
    gc.collect()
    assert len(loaded) == 2
    assert [reference() for reference in loaded] == [None, None]
    assert given.references.store is not None

    adapted().save_pretrained(tmp_path / "sft")
    attach = sources.with_adapter
    monkeypatch.setattr(
        sources,
        "with_adapter",
        lambda *args, **more: loaded.append(weakref.ref(m := attach(*args, **more))) or m,
    )
    on_top = trainer(tmp_path / "c", rows, reference=f"adapter:{tmp_path / 'sft'}")
    gc.collect()
    assert len(loaded) > 3
    assert [reference() for reference in loaded[2:]] == [None] * (len(loaded) - 2)
    assert on_top.references.computed > 0


# More than the adapter is trained -----------------------------------------------------------------


def test_a_base_that_moves_is_no_reference(tmp_path):
    """Under bias="all" switching the adapter off leaves the trained biases on."""
    rows, later = tiny_rows(8), tiny_rows(3, seed=9)
    tiny_model("qwen2").save_pretrained(tmp_path / "base")
    options = {"model": str(tmp_path / "base"), "reference_cache_dir": str(tmp_path)}
    biases = trainer(tmp_path, rows, peft_config=lora_config(bias="all"), **options)
    assert biases.references.source.description == "the initial policy"
    plain = trainer(tmp_path, rows, peft_config=lora_config(), **options)
    assert plain.references.source.description == "the policy with its adapter switched off"
    # A fresh adapter changes nothing, so both have one reference, computed once.
    assert plain.references.fingerprint == biases.references.fingerprint
    assert plain.references.computed == 0
    live = trainer(tmp_path, rows, peft_config=lora_config(bias="all"), reference="live", **options)
    for run in (biases, live):
        run.train()
    for mine, wanted in zip(steps(live), steps(biases), strict=True):
        assert mine["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
    # Rows that come after training: the base is loaded again, for that in memory has moved.
    known = plain.evaluate(later)["eval_loss"]
    assert known == LN_2
    fresh = trainer(tmp_path / "x", rows, peft_config=lora_config(bias="all"), **options)
    fresh.train()
    assert fresh.evaluate(later)["eval_loss"] == pytest.approx(
        biases.evaluate(later)["eval_loss"], rel=1e-5
    )


def test_of_a_trained_adapter_rows_that_come_later_say_how_to_have_the_reference(tmp_path):
    trained = trainer(tmp_path, tiny_rows(8), model=adapted())
    trained.train()
    with pytest.raises(ValueError, match=r"by reference='adapter:<folder>'"):
        trained.evaluate(tiny_rows(3, seed=9))


# A reference that follows the policy --------------------------------------------------------------


@pytest.mark.parametrize("adapter", [False, True])
def test_a_moving_reference_follows_after_every_so_many_steps(tmp_path, adapter):
    """Two moves, by the formula of arXiv:2404.09656 on the weights that training had."""
    moving = trainer(
        tmp_path,
        tiny_rows(16),
        model=adapted() if adapter else None,
        sync_ref_model=True,
        ref_model_mixup_alpha=0.3,
        ref_model_sync_steps=2,
        max_steps=5,
    )
    names = [name for name, p in moving.model.named_parameters() if p.requires_grad]
    seen = []

    def weights():
        parameters = dict(moving.model.named_parameters())
        return torch.cat([parameters[name].detach().double().flatten() for name in names])

    step = moving.training_step
    moving.training_step = lambda *args, **more: (seen.append(weights()), step(*args, **more))[1]
    start = weights()
    moving.train()
    seen.append(weights())
    first = 0.3 * seen[2] + 0.7 * start  # after two steps
    second = 0.3 * seen[4] + 0.7 * first
    copy = moving.references.source.copy.weights()
    got = torch.cat([copy[name].double().flatten() for name in names])
    torch.testing.assert_close(got, second, rtol=1e-5, atol=1e-7)
    assert (first - start).abs().max() > 1e-4
    assert steps(moving)[0]["loss"] == LN_2
    assert moving.references.store is None


def test_a_reference_that_is_copied_whole_at_each_step_makes_every_loss_ln_2(tmp_path):
    moving = trainer(
        tmp_path,
        tiny_rows(16),
        sync_ref_model=True,
        ref_model_mixup_alpha=1.0,
        ref_model_sync_steps=1,
    )
    moving.train()
    assert [entry["loss"] for entry in steps(moving)] == [LN_2] * 3


def test_a_moving_reference_starts_as_the_given_model(tmp_path):
    rows, other = tiny_rows(8), tiny_model("llama", seed=4)
    options = {"ref_model": other, "max_steps": 2}
    moving = trainer(tmp_path, rows, sync_ref_model=True, **options)
    fixed = trainer(tmp_path, rows, **options)
    for run in (moving, fixed):
        run.train()
    for mine, wanted in zip(steps(moving), steps(fixed), strict=True):
        assert mine["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
    assert steps(fixed)[0]["loss"] != LN_2
    with pytest.raises(ValueError, match="ref_model and the policy differ"):
        trainer(tmp_path, rows, sync_ref_model=True, ref_model=adapted())


@pytest.mark.parametrize("adapter", [False, True])
def test_a_moving_reference_goes_on_where_it_was(tmp_path, adapter):
    options = {"sync_ref_model": True, "ref_model_sync_steps": 2, "max_steps": 6}
    options |= {"save_strategy": "steps", "save_steps": 3, "per_device_train_batch_size": 2}

    def model():
        return adapted() if adapter else None

    rows = tiny_rows(16)
    whole = trainer(tmp_path / "whole", rows, model=model(), **options)
    whole.train()
    checkpoint = tmp_path / "whole" / "checkpoint-3"
    resumed = trainer(tmp_path / "again", rows, model=model(), **options)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    torch.testing.assert_close(flat(resumed.model), flat(whole.model), rtol=1e-5, atol=1e-6)
    for mine, wanted in zip(steps(resumed)[-3:], steps(whole)[-3:], strict=True):
        assert mine["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
    whole.save_model(str(tmp_path / "final"))
    assert not (tmp_path / "final" / WEIGHTS_FILE).exists()
    saving = {"max_steps": 3, "save_strategy": "steps", "save_steps": 3}
    fixed = trainer(tmp_path / "fixed", rows, model=model(), **saving)
    with pytest.raises(ValueError, match="go on with sync_ref_model=True"):
        fixed.train(resume_from_checkpoint=str(checkpoint))
    fixed.train()
    with pytest.raises(ValueError, match="was not trained with sync_ref_model"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "fixed" / "checkpoint-3"))


# The reference of a checkpoint --------------------------------------------------------------------

SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}


@pytest.fixture
def whole(tmp_path, base):
    """A run of four steps from a folder, and its checkpoint after two."""
    run = trainer(tmp_path / "whole", tiny_rows(8), model=base, **SAVING)
    run.train()
    return run, str(tmp_path / "whole" / "checkpoint-2")


def assert_same_end(resumed, run):
    torch.testing.assert_close(flat(resumed.model), flat(run.model), rtol=1e-5, atol=1e-6)
    assert resumed.references.fingerprint.digest == run.references.fingerprint.digest


def test_a_checkpoint_says_what_its_reference_is_and_where_it_came_from(whole, base):
    run, checkpoint = whole
    record = json.loads(Path(checkpoint, RECORD_FILE).read_text())
    assert record["fingerprint"] == run.references.fingerprint.digest
    assert record["loaded_from"] == {"name_or_path": base}
    assert record["facts"]["model"] == "LlamaForCausalLM"


def test_a_run_that_is_resumed_as_it_began_asks_the_reference_nothing(
    whole, base, passes, tmp_path
):
    run, checkpoint = whole
    resumed = trainer(tmp_path / "again", tiny_rows(8), model=base, **SAVING)
    resumed.train(resume_from_checkpoint=checkpoint)
    assert_same_end(resumed, run)
    assert passes == []


def test_a_run_resumed_with_the_checkpoint_as_its_model_finds_the_reference_in_the_store(
    whole, passes, tmp_path
):
    run, checkpoint = whole
    resumed = trainer(tmp_path / "again", tiny_rows(8), model=checkpoint, **SAVING)
    resumed.train(resume_from_checkpoint=checkpoint)
    assert_same_end(resumed, run)
    assert passes == []


@pytest.mark.parametrize("mode", ["auto", "live"])
def test_it_is_loaded_from_where_it_came_where_the_store_has_nothing(whole, passes, tmp_path, mode):
    run, checkpoint = whole
    resumed = trainer(
        tmp_path / "again",
        tiny_rows(8),
        model=checkpoint,
        reference=mode,
        reference_cache_dir=str(tmp_path / "empty"),
        **SAVING,
    )
    resumed.train(resume_from_checkpoint=checkpoint)
    assert_same_end(resumed, run)
    assert set(passes) == {"ReferenceModel"}


def test_or_it_is_said_what_is_needed(whole, base, tmp_path):
    run, checkpoint = whole
    resumed = trainer(
        tmp_path / "again",
        tiny_rows(8),
        model=checkpoint,
        reference_cache_dir=str(tmp_path / "empty"),
        **SAVING,
    )
    tiny_model("llama", seed=8).save_pretrained(base)
    digest = run.references.fingerprint.digest[:12]
    message = rf"trained against the initial policy \[{digest}\].*base is another model now"
    with pytest.raises(ValueError, match=message):
        resumed.train(resume_from_checkpoint=checkpoint)
    shutil.rmtree(base)
    with pytest.raises(ValueError, match=message):
        resumed.train(resume_from_checkpoint=checkpoint)


def test_a_checkpoint_that_begins_a_new_run_is_its_reference(whole, tmp_path):
    _, checkpoint = whole
    fresh = trainer(tmp_path / "again", tiny_rows(8), model=checkpoint, **SAVING)
    fresh.train()
    assert steps(fresh)[0]["loss"] == LN_2


def test_another_given_reference_cannot_go_on_from_a_checkpoint(whole, base, tmp_path):
    _, checkpoint = whole
    other = trainer(
        tmp_path / "again", tiny_rows(8), model=base, ref_model=tiny_model("llama", seed=5)
    )
    with pytest.raises(
        ValueError, match="the reference given here is another: the given ref_model"
    ):
        other.train(resume_from_checkpoint=checkpoint)


def test_the_base_below_a_resumed_adapter_is_the_reference_that_it_was(tmp_path, base, passes):
    peft = pytest.importorskip("peft")
    rows = tiny_rows(8)
    run = trainer(tmp_path / "whole", rows, model=base, peft_config=lora_config(), **SAVING)
    run.train()
    checkpoint = str(tmp_path / "whole" / "checkpoint-2")
    policy = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), checkpoint, is_trainable=True
    )
    resumed = trainer(tmp_path / "again", rows, model=policy, **SAVING)
    resumed.train(resume_from_checkpoint=checkpoint)
    assert_same_end(resumed, run)


def test_a_resumed_run_may_leave_out_the_saved_adapter_that_was_its_reference(tmp_path, base):
    adapted().save_pretrained(tmp_path / "sft")
    rows, name = tiny_rows(8), f"adapter:{tmp_path / 'sft'}"
    options = SAVING | {"model": base, "peft_config": lora_config()}
    run = trainer(tmp_path / "whole", rows, reference=name, **options)
    run.train()
    checkpoint = str(tmp_path / "whole" / "checkpoint-2")
    for extra in ({"reference": name}, {}, {"reference_cache_dir": str(tmp_path / "empty")}):
        resumed = trainer(tmp_path / "again", rows, **(options | extra))
        resumed.train(resume_from_checkpoint=checkpoint)
        assert_same_end(resumed, run)


@pytest.mark.parametrize("reference", ["cached", "live"])
def test_a_reference_by_the_name_of_the_model_is_a_second_model_that_stays(tmp_path, reference):
    path = str(tmp_path / "model")
    tiny_model("llama").save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    options = {"reference": reference, "reference_cache_dir": str(tmp_path / "store")}
    named = trainer(tmp_path / "a", tiny_rows(8), path, ref_model=path, **options)
    named.train()
    alone = trainer(tmp_path / "b", tiny_rows(8), path, **options)
    alone.train()
    losses = [[step["loss"] for step in steps(run)] for run in (named, alone)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert losses[0][0] == pytest.approx(0.693147, abs=1e-5)
    assert losses[0][-1] < 0.65  # it is not compared with itself
