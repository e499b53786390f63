"""Axolotl's files: every key that is mapped, every loss, and what cannot be had."""

import pytest

from prefopt.cli.foreign.axolotl import own_tokens
from prefopt.cli.foreign.axolotl_keys import KEYS
from tests.cli.foreign.files import converter, options_of

PAIRS = [{"path": "pairs.jsonl", "type": "chat_template.argilla_chat"}]
ENTRY = {"path": "pairs.jsonl", "columns": ["chosen", "rejected"]}
BASE = {"base_model": "m", "rl": "dpo", "datasets": PAIRS, "learning_rate": "2e-4"}
LORA = {"adapter": "lora", "lora_r": 8, "lora_alpha": 16, "lora_target_linear": True}
QLORA = {**LORA, "adapter": "qlora", "load_in_4bit": True}
SIMPO = {"rl": "simpo", "rl_beta": 2.0}
HELD_OUT = {"val_set_size": 0.1}


converted = converter("Axolotl", BASE, "x.yml")


def options(**values):
    return options_of(converted(**values))


# What a key with this value becomes, with the other values that it goes with.
ROWS = [
    ("rl", "ipo", {}, {"loss_type": "ipo", "beta": 0.1}),
    ("rl_beta", 0.5, {}, {"loss_type": "dpo", "beta": 0.5}),
    ("dpo_beta", 0.5, {}, {"beta": 0.5}),
    ("orpo_alpha", 0.3, {"rl": "orpo"}, {"loss_type": "orpo", "loss_kwargs": {"lambda_": 0.3}}),
    ("simpo_gamma", 1.5, SIMPO, {"loss_type": "simpo + sft", "loss_kwargs": {"gamma": 1.5}}),
    ("cpo_alpha", 0, SIMPO, {"loss_type": "simpo", "beta": 2.0}),
    ("rpo_alpha", 0.5, {}, {"loss_type": ["dpo", "sft"], "loss_weights": [1.0, 0.5]}),
    (
        "kto_desirable_weight",
        0.2,
        {"rl": "kto", "datasets": [{"path": "t"}]},
        {
            "loss_type": "kto",
            "desirable_weight": 0.2,
            "undesirable_weight": 1.0,
        },
    ),
    (
        "kto_undesirable_weight",
        2,
        {"rl": "kto", "datasets": [{"path": "t"}]},
        {
            "undesirable_weight": 2.0,
        },
    ),
    (
        "dpo_loss_type",
        ["sigmoid", "bco_pair"],
        {"dpo_loss_weights": [1, 0.2]},
        {
            "loss_type": ["dpo", "bco_pair"],
            "loss_weights": [1.0, 0.2],
        },
    ),
    (
        "dpo_loss_weights",
        [1, 2],
        {"dpo_loss_type": ["hinge", "sft"]},
        {
            "loss_type": ["hinge", "sft"],
            "loss_weights": [1.0, 2.0],
        },
    ),
    ("dpo_label_smoothing", 0.1, {}, {"label_smoothing": 0.1}),
    ("dpo_use_weighting", True, {}, {"use_weighting": True}),
    ("precompute_ref_log_probs", True, {}, {"loss_type": "dpo"}),
    ("trl", {"beta": 0.4}, {}, {"beta": 0.4}),
    ("adapter", "lora", LORA, {"use_peft": True, "lora_r": 8, "lora_dropout": 0.0}),
    ("lora_r", 4, LORA, {"lora_r": 4}),
    ("lora_alpha", 4, LORA, {"lora_alpha": 4}),
    ("lora_dropout", 0.1, LORA, {"lora_dropout": 0.1}),
    (
        "lora_target_modules",
        ["q_proj"],
        {**LORA, "lora_target_linear": None},
        {
            "lora_target_modules": ["q_proj"],
        },
    ),
    ("lora_target_linear", True, LORA, {"lora_target_modules": ["all-linear"]}),
    (
        "lora_target_parameters",
        ["mlp.experts.down_proj"],
        LORA,
        {
            "lora_target_parameters": ["mlp.experts.down_proj"],
        },
    ),
    ("lora_modules_to_save", ["lm_head"], LORA, {"lora_modules_to_save": ["lm_head"]}),
    ("peft_use_dora", True, LORA, {"use_dora": True}),
    ("peft_use_rslora", True, LORA, {"use_rslora": True}),
    ("load_in_4bit", True, QLORA, {"load_in_4bit": True, "use_bnb_nested_quant": True}),
    ("load_in_8bit", True, LORA, {"load_in_8bit": True}),
    ("bf16", True, {}, {"bf16": True, "dtype": "bfloat16"}),
    ("bfloat16", True, {}, {"bf16": True, "dtype": "bfloat16"}),
    ("fp16", True, {}, {"fp16": True, "bf16": False, "dtype": "float16"}),
    ("float32", True, {"bf16": False}, {"bf16": False, "dtype": "float32"}),
    ("tf32", False, {}, {"tf32": False}),
    ("gradient_checkpointing", True, {}, {"gradient_checkpointing": True}),
    ("activation_offloading", True, {}, {"activation_offloading": True}),
    ("eager_attention", True, {}, {"attn_implementation": "eager"}),
    ("attn_implementation", "eager", {}, {"attn_implementation": "eager"}),
    ("learning_rate", "5e-7", {}, {"learning_rate": 5e-7}),
    ("lr_scheduler", "linear", {}, {"lr_scheduler_type": "linear"}),
    (
        "cosine_min_lr_ratio",
        0.1,
        {},
        {
            "lr_scheduler_type": "cosine_with_min_lr",
            "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
        },
    ),
    ("warmup_steps", 10, {}, {"warmup_steps": 10}),
    ("warmup_ratio", 0.1, {}, {"warmup_steps": 0.1}),
    (
        "batch_size",
        8,
        {"micro_batch_size": 2},
        {
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 4,
        },
    ),
    ("eval_batch_size", 4, {}, {"per_device_eval_batch_size": 4}),
    ("save_steps", 50, {}, {"save_strategy": "steps", "save_steps": 50}),
    ("saves_per_epoch", 2, {"num_epochs": 4}, {"save_strategy": "steps", "save_steps": 0.125}),
    ("save_strategy", "no", {}, {"save_strategy": "no"}),
    ("eval_steps", 20, HELD_OUT, {"eval_strategy": "steps", "eval_steps": 20}),
    ("evals_per_epoch", 4, {**HELD_OUT, "num_epochs": 2}, {"eval_steps": 0.125}),
    ("eval_strategy", "epoch", HELD_OUT, {"eval_strategy": "epoch"}),
    ("evaluation_strategy", "epoch", HELD_OUT, {"eval_strategy": "epoch"}),
    ("special_tokens", {"pad_token": "<pad>"}, {}, {"pad_token": "<pad>"}),
    ("use_wandb", True, {}, {"report_to": ["wandb"]}),
    ("wandb_project", "p", {}, {"report_to": ["wandb"], "env": {"WANDB_PROJECT": "p"}}),
    ("wandb_entity", "e", {"use_wandb": True}, {"env": {"WANDB_ENTITY": "e"}}),
    ("wandb_mode", "offline", {"use_wandb": True}, {"env": {"WANDB_MODE": "offline"}}),
    ("wandb_name", "n", {"use_wandb": True}, {"run_name": "n"}),
    ("use_mlflow", True, {}, {"report_to": ["mlflow"]}),
    ("use_tensorboard", True, {}, {"report_to": ["tensorboard"]}),
    ("use_comet", True, {}, {"report_to": ["comet_ml"]}),
    ("use_trackio", True, {}, {"report_to": ["trackio"]}),
    ("hub_model_id", "me/x", {}, {"hub_model_id": "me/x", "push_to_hub": True}),
    ("plugins", ["axolotl.integrations.liger.LigerPlugin"], {}, {"loss_type": "dpo"}),
    ("base_model_config", "m", {}, {"model_name_or_path": "m"}),
    ("tokenizer_config", "m", {}, {"model_name_or_path": "m"}),
    ("base_model", "other", {}, {"model_name_or_path": "other"}),
    ("model_revision", "v2", {}, {"model_revision": "v2"}),
    ("revision_of_model", "v2", {}, {"model_revision": "v2"}),
    ("model_kwargs", {"use_cache": False}, {}, {"model_init_kwargs": {"use_cache": False}}),
    ("overrides_of_model_kwargs", {"a": 1}, {}, {"model_init_kwargs": {"a": 1}}),
    ("trust_remote_code", True, {}, {"trust_remote_code": True}),
    ("output_dir", "o", {}, {"output_dir": "o"}),
    (
        "micro_batch_size",
        4,
        {},
        {
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 4,
        },
    ),
    ("gradient_accumulation_steps", 4, {}, {"gradient_accumulation_steps": 4}),
    ("num_epochs", 3, {}, {"num_train_epochs": 3}),
    ("optimizer", "adamw_8bit", {}, {"optim": "adamw_8bit"}),
    ("save_total_limit", 1, {}, {"save_total_limit": 1}),
    ("logging_steps", 1, {}, {"logging_steps": 1}),
    ("chat_template", "chatml", {}, {"loss_type": "dpo"}),
    ("save_only_model", True, {}, {"save_only_model": True}),
    ("hub_strategy", "end", {}, {"hub_strategy": "end"}),
    (
        "gradient_checkpointing_kwargs",
        {"use_reentrant": False},
        {},
        {
            "gradient_checkpointing_kwargs": {"use_reentrant": False},
        },
    ),
    ("optim_args", "a=1", {}, {"optim_args": "a=1"}),
    ("torch_compile", True, {}, {"torch_compile": True}),
    ("datasets", PAIRS, {}, {"datasets": [ENTRY]}),
    ("test_datasets", PAIRS, {}, {"eval_datasets": [ENTRY]}),
    ("val_set_size", 0.05, {}, {"eval_fraction": 0.05}),
    ("sequence_len", 2048, {}, {"max_length": 2048}),
    ("excess_length_strategy", "truncate", {}, {"max_length": 512}),
    ("dataset_num_proc", 4, {}, {"dataset_num_proc": 4}),
    ("dataset_processes", 4, {}, {"dataset_num_proc": 4}),
]
_SAME = (
    "max_steps seed weight_decay max_grad_norm adam_beta1 adam_beta2 adam_epsilon "
    "lr_scheduler_kwargs deepspeed resume_from_checkpoint ddp_timeout ddp_bucket_cap_mb "
    "ddp_broadcast_buffers ddp_find_unused_parameters dataloader_num_workers hub_revision "
    "dataloader_prefetch_factor dataloader_drop_last torch_compile_backend torch_compile_mode "
    "torch_empty_cache_steps accelerator_config"
)
ROWS += [(name, 7, {}, {name: 7}) for name in _SAME.split()]


@pytest.mark.parametrize(("key", "value", "others", "ours"), ROWS, ids=[row[0] for row in ROWS])
def test_a_key_becomes_our_option(key, value, others, ours):
    made = converted(**{**others, key: value})
    assert not made.lost, made.message("x.yml")
    assert ours.items() <= made.options.items()
    assert any(key in line.keys for line in made.lines)


def test_every_key_that_is_mapped_has_a_row():
    mapped = {key for key, spec in KEYS.items() if spec.outcome in ("same", "differs")}
    assert {row[0] for row in ROWS} == mapped


def test_every_option_that_is_made_is_one_of_ours():
    from prefopt.cli.foreign.alignment_handbook import our_options

    made = {option for _, value, others, ours in ROWS for option in ours}
    made |= set(options(**QLORA))
    assert made <= our_options() | {"env"}


@pytest.mark.parametrize(
    ("values", "loss", "beta", "kwargs"),
    [
        ({}, "dpo", 0.1, None),
        ({"rl": "ipo", "rl_beta": "1e-2"}, "ipo", 0.01, None),
        ({"rl": "orpo", "rl_beta": 0.2}, "orpo", None, {"lambda_": 0.2}),
        ({"rl": "orpo"}, "orpo", None, {"lambda_": 0.1}),
        ({"rl": "simpo"}, "simpo + sft", 0.1, {"gamma": 0.5}),
        ({"rl": "simpo", "cpo_alpha": 0.5}, "simpo + 0.5*sft", 0.1, {"gamma": 0.5}),
        ({"rl": "kto", "datasets": [{"path": "t"}]}, "kto", 0.1, None),
        ({"dpo_loss_type": ["hinge"]}, "hinge", 0.1, None),
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
    defaults = {
        "beta": 0.1,
        "use_peft": False,
        "num_train_epochs": 1.0,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "optim": "adamw_torch_fused",
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.03,
        "max_length": 512,
        "save_strategy": "epoch",
        "output_dir": "./model-out",
        "report_to": ["none"],
        "dtype": "bfloat16",
    }
    assert defaults.items() <= options().items()


@pytest.mark.parametrize(
    ("values", "key", "advice"),
    [
        ({"rl": "grpo"}, "rl", "dpo, ipo, kto, orpo, simpo"),
        ({"rl": None}, "rl", "supervised fine-tuning"),
        ({"learning_rate": None}, "learning_rate", "is missing"),
        ({"datasets": None}, "datasets", "is missing"),
        ({"adapter": "ia3"}, "adapter", "lora or qlora"),
        ({"load_in_4bit": True}, "load_in_4bit", "with an adapter"),
        ({**LORA, "lora_r": None}, "lora_r", "is missing"),
        ({**LORA, "lora_target_linear": None}, "lora_target_modules", "is missing"),
        ({**LORA, "lora_target_modules": ["lm_head"]}, "lora_target_modules", "leaves out lm_head"),
        ({**QLORA, "load_in_8bit": True}, "load_in_8bit", "4 bits"),
        ({"special_tokens": {"eos_token": "<|im_end|>"}}, "special_tokens", "eos_token"),
        ({"tokens": ["<a>"]}, "tokens", "tokenizer"),
        ({"optimizer": "muon"}, "optimizer", "no such optim"),
        ({"lr_scheduler": "rex"}, "lr_scheduler", "no such lr_scheduler_type"),
        ({"loraplus_lr_ratio": 16}, "loraplus_lr_ratio", "one learning rate"),
        ({"fsdp": ["full_shard"]}, "fsdp", "accelerate launch"),
        ({"plugins": ["axolotl.integrations.spectrum"]}, "plugins", "no plugins"),
        ({"chat_template_jinja": "{{ x }}"}, "chat_template_jinja", "tokenizer"),
        ({"lora_model_dir": "a"}, "lora_model_dir", "name the adapter's folder"),
        ({"tokenizer_config": "other"}, "tokenizer_config", "save the tokenizer"),
        ({"lora_rr": 1}, "lora_rr", "did you mean 'lora_r'"),
        ({"relora": True}, "relora", "use LoRA"),
        ({"tensor_parallel_size": 2}, "tensor_parallel_size", "accelerate launch"),
        ({"unfrozen_parameters": ["x"]}, "unfrozen_parameters", "requires_grad"),
    ],
)
def test_what_cannot_be_had_is_told_with_what_to_use(values, key, advice):
    made = converted(**values)
    assert [line.keys for line in made.lost] == [(key,)]
    assert advice in made.lost[0].note


def test_blank_keys_say_nothing():
    blank = dict.fromkeys(
        ("lora_model_dir", "wandb_project", "special_tokens", "fsdp", "deepspeed")
    )
    assert options(**blank) == options()


def test_a_run_without_rows_to_evaluate_on_does_not_evaluate():
    assert "eval_strategy" not in options(evals_per_epoch=4, val_set_size=0.0)


def test_once_in_a_run_of_one_epoch_is_at_its_end():
    ours = options(saves_per_epoch=1, evals_per_epoch=1, val_set_size=0.1)
    assert (ours["save_strategy"], ours["eval_strategy"]) == ("epoch", "epoch")
    assert "save_steps" not in ours


def test_full_bf16_has_no_mixed_precision():
    assert {"bf16": False, "dtype": "bfloat16"}.items() <= options(bf16="full").items()


def test_tokens_that_the_tokenizer_has_are_no_problem(model_folder):
    assert own_tokens(model_folder)["eos_token"] == "</s>"
    tokens = {"eos_token": "</s>", "pad_token": "<pad>"}
    assert options(base_model=str(model_folder), special_tokens=tokens)["pad_token"] == "<pad>"


@pytest.mark.parametrize("key", [key for key, spec in KEYS.items() if spec.outcome == "cannot"])
def test_a_key_that_cannot_be_had_is_taken_where_it_changes_nothing(key):
    for value in KEYS[key].harmless:
        assert not converted(**{key: value}).lost


@pytest.mark.parametrize("key", [key for key, spec in KEYS.items() if spec.outcome == "nothing"])
def test_a_key_that_changes_nothing_is_left_out(key):
    assert options(**{key: "x"}) == options()
