"""The trainer: data in, trained and saved models out, and clear errors for what cannot be."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from prefopt import PreferenceConfig, PreferenceTrainer, get_loss, register_loss
from prefopt.losses.registry import unregister_loss
from tests.models import tiny_model, tiny_rows, tiny_tokenizer
from tests.runs import config, steps, trainer, waiting_is_an_error

PAIR_METRICS = {
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
    "lengths/chosen",
    "lengths/rejected",
    "num_tokens",
}


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize(
    ("loss", "kind"),
    [
        ("dpo", "paired"),
        ("ipo", "ranked"),
        ("kto", "unpaired"),
        ("kto", "paired"),
        ("orpo", "paired"),
        ("slic", "paired"),
        ("discopop", "paired"),
        ("hinge", "paired"),
        ("sft", "unpaired"),
        ("dpo + 0.2*sft", "ranked"),
    ],
)
def test_every_loss_lowers_itself_on_data_it_fits(tmp_path, loss, kind):
    trained = trainer(
        tmp_path, tiny_rows(8, kind), loss_type=loss, max_steps=12, per_device_train_batch_size=8
    )
    trained.train()
    logged = [entry["loss"] for entry in steps(trained)]
    assert logged[-1] < logged[0]


def test_the_first_dpo_loss_is_ln_2_and_metrics_have_trls_names(tmp_path):
    trained = trainer(tmp_path, tiny_rows(8), max_steps=1)
    trained.train()
    first = steps(trained)[0]
    assert first["loss"] == pytest.approx(0.6931472, rel=1e-5)
    assert set(first) >= PAIR_METRICS
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-5)


def test_kto_logs_its_kl_estimate_and_margins(tmp_path):
    trained = trainer(tmp_path, tiny_rows(12, "unpaired"), loss_type="kto", max_steps=3)
    trained.train()
    last = steps(trained)[-1]
    assert last["kl"] >= 0
    assert last["rewards/margins"] == pytest.approx(
        last["rewards/chosen"] - last["rewards/rejected"], rel=1e-6
    )


def test_num_tokens_counts_prompt_and_completion_of_each_completion(tmp_path):
    rows = Dataset.from_dict(
        {"prompt": ["w3 w4"] * 4, "chosen": [" w5"] * 4, "rejected": [" w6 w7"] * 4}
    )
    trained = trainer(tmp_path, rows, max_steps=2)
    trained.train()
    # 2 + 1 + EOS and 2 + 2 + EOS, four rows a step.
    assert [entry["num_tokens"] for entry in steps(trained)] == [36, 72]


def test_without_a_loss_pairs_get_dpo_and_thumbs_get_kto(tmp_path):
    assert trainer(tmp_path, tiny_rows(4)).objective.name == "dpo"
    assert trainer(tmp_path, tiny_rows(4, "unpaired")).objective.name == "kto"


def test_a_third_partys_loss_trains_by_name(tmp_path):
    @register_loss("test_margin")
    def test_margin_loss(chosen_logps, rejected_logps, *, scale=1.0):
        """Margin: plain difference.

        Source: this test.
        """
        from prefopt import LossOutput

        return LossOutput(scale * (rejected_logps - chosen_logps))

    try:
        trained = trainer(
            tmp_path, tiny_rows(4), loss_type="test_margin", loss_kwargs={"scale": 0.5}
        )
        trained.train()
        assert len(steps(trained)) == 3
    finally:
        unregister_loss("test_margin")


# Models and where they come from ------------------------------------------------------------------


@pytest.fixture
def folder_of_model(tmp_path):
    folder = tmp_path / "model"
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_a_path_is_enough_and_the_saved_model_loads(tmp_path, folder_of_model):
    trained = PreferenceTrainer(
        folder_of_model, folder_of_model, config(tmp_path / "out"), train_dataset=tiny_rows(8)
    )
    trained.train()
    trained.save_model()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(flat(loaded), flat(trained.model))
    assert loaded.config._attn_implementation in ("sdpa", "eager")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "arXiv:2305.18290" in card
    assert "beta=0.1" in card


def test_half_precision_is_a_choice_of_the_user(folder_of_model, tmp_path):
    tiny_model("llama").to(torch.bfloat16).save_pretrained(folder_of_model)
    made = PreferenceTrainer(
        str(folder_of_model), args=config(tmp_path), train_dataset=tiny_rows(4)
    )
    assert made.model.dtype == torch.float32
    options = config(tmp_path, model_init_kwargs={"dtype": "bfloat16"})
    made = PreferenceTrainer(str(folder_of_model), args=options, train_dataset=tiny_rows(4))
    assert made.model.dtype == torch.bfloat16


def test_lora_trains_the_adapter_only_and_saves_it(tmp_path, folder_of_model):
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    base = flat(AutoModelForCausalLM.from_pretrained(folder_of_model))
    trained = PreferenceTrainer(
        str(folder_of_model),
        args=config(tmp_path / "out", gradient_checkpointing=True),
        train_dataset=tiny_rows(8),
        peft_config=lora,
    )
    trained.train()
    logged = steps(trained)
    assert logged[0]["loss"] == pytest.approx(0.6931472, rel=1e-5)
    assert logged[1]["loss"] != logged[0]["loss"]
    trained.save_model()
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with trained.model.disable_adapter():
        text = torch.arange(3, 12)[None]
        off = trained.model(input_ids=text).logits
    loaded.disable_adapters()
    torch.testing.assert_close(loaded(input_ids=text).logits, off)
    assert base.isfinite().all()


def test_the_reference_of_a_trained_adapter_is_that_adapter(tmp_path):
    """Switching it off would compare with the base model instead of the initial policy."""
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    for reference in ("cached", "live"):
        model = peft.get_peft_model(tiny_model("llama"), lora)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        trained = trainer(tmp_path, tiny_rows(8), model=model, reference=reference, max_steps=2)
        trained.train()
        assert steps(trained)[0]["loss"] == pytest.approx(0.6931472, rel=1e-5)


@pytest.mark.slow
def test_a_4_bit_policy_trains_its_adapter(tmp_path):
    peft = pytest.importorskip("peft")
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    # A block of 4-bit weights is 64 wide.
    folder = tmp_path / "model"
    tiny_model("llama", hidden_size=64, intermediate_size=128).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    trained = PreferenceTrainer(
        str(folder),
        args=config(tmp_path / "out", max_steps=4),
        train_dataset=tiny_rows(8),
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        ),
        peft_config=peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    )
    assert trained.scorer.layout == "shared_prefix"
    trained.train()
    logged = [entry["loss"] for entry in steps(trained)]
    assert logged[0] == pytest.approx(0.6931472, rel=1e-4)
    assert logged[-1] < logged[0]


def test_bfloat16_mixed_precision_stays_near_float32(tmp_path):
    rows = tiny_rows(8)
    plain = trainer(tmp_path, rows, max_steps=2)
    plain.train()
    mixed = trainer(tmp_path, rows, max_steps=2, bf16=True)
    mixed.train()
    for mine, exact in zip(steps(mixed), steps(plain), strict=True):
        assert mine["loss"] == pytest.approx(exact["loss"], rel=0.05)
    assert steps(mixed)[0]["loss"] == pytest.approx(0.6931472, rel=1e-3)


# Checkpoints --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "kind"), [("dpo", "paired"), ("kto", "unpaired")])
def test_a_resumed_run_ends_where_an_undisturbed_one_does(tmp_path, loss, kind):
    rows = tiny_rows(16, kind)
    options = {"loss_type": loss, "max_steps": 6, "per_device_train_batch_size": 2}
    options |= {"gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 3}
    whole = trainer(tmp_path / "whole", rows, **options)
    whole.train()
    resumed = trainer(tmp_path / "again", rows, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    torch.testing.assert_close(flat(resumed.model), flat(whole.model), rtol=1e-5, atol=1e-6)
    assert (tmp_path / "whole" / "checkpoint-3" / "README.md").exists()


# Evaluation ---------------------------------------------------------------------------------------


def test_evaluation_sets_by_name(tmp_path):
    trained = trainer(
        tmp_path,
        tiny_rows(8),
        eval_dataset={"near": tiny_rows(3, seed=1), "far": tiny_rows(5, seed=2)},
    )
    metrics = trained.evaluate()
    assert {"eval_near_loss", "eval_far_loss", "eval_far_rewards/accuracies"} <= set(metrics)
    assert metrics["eval_near_loss"] == pytest.approx(0.6931472, rel=1e-5)


def test_an_evaluation_set_may_be_called_train(tmp_path):
    trained = trainer(tmp_path, tiny_rows(8), eval_dataset={"train": tiny_rows(3, seed=1)})
    trained.train()
    assert "eval_train_loss" in trained.evaluate()


def test_compute_metrics_gets_the_rewards_of_every_pair(tmp_path):
    seen = {}

    def compute(prediction):
        seen["shapes"] = [part.shape for part in prediction.predictions]
        return {"spread": float(prediction.predictions[0].std())}

    trained = trainer(
        tmp_path, tiny_rows(8), eval_dataset=tiny_rows(7, seed=1), compute_metrics=compute
    )
    assert "eval_spread" in trained.evaluate()
    assert seen["shapes"] == [(7,), (7,)]


@pytest.mark.parametrize("kind", ["paired", "unpaired", "ranked"])
def test_predict_returns_the_rewards_of_the_rows_with_or_without_compute_metrics(tmp_path, kind):
    loss = {"paired": "dpo", "unpaired": "kto", "ranked": "plackett_luce"}[kind]
    rows, reference, found = tiny_rows(7, kind), tiny_model("llama", seed=2), []
    for compute in (None, lambda prediction: {"x": 1.0}):
        options = {"ref_model": reference, "compute_metrics": compute}
        made = trainer(tmp_path, rows, loss_type=loss, **options, per_device_eval_batch_size=3)
        found.append(made.predict(rows))
    plain, counted = (np.concatenate([np.ravel(p) for p in f.predictions]) for f in found)
    assert np.abs(plain).min() > 0
    assert plain.tolist() == counted.tolist()
    labels = found[0].label_ids
    assert labels.tolist() == rows["label"][:] if kind == "unpaired" else labels is None
    # In the order of the rows: the last of them alone have the last rewards.
    of_last = made.predict(rows.select([5, 6])).predictions
    whole = found[0].predictions
    if kind != "unpaired":
        whole, of_last = whole[0], of_last[0]
    assert whole[-len(of_last) :] == pytest.approx(of_last, rel=1e-5)


def test_predict_returns_the_rewards_of_rows_of_every_kind(tmp_path):
    pairs, thumbs, reference = tiny_rows(4), tiny_rows(4, "unpaired"), tiny_model("llama", seed=2)
    rows = [{**dict.fromkeys(thumbs.column_names), **row} for row in pairs]
    rows += [{**dict.fromkeys(pairs.column_names), **row} for row in thumbs]
    mixed = Dataset.from_list([rows[i] for i in (4, 0, 1, 5, 6, 2, 7, 3)])
    options = {"loss_type": {"paired": "dpo", "unpaired": "kto"}, "max_steps": 1}
    made = trainer(tmp_path, mixed, ref_model=reference, **options)
    chosen, rejected, unpaired = made.predict(mixed).predictions
    assert (len(chosen), len(rejected), len(unpaired)) == (4, 4, 4)
    assert made.predict(mixed).label_ids.tolist() == thumbs["label"][:]
    alone = trainer(tmp_path, pairs, ref_model=reference).predict(pairs).predictions
    assert chosen == pytest.approx(alone[0], rel=1e-5)
    assert rejected == pytest.approx(alone[1], rel=1e-5)


def test_rows_that_come_later_are_scored_by_the_reference_as_long_as_it_can_be_had(tmp_path):
    later = tiny_rows(3, seed=9)
    trained = trainer(tmp_path, tiny_rows(8))
    assert trained.evaluate(later)["eval_loss"] == pytest.approx(0.6931472, rel=1e-5)
    trained.train()
    assert trained.evaluate(later)["eval_loss"] != pytest.approx(0.6931472, rel=1e-3)
    with pytest.raises(ValueError, match="the initial policy, which has been trained since;"):
        trained.evaluate(tiny_rows(3, seed=10))
    live = trainer(tmp_path, tiny_rows(8), reference="live")
    assert live.evaluate(later)["eval_loss"] == pytest.approx(0.6931472, rel=1e-5)


def test_rows_that_come_after_training_are_scored_by_the_reference_loaded_again(tmp_path):
    folder = tmp_path / "base"
    tiny_model("llama").save_pretrained(folder)
    rows, later = tiny_rows(8), tiny_rows(3, seed=9)
    known = trainer(tmp_path / "known", rows, eval_dataset=later, reference_cache_dir=tmp_path)
    known.train()
    again = trainer(tmp_path / "again", rows, model=str(folder))
    again.train()
    assert again.evaluate(later)["eval_loss"] == pytest.approx(
        known.evaluate()["eval_loss"], rel=1e-5
    )
    tiny_model("llama", seed=1).save_pretrained(folder)
    with pytest.raises(ValueError, match="is no longer where it was loaded from"):
        again.evaluate(tiny_rows(3, seed=10))


@pytest.mark.parametrize(
    "options",
    [
        {"init_lora_weights": False},
        {"init_lora_weights": False, "bias": "all"},
        {"init_lora_weights": "pissa"},
    ],
)
def test_such_a_reference_with_an_adapter_is_its_folder_on_its_base(tmp_path, options):
    peft = pytest.importorskip("peft")
    tiny_model("llama", attention_bias=True).save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], **options)
    peft.get_peft_model(base, lora).save_pretrained(tmp_path / "adapter")
    rows, later, folder = tiny_rows(8), tiny_rows(3, seed=9), str(tmp_path / "adapter")
    known = trainer(tmp_path / "known", rows, eval_dataset=later, model=folder)
    known.train()
    store = str(tmp_path / "store")
    again = trainer(tmp_path / "again", rows, model=folder, reference_cache_dir=store)
    again.train()
    found = again.evaluate(later)["eval_loss"]
    assert found == pytest.approx(known.evaluate()["eval_loss"], rel=1e-5)
    assert found != pytest.approx(0.6931472, rel=1e-3)
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name: it * 2 for name, it in load_file(weights).items()}, weights)
    with pytest.raises(ValueError, match="is no longer where it was loaded from"):
        again.evaluate(tiny_rows(3, seed=10))


# Streams ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "kind"), [("dpo", "paired"), ("kto", "unpaired"), ("orpo", "ranked")]
)
def test_streams_train_as_the_same_rows_in_memory(tmp_path, loss, kind):
    rows = tiny_rows(12, kind)
    options = {"loss_type": loss, "train_sampling_strategy": "sequential"}
    if kind == "unpaired":  # a stream cannot give its first row the completion of its last one
        options["max_steps"] = 1
    streamed = trainer(tmp_path, rows.to_iterable_dataset(), **options)
    streamed.train()
    in_memory = trainer(tmp_path, rows, **options)
    in_memory.train()
    for mine, wanted in zip(steps(streamed), steps(in_memory), strict=True):
        assert mine["loss"] == pytest.approx(wanted["loss"], rel=1e-5)


def test_a_stream_cannot_be_cached(tmp_path):
    with pytest.raises(ValueError, match=r"precompute_ref_log_probs.* is not supported with Iter"):
        trainer(tmp_path, tiny_rows(4).to_iterable_dataset(), reference="cached")


# What does not fit --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"loss_type": "dpo"}, "unpaired", "the data is unpaired, but the loss needs pairs"),
        ({"loss_type": "kto"}, "ranked", "the data is ranked, but the loss needs"),
        ({"loss_type": "orpo", "reference": "cached"}, "paired", "uses no reference"),
        ({"loss_type": "orpo", "ref_model": "self"}, "paired", "uses no reference"),
    ],
)
def test_what_does_not_fit_is_said_before_training(tmp_path, options, kind, message):
    if "ref_model" in options:
        options = options | {"ref_model": tiny_model("llama")}
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, tiny_rows(4, kind), **options)


def test_a_model_cannot_be_its_own_reference(tmp_path):
    model = tiny_model("llama")
    with pytest.raises(ValueError, match="same object"):
        trainer(tmp_path, tiny_rows(4), model=model, ref_model=model)


def test_loading_options_for_a_loaded_model_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="model_init_kwargs only matters"):
        trainer(tmp_path, tiny_rows(4), model_init_kwargs={"dtype": "bfloat16"})


def test_a_tokenizer_of_another_model_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="97 tokens but the model embeds only 50"):
        trainer(tmp_path, tiny_rows(4), model=tiny_model("llama", vocab_size=50))


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_texts_are_cut_to_the_positions_a_model_has(tmp_path, name, capsys):
    size = {"n_positions": 16} if name == "gpt2" else {"max_position_embeddings": 16}
    model = tiny_model(name, **size)
    rows = Dataset.from_dict(
        {"prompt": ["w3 w4"] * 4, "chosen": [" w5 w6" * 12] * 4, "rejected": [" w7"] * 4}
    )
    trained = trainer(tmp_path, rows, model=model)
    trained.train()
    assert trained.max_length == 16
    assert steps(trained)[0]["lengths/chosen"] == 14
    assert "the model has no more positions" in capsys.readouterr().err


def test_a_model_from_nowhere_needs_a_tokenizer(tmp_path):
    with pytest.raises(ValueError, match="pass processing_class"):
        PreferenceTrainer(tiny_model("llama"), args=config(tmp_path), train_dataset=tiny_rows(4))


def test_no_data_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="give a train_dataset"):
        trainer(tmp_path, None)


def test_a_list_of_rows_is_an_error_that_says_how_to_make_a_dataset(tmp_path):
    with pytest.raises(TypeError, match="from_list"):
        trainer(tmp_path, tiny_rows(4).to_list())


def test_other_arguments_are_an_error(tmp_path):
    from transformers import TrainingArguments

    with pytest.raises(TypeError, match="must be a PreferenceConfig"):
        PreferenceTrainer(
            tiny_model("llama"),
            args=TrainingArguments(str(tmp_path), report_to="none"),
            train_dataset=tiny_rows(4),
        )


def test_the_configuration_survives_a_round_trip(tmp_path):
    args = config(tmp_path, loss_type=["dpo", "sft"], loss_weights=[1.0, 0.2], beta=0.3)
    again = PreferenceConfig(
        **{
            k: v
            for k, v in json.loads(args.to_json_string()).items()
            if k in ("output_dir", "loss_type", "loss_weights", "beta")
        }
    )
    assert again.objective.name == "dpo + 0.2*sft"
    assert again.objective.terms[0].hyperparameters == {"beta": 0.3}
    assert get_loss("dpo").hyperparameters["beta"] == 0.1


@pytest.mark.gpu
@pytest.mark.parametrize(("loss", "kind"), [("dpo", "paired"), ("kto", "unpaired")])
def test_a_step_never_waits_for_the_gpu(tmp_path, loss, kind):
    options = {"loss_type": loss, "use_cpu": False, "bf16": True, "diagnostics": True}
    trained = trainer(tmp_path, tiny_rows(8, kind), **options)
    rows = [trained.train_dataset[index] for index in range(4)]
    batch = trained._prepare_inputs(trained.data_collator(rows))
    trained.model.train()
    trained.compute_loss(trained.model, batch).backward()  # what is chosen on first use is chosen
    with waiting_is_an_error():
        trained.compute_loss(trained.model, batch).backward()


def test_the_summary_of_a_run_has_what_was_not_logged_before(tmp_path):
    short = trainer(tmp_path, tiny_rows(12), logging_steps=10)
    each = trainer(tmp_path, tiny_rows(12))
    short.train()
    each.train()
    *_, summary = short.state.log_history
    chosen = [entry["rewards/chosen"] for entry in steps(each)]
    assert summary["rewards/chosen"] == pytest.approx(sum(chosen) / 3)
    assert "rewards/chosen" not in each.state.log_history[-1]
