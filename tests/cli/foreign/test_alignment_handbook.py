"""alignment-handbook's recipes: every key that is mapped, and what cannot be had."""

import pytest

from prefopt.cli.foreign.alignment_handbook import KEYS, our_options, own_template
from prefopt.migration import OLD_FIELDS
from tests.cli.foreign.files import converter, options_of

BASE = {"model_name_or_path": "m", "torch_dtype": "bfloat16", "dataset_name": "d"}
MIXER = {"dataset_mixer": {"org/a": 1.0, "org/b": 0.5}, "dataset_name": None}
MIXTURE = {
    "datasets": [
        {"id": "org/a", "config": "en", "split": "train_prefs", "columns": ["chosen"]},
        {"id": "org/b", "weight": 0.5},
    ],
    "seed": 0,
}
LORA = {"use_peft": True}


converted = converter("alignment-handbook", BASE, "recipes/x/dpo/x.yaml")


def options(**values):
    return options_of(converted(**values))


def entry(path, **more):
    return {"path": path, **more}


ROWS = [
    ("loss_type", "apo_zero", {}, {"loss_type": "apo_zero"}),
    ("beta", "5e-2", {}, {"beta": 0.05, "loss_type": "dpo"}),
    ("rpo_alpha", 0.2, {"loss_type": "hinge"}, {"loss_type": "hinge + 0.2*sft"}),
    (
        "dataset_mixer",
        MIXER["dataset_mixer"],
        MIXER,
        {"datasets": [entry("org/a", split="train"), entry("org/b", split="train", weight=0.5)]},
    ),
    (
        "dataset_splits",
        ["train_prefs", "test_prefs"],
        {"dataset_mixer": {"org/a": 1.0}, "dataset_name": None, "eval_strategy": "steps"},
        {"datasets": [entry("org/a", split="train_prefs")], "dataset_test_split": "test_prefs"},
    ),
    (
        "dataset_configs",
        ["en"],
        {"dataset_mixer": {"org/a": 1}, "dataset_name": None},
        {"datasets": [entry("org/a", split="train", name="en")]},
    ),
    (
        "dataset_mixture",
        MIXTURE,
        {"dataset_name": None},
        {
            "datasets": [
                entry("org/a", name="en", split="train_prefs", columns=["chosen"]),
                entry("org/b", split="train", weight=0.5),
            ]
        },
    ),
    ("tokenizer_name_or_path", "m", {}, {"model_name_or_path": "m"}),
    ("attn_implementation", "eager", {}, {"attn_implementation": "eager"}),
    ("use_peft", True, {}, {"lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05}),
    ("lora_r", 4, LORA, {"lora_r": 4}),
    ("lora_alpha", 4, LORA, {"lora_alpha": 4}),
    ("lora_dropout", 0.0, LORA, {"lora_dropout": 0.0}),
    ("torch_dtype", "float16", {}, {"dtype": "float16"}),
    ("model_dtype", "bfloat16", {}, {"dtype": "bfloat16"}),
    ("model_name", "m", {"model_name_or_path": None}, {"model_name_or_path": "m"}),
    ("base_model_revision", "v2", {}, {"model_revision": "v2"}),
    ("use_lora", True, {}, {"use_peft": True}),
    ("optim", "rmsprop", {}, {"optim": "rmsprop"}),
    ("lr_scheduler_type", "inverse_sqrt", {}, {"lr_scheduler_type": "inverse_sqrt"}),
    ("preprocessing_num_workers", 12, {}, {"dataset_num_proc": 12}),
    ("hub_model_revision", "v1", {}, {"hub_revision": "v1"}),
    ("optimizer_type", "adamw_torch", {}, {"optim": "adamw_torch"}),
    ("log_freq", 5, {}, {"logging_steps": 5}),
    ("log_with", "wandb", {}, {"report_to": "wandb"}),
    ("max_prompt_length", 512, {}, {"loss_type": "dpo"}),
    ("max_completion_length", 512, {}, {"loss_type": "dpo"}),
    ("auto_insert_empty_system_msg", True, {}, {"loss_type": "dpo"}),
    ("wandb_entity", "e", {}, {"env": {"WANDB_ENTITY": "e"}}),
    ("wandb_project", "p", {"env": {"A": "b"}}, {"env": {"A": "b", "WANDB_PROJECT": "p"}}),
    ("wandb_run_group", "g", {}, {"env": {"WANDB_RUN_GROUP": "g"}}),
    ("evaluation_strategy", "epoch", {}, {"eval_strategy": "epoch"}),
    ("warmup_ratio", 0.1, {}, {"warmup_steps": 0.1}),
    ("no_cuda", True, {}, {"use_cpu": True}),
    ("per_gpu_train_batch_size", 3, {}, {"per_device_train_batch_size": 3}),
    ("per_gpu_eval_batch_size", 3, {}, {"per_device_eval_batch_size": 3}),
    ("push_to_hub_model_id", "me/x", {}, {"hub_model_id": "me/x"}),
    ("push_to_hub_token", "t", {}, {"hub_token": "t"}),
    ("adafactor", True, {}, {"optim": "adafactor"}),
    ("group_by_length", True, {}, {"loss_type": "dpo"}),
]


@pytest.mark.parametrize(("key", "value", "others", "ours"), ROWS, ids=[row[0] for row in ROWS])
def test_a_key_becomes_our_option(key, value, others, ours):
    made = converted(**{**others, key: value})
    assert not made.lost, made.message("x.yaml")
    assert ours.items() <= made.options.items()
    assert any(key in line.keys for line in made.lines)


def test_every_key_that_is_mapped_has_a_row():
    mapped = {key for key, spec in KEYS.items() if spec.outcome in ("same", "differs")}
    assert {row[0] for row in ROWS} | {"chat_template"} == mapped


OTHERS = sorted(our_options() - set(KEYS) - {"dtype", "datasets", "loss_kwargs"})


@pytest.mark.parametrize("option", OTHERS)
def test_options_that_are_trls_are_ours(option):
    made = converted(**{option: 7})
    assert made.options[option] == 7


def test_advice_for_old_keys_stays_where_nothing_is_mapped():
    for name in OLD_FIELDS:
        assert name in KEYS


def test_the_loss_of_a_recipe_is_named_and_told():
    made = converted()
    (line,) = [line for line in made.lines if line.option == "loss_type"]
    assert (made.options["loss_type"], line.outcome) == ("dpo", "differs")
    assert "--loss_type orpo" in line.note


@pytest.mark.parametrize(
    "values",
    [
        {"path": "recipes/x/orpo/config.yaml"},
        {"output_dir": "data/zephyr-orpo"},
        {"hub_model_id": "me/zephyr-ORPO-7b"},
        {"loss": "orpo"},
    ],
)
def test_a_recipe_of_orpo_has_its_lambda(values):
    ours = options(**{"beta": 0.05, **values})
    assert ours["loss_kwargs"] == {"lambda_": 0.05}
    assert "beta" not in ours
    assert ours.get("loss_type", "orpo") == "orpo"


@pytest.mark.parametrize(
    ("size", "ours"), [(500, {"eval_rows": 500}), (0.1, {"eval_fraction": 0.1}), (None, {})]
)
def test_a_part_of_a_mixture_is_held_out(size, ours):
    mixture = {**MIXTURE, "test_split_size": size}
    made = options(dataset_mixture=mixture, dataset_name=None, eval_strategy="steps")
    assert {k: v for k, v in made.items() if k in ("eval_rows", "eval_fraction")} == ours


def test_a_split_to_evaluate_on_is_read_where_something_asks_for_it():
    splits = {**MIXER, "dataset_splits": ["train", "test"]}
    assert "dataset_test_split" not in options(**splits)
    assert options(**splits, do_eval=True)["dataset_test_split"] == "test"


def test_no_limit_of_length_stays_none():
    assert options(max_length=None)["max_length"] is None


@pytest.mark.parametrize(
    ("values", "key", "advice"),
    [
        ({"chat_template": "{{ x }}"}, "chat_template", "tokenizer"),
        ({"tokenizer_name_or_path": "other"}, "tokenizer_name_or_path", "tokenizer"),
        ({"max_seq_length": 2048}, "max_seq_length", "max_length"),
        ({"truncation_side": "left"}, "truncation_side", "shorten prompts"),
        ({"optim": "adamw_hf_x"}, "optim", "no such optim"),
        ({**MIXER, "dataset_splits": ["valid"]}, "dataset_mixer", "train or test"),
        ({"dataset_mixture": {"datasets": [{"path": "x"}]}}, "dataset_mixture", "unknown key"),
        ({"dataset_mixture": ["x"]}, "dataset_mixture", "a list `datasets`"),
        ({"lossy_type": 1}, "lossy_type", "did you mean 'loss_type'"),
    ],
)
def test_what_cannot_be_had_is_told_with_what_to_use(values, key, advice):
    made = converted(**values)
    assert [line.keys for line in made.lost] == [(key,)]
    assert advice in made.lost[0].note


def test_a_template_that_the_tokenizer_has_is_no_problem(model_folder):
    template = own_template(model_folder)
    assert template
    made = options(model_name_or_path=str(model_folder), chat_template=template)
    assert "chat_template" not in made
