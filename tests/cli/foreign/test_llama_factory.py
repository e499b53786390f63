"""LLaMA-Factory's files: every key that is mapped, every loss, and what cannot be had."""

from pathlib import Path

import pytest

from prefopt.cli.foreign import convert
from prefopt.cli.foreign.llama_factory import KEYS
from tests.cli.foreign.files import converter, options_of

PAIRS = {
    "file_name": "pairs.json",
    "ranking": True,
    "columns": {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"},
}
THUMBS = {
    "file_name": "thumbs.json",
    "columns": {"prompt": "instruction", "response": "output", "kto_tag": "label"},
}
INFO = {"pairs": PAIRS, "more": {**PAIRS, "file_name": "more.json"}, "thumbs": THUMBS}
BASE = {
    "model_name_or_path": "m",
    "stage": "dpo",
    "dataset": "pairs",
    "dataset_dir": INFO,
    "output_dir": "out",
}
KTO = {"stage": "kto", "dataset": "thumbs"}
FULL = {"finetuning_type": "full"}


converted = converter("LLaMA-Factory", BASE, "x.yaml")


def options(**values):
    return options_of(converted(**values))


def entry(path, **more):
    return {"path": path, "columns": ["instruction", "chosen", "rejected"], **more}


# What a key with this value becomes, with the other values that it goes with.
ROWS = [
    ("stage", "kto", {"dataset": "thumbs"}, {"loss_type": "kto"}),
    ("pref_loss", "hinge", {}, {"loss_type": "hinge", "beta": 0.1}),
    ("pref_beta", "5e-1", {}, {"loss_type": "dpo", "beta": 0.5}),
    (
        "pref_ftx",
        0.1,
        {},
        {"loss_type": "dpo + 0.1*sft", "loss_kwargs": {"sft": {"normalize": "sequence"}}},
    ),
    (
        "pref_bco_weight",
        0.25,
        {"pref_ftx": 2},
        {"loss_type": ["dpo", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 2.0]},
    ),
    ("simpo_gamma", 1.5, {"pref_loss": "simpo"}, {"loss_kwargs": {"gamma": 1.5}}),
    ("dpo_label_smoothing", 0.1, {}, {"label_smoothing": 0.1}),
    ("ld_alpha", 0.5, {}, {"ld_alpha": 0.5}),
    ("kto_chosen_weight", 2, KTO, {"desirable_weight": 2.0, "undesirable_weight": 1.0}),
    ("kto_rejected_weight", 3, KTO, {"desirable_weight": 1.0, "undesirable_weight": 3.0}),
    ("finetuning_type", "full", {}, {"use_peft": False, "dtype": "float32", "bf16": False}),
    ("lora_rank", 4, {}, {"lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.0}),
    ("lora_alpha", 4, {}, {"lora_r": 8, "lora_alpha": 4}),
    ("lora_dropout", 0.05, {}, {"lora_dropout": 0.05}),
    ("lora_target", "q_proj, v_proj", {}, {"lora_target_modules": ["q_proj", "v_proj"]}),
    (
        "additional_target",
        "lm_head,embed_tokens",
        {},
        {
            "lora_modules_to_save": [
                "lm_head",
                "embed_tokens",
            ]
        },
    ),
    ("use_rslora", True, {}, {"use_rslora": True}),
    ("use_dora", True, {}, {"use_dora": True}),
    (
        "quantization_bit",
        4,
        {"bf16": True},
        {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "use_bnb_nested_quant": True,
            "dtype": "bfloat16",
        },
    ),
    ("quantization_type", "fp4", {"quantization_bit": 4}, {"bnb_4bit_quant_type": "fp4"}),
    ("double_quantization", False, {"quantization_bit": 4}, {"use_bnb_nested_quant": False}),
    ("quantization_method", "bnb", {"quantization_bit": 8}, {"load_in_8bit": True}),
    ("ref_model", "m", {}, {"loss_type": "dpo"}),
    ("ref_model_adapters", "a", {}, {"reference": "adapter:a"}),
    ("bf16", True, FULL, {"bf16": True, "dtype": "float32"}),
    ("fp16", True, {}, {"fp16": True, "bf16": False, "dtype": "float16"}),
    ("pure_bf16", True, FULL, {"bf16": False, "dtype": "bfloat16"}),
    ("flash_attn", "disabled", {}, {"attn_implementation": "eager"}),
    ("disable_gradient_checkpointing", True, {}, {"gradient_checkpointing": False}),
    ("gradient_checkpointing", True, {}, {"gradient_checkpointing": True}),
    ("model_name_or_path", "other", {}, {"model_name_or_path": "other"}),
    ("model_revision", "v2", {}, {"model_revision": "v2"}),
    ("trust_remote_code", True, {}, {"trust_remote_code": True}),
    ("moe_aux_loss_coef", 0.01, {}, {"router_aux_loss_coef": 0.01}),
    ("learning_rate", "5e-6", {}, {"learning_rate": 5e-6}),
    ("num_train_epochs", 1, {}, {"num_train_epochs": 1}),
    ("per_device_train_batch_size", 2, {}, {"per_device_train_batch_size": 2}),
    ("lr_scheduler_type", "cosine", {}, {"lr_scheduler_type": "cosine"}),
    ("logging_steps", 5, {}, {"logging_steps": 5}),
    ("optim", "adamw_torch", {}, {"optim": "adamw_torch"}),
    ("disable_shuffling", True, {}, {"train_sampling_strategy": "sequential"}),
    ("evaluation_strategy", "steps", {"val_size": 0.1}, {"eval_strategy": "steps"}),
    ("warmup_ratio", 0.1, {}, {"warmup_steps": 0.1}),
    ("no_cuda", True, {}, {"use_cpu": True}),
    ("per_gpu_train_batch_size", 3, {}, {"per_device_train_batch_size": 3}),
    ("per_gpu_eval_batch_size", 3, {}, {"per_device_eval_batch_size": 3}),
    ("push_to_hub_model_id", "me/x", {}, {"hub_model_id": "me/x"}),
    ("push_to_hub_token", "t", {}, {"hub_token": "t"}),
    ("adafactor", True, {}, {"optim": "adafactor"}),
    ("group_by_length", True, {}, {"loss_type": "dpo"}),
    ("template", "llama3", {}, {"loss_type": "dpo"}),
    ("cutoff_len", 512, {}, {"max_length": 512}),
    ("preprocessing_num_workers", 4, {}, {"dataset_num_proc": 4}),
    ("dataset", "pairs, more", {}, {"datasets": [entry("pairs.json"), entry("more.json")]}),
    (
        "eval_dataset",
        "more",
        {},
        {"datasets": [entry("pairs.json")], "eval_datasets": [entry("more.json")]},
    ),
    ("dataset_dir", INFO, {}, {"datasets": [entry("pairs.json")]}),
    ("max_samples", 50, {}, {"datasets": [entry("pairs.json", limit=50)]}),
    ("val_size", 0.1, {}, {"eval_fraction": 0.1}),
    (
        "streaming",
        True,
        {"dataset": "org/x", "dataset_dir": "ONLINE", "max_steps": 3},
        {"dataset_name": "org/x", "dataset_train_split": "train", "dataset_streaming": True},
    ),
]


@pytest.mark.parametrize(("key", "value", "others", "ours"), ROWS, ids=[row[0] for row in ROWS])
def test_a_key_becomes_our_option(key, value, others, ours):
    made = converted(**{**others, key: value})
    assert not made.lost, made.message("x.yaml")
    assert ours.items() <= made.options.items()
    assert any(key in line.keys for line in made.lines)


def test_every_key_that_is_mapped_has_a_row():
    mapped = {key for key, spec in KEYS.items() if spec.outcome in ("same", "differs")}
    assert {row[0] for row in ROWS} == mapped


@pytest.mark.parametrize(
    ("values", "loss", "beta", "kwargs"),
    [
        ({}, "dpo", 0.1, None),
        ({"pref_loss": "sigmoid", "pref_beta": 0.3}, "dpo", 0.3, None),
        ({"pref_loss": "ipo"}, "ipo", 0.1, None),
        ({"pref_loss": "kto_pair"}, "kto", 0.1, None),
        ({"pref_loss": "orpo", "pref_beta": 0.2}, "orpo", None, {"lambda_": 0.2}),
        ({"pref_loss": "orpo"}, "orpo", None, {"lambda_": 0.1}),
        ({"pref_loss": "simpo", "pref_beta": 2}, "simpo", 2.0, {"gamma": 0.5}),
        (
            {"pref_loss": "simpo", "pref_ftx": 1},
            "simpo + sft",
            0.1,
            {"sft": {"normalize": "sequence"}, "gamma": 0.5},
        ),
        (
            {"pref_loss": "ipo", "pref_ftx": "1e-1"},
            "ipo + 0.1*sft",
            0.1,
            {"sft": {"normalize": "sequence"}},
        ),
        (KTO, "kto", 0.1, None),
    ],
)
def test_the_implied_loss_is_named_and_is_one_of_ours(tmp_path, values, loss, beta, kwargs):
    from prefopt import PreferenceConfig

    ours = options(**values)
    assert (ours["loss_type"], ours.get("beta"), ours.get("loss_kwargs")) == (loss, beta, kwargs)
    names = ("loss_type", "beta", "loss_kwargs", "desirable_weight", "undesirable_weight")
    given = {name: ours[name] for name in names if name in ours}
    made = PreferenceConfig(str(tmp_path), report_to="none", use_cpu=True, **given)
    assert made.objective.name == loss


def test_their_defaults_are_written_out():
    ours = options()
    defaults = {
        "learning_rate": 5e-5,
        "num_train_epochs": 3.0,
        "per_device_train_batch_size": 8,
        "lr_scheduler_type": "linear",
        "logging_steps": 500,
        "max_length": 2048,
        "beta": 0.1,
        "use_peft": True,
        "lora_r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "lora_target_modules": ["all-linear"],
        "gradient_checkpointing": True,
        "bf16": False,
    }
    assert defaults.items() <= ours.items()
    written = [line for line in converted().lines if line.option == "max_length"]
    assert "default of LLaMA-Factory" in written[0].note


@pytest.mark.parametrize(
    ("values", "key", "advice"),
    [
        ({"stage": "sft"}, "stage", "the stages dpo and kto"),
        ({"pref_loss": "xpo"}, "pref_loss", "sigmoid"),
        ({"finetuning_type": "freeze"}, "finetuning_type", "lora or full"),
        ({"finetuning_type": "full", "quantization_bit": 4}, "quantization_bit", "goes with"),
        ({"quantization_bit": 3}, "quantization_bit", "4 and 8"),
        ({"quantization_bit": 4, "quantization_method": "hqq"}, "quantization_method", "hqq"),
        ({"ref_model": "other"}, "ref_model", "PreferenceTrainer"),
        ({"adapter_name_or_path": "a"}, "adapter_name_or_path", "name the adapter's folder"),
        ({"pref_loss": "ipo", "dpo_label_smoothing": 0.1}, "dpo_label_smoothing", "sigmoid"),
        ({"pref_loss": "ipo", "ld_alpha": 0.5}, "ld_alpha", "takes means"),
        ({"use_galore": True}, "use_galore", "optim"),
        ({"use_badam": True}, "use_badam", "optim"),
        ({"loraplus_lr_ratio": 16}, "loraplus_lr_ratio", "one learning_rate"),
        ({"optim": "lomo_x"}, "optim", "no such optim"),
        ({"lr_scheduler_type": "cosin"}, "lr_scheduler_type", "cosine"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor", "use label_smoothing"),
        ({"enable_thinking": False}, "enable_thinking", "chat_template_kwargs"),
        ({"mix_strategy": "interleave_under"}, "mix_strategy", "weight"),
        ({"default_system": "Be kind."}, "default_system", "column"),
        ({"resize_vocab": True}, "resize_vocab", "tokenizer"),
        ({"pref_lossy": 1}, "pref_lossy", "did you mean 'pref_loss'"),
        ({"learning_rat": 1}, "learning_rat", "did you mean 'learning_rate'"),
        ({"do_train": False}, "do_train", "trains"),
        ({"early_stopping_steps": 3}, "early_stopping_steps", "EarlyStoppingCallback"),
        ({"warmup_ratio": 0.1, "warmup_steps": 5}, "warmup_steps", "another key"),
    ],
)
def test_what_cannot_be_had_is_told_with_what_to_use(values, key, advice):
    made = converted(**values)
    assert [line.keys for line in made.lost] == [(key,)]
    assert advice in made.lost[0].note
    assert key in made.message("x.yaml")


def test_all_problems_are_in_one_message():
    said = converted(use_galore=True, shift_attn=True, nonsense=1).message("x.yaml")
    assert all(word in said for word in ("use_galore: True", "shift_attn: True", "nonsense: 1"))


@pytest.mark.parametrize("key", [key for key, spec in KEYS.items() if spec.outcome == "cannot"])
def test_a_key_that_cannot_be_had_is_taken_where_it_changes_nothing(key):
    for value in KEYS[key].harmless:
        assert not converted(**{key: value}).lost


@pytest.mark.parametrize("key", [key for key, spec in KEYS.items() if spec.outcome == "nothing"])
def test_a_key_that_changes_nothing_is_left_out(key):
    assert options(**{key: "x"}) == options()


def test_a_file_beside_its_data_is_read(tmp_path):
    import json

    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "dataset_info.json").write_text(json.dumps(INFO))
    made = convert({**BASE, "dataset_dir": "data"}, tmp_path / "x.yaml")
    assert made.options["datasets"][0]["path"] == str(Path(folder) / "pairs.json")
