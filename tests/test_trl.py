"""TRL's names: its fields, defaults and arguments, each loss what it means there."""

import inspect
import subprocess
import sys
from dataclasses import MISSING, fields
from itertools import islice

import pytest
import torch
import trl
from peft import LoraConfig
from transformers import TrainingArguments
from trl.experimental.cpo import CPOConfig as TheirCPOConfig
from trl.experimental.cpo import CPOTrainer as TheirCPOTrainer
from trl.experimental.orpo import ORPOConfig as TheirORPOConfig
from trl.experimental.orpo import ORPOTrainer as TheirORPOTrainer

import prefopt.trl
from prefopt import PreferenceConfig
from prefopt.trl import (
    CPOConfig,
    CPOTrainer,
    DPOConfig,
    DPOTrainer,
    KTOConfig,
    KTOTrainer,
    ORPOConfig,
    ORPOTrainer,
)
from tests.models import tiny_model, tiny_rows, tiny_tokenizer
from tests.processes import environment
from tests.runs import steps

PAIRS = {
    DPOConfig: (DPOTrainer, trl.DPOConfig, trl.DPOTrainer),
    KTOConfig: (KTOTrainer, trl.KTOConfig, trl.KTOTrainer),
    CPOConfig: (CPOTrainer, TheirCPOConfig, TheirCPOTrainer),
    ORPOConfig: (ORPOTrainer, TheirORPOConfig, TheirORPOTrainer),
}
OURS = list(PAIRS)


def made(config, folder, **options):
    """Return a configuration for a few logged steps on a CPU, in float32."""
    quiet = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
    quiet |= {"bf16": False, "max_steps": 2, "logging_steps": 1, "per_device_train_batch_size": 2}
    return config(str(folder), **(quiet | options))


def trainer(config, folder, rows=None, model=None, args=None, **options):
    """Return a trainer of tiny rows; its own options by name, others are the configuration's."""
    names = ("ref_model", "peft_config", "eval_dataset", "compute_metrics", "callbacks")
    own = {name: options.pop(name) for name in names if name in options}
    options.setdefault("reference_cache_dir", str(folder / "store"))
    kind = "unpaired" if config is KTOConfig else "paired"
    return PAIRS[config][0](
        model=tiny_model("llama") if model is None else model,
        args=args or made(config, folder, **options),
        train_dataset=tiny_rows(8, kind) if rows is None else rows,
        processing_class=tiny_tokenizer(),
        **own,
    )


def default_of(item):
    """Return the default of a field."""
    return item.default if item.default is not MISSING else item.default_factory()


# Fields and arguments -----------------------------------------------------------------------------

# Where the default is another word for the same.
SAME = {
    "pad_to_multiple_of": (None, "auto"),
    "truncation_mode": (None, "keep_start"),
    "f_divergence_type": (None, "reverse_kl"),
    "f_alpha_divergence_coef": (None, 0.5),
    "discopop_tau": (None, 0.05),
    "ref_model_mixup_alpha": (None, 0.6),
    "ref_model_sync_steps": (None, 512),
    "logging_nan_inf_filter": (False, True),  # ours hides no loss that is not finite
}


@pytest.mark.parametrize("config", OURS)
def test_every_field_of_trl_is_there_with_its_default(config):
    mine = {item.name: default_of(item) for item in fields(config) if item.init}
    theirs = {item.name: default_of(item) for item in fields(PAIRS[config][1]) if item.init}
    assert not theirs.keys() - mine.keys()
    for name, default in theirs.items():
        assert (mine[name], default) == SAME.get(name, (default, default)), name


@pytest.mark.parametrize("config", OURS)
def test_what_trl_makes_of_its_defaults_is_made_here(config, tmp_path):
    mine = config(str(tmp_path), report_to="none", use_cpu=True)
    theirs = PAIRS[config][1](str(tmp_path), report_to="none", use_cpu=True)
    names = ("bf16", "fp16", "gradient_checkpointing", "learning_rate", "beta", "max_length")
    names += ("per_device_train_batch_size", "lr_scheduler_type", "optim", "weight_decay")
    assert {name: getattr(mine, name) for name in names} == {
        name: getattr(theirs, name) for name in names
    }


@pytest.mark.parametrize("config", OURS)
def test_arguments_of_trainers_come_in_the_order_of_trl(config):
    def names(made):
        return list(inspect.signature(made).parameters)

    mine, theirs = names(PAIRS[config][0]), names(PAIRS[config][2])
    assert mine[: len(theirs)] == theirs


# Whatever a script sets: a value that is not the default, of each field of TRL's own.
SET = {
    "activation_offloading": True,
    "alpha": 0.0,
    "average_tokens_across_devices": False,
    "bf16": False,
    "cpo_alpha": 0.3,
    "dataset_num_proc": 2,
    "desirable_weight": 1.33,
    "disable_dropout": False,
    "discopop_tau": 0.05,
    "eval_accumulation_steps": 4,
    "eval_use_gather_object": True,
    "f_alpha_divergence_coef": 0.5,
    "f_divergence_type": "js_divergence",
    "generate_during_eval": True,
    "gradient_checkpointing": False,
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
    "is_encoder_decoder": False,
    "label_names": ["label"],
    "label_smoothing": 0.1,
    "label_smoothing_factor": 0.1,
    "ld_alpha": 0.4,
    "learning_rate": 5e-7,
    "length_column_name": "tokens",
    "liger_kernel_config": {"rope": True},
    "logging_steps": 1,
    "max_completion_length": 256,
    "max_length": 512,
    "model_init_kwargs": {"dtype": "float32"},
    "pad_to_multiple_of": 8,
    "pad_token": "<pad>",
    "padding_free": True,
    "padding_value": 0,
    "precompute_ref_batch_size": 4,
    "precompute_ref_log_probs": True,
    "router_aux_loss_coef": 0.01,
    "simpo_gamma": 0.5,
    "torch_empty_cache_steps": 10,
    "train_sampling_strategy": "group_by_length",
    "truncation_mode": "keep_end",
    "trust_remote_code": True,
    "undesirable_weight": 0.7,
    "use_liger_kernel": True,
    "use_weighting": True,
}
FIELDS = [
    (config, name)
    for config in OURS
    for name in SET
    if name in {item.name for item in fields(PAIRS[config][1])}
]


@pytest.mark.parametrize(("config", "name"), FIELDS)
def test_whatever_a_script_sets_is_taken(config, name, tmp_path):
    assert config(str(tmp_path), report_to="none", **{name: SET[name]}).objective.terms


@pytest.mark.parametrize("name", sorted(prefopt.trl.WITHOUT_EFFECT))
def test_what_has_no_effect_is_said(name, tmp_path):
    config = next(it for it in (CPOConfig, ORPOConfig) if name in it.__dataclass_fields__)
    given = config(str(tmp_path), report_to="none", **{name: SET[name]}).differences
    assert sum(text.startswith(f"{name} has no effect: ") for text in given) == 1
    without = config(str(tmp_path), report_to="none").differences
    assert not [text for text in without if text.startswith(name)]


def test_a_configuration_with_an_argument_that_never_was_names_what_is_near(tmp_path):
    with pytest.raises(TypeError, match="CPOConfig has no argument 'cpo_alhpa'; did you mean 'cpo"):
        CPOConfig(str(tmp_path), cpo_alhpa=1.0)


# Losses -------------------------------------------------------------------------------------------

LOSSES = [
    (DPOConfig, {}, "dpo", {"beta": 0.1, "label_smoothing": 0.0}),
    (DPOConfig, {"loss_type": "hinge"}, "hinge", {"beta": 0.1}),
    (DPOConfig, {"loss_type": ["aot"]}, "aot", {"beta": 0.1}),  # ours has 0.01 by default
    (DPOConfig, {"loss_type": "discopop"}, "discopop", {"beta": 0.1}),
    (DPOConfig, {"loss_type": "sft"}, "sft", {}),
    (
        DPOConfig,
        {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
        "0.8*dpo + 0.2*bco_pair + sft",
        {"beta": 0.1},
    ),
    # TRL's bco_pair has no threshold, and its sppo_hard adds the two completions' losses.
    (DPOConfig, {"loss_type": "bco_pair"}, "bco_pair", {"beta": 0.1, "shift": False}),
    (
        DPOConfig,
        {"loss_type": "bco_pair", "loss_kwargs": {"shift": True}},
        "bco_pair",
        {"shift": True},
    ),
    (DPOConfig, {"loss_type": ["sppo_hard"]}, "2.0*sppo", {"beta": 0.1}),
    (DPOConfig, {"loss_type": "sppo"}, "sppo", {"beta": 0.1}),
    (KTOConfig, {"beta": 0.3}, "kto", {"beta": 0.3, "desirable_weight": 1.0}),
    (KTOConfig, {"loss_type": "apo_zero_unpaired"}, "apo_zero_unpaired", {"beta": 0.1}),
    (CPOConfig, {}, "cpo + sft", {"beta": 0.1}),
    (CPOConfig, {"cpo_alpha": 0.5, "beta": 0.2}, "cpo + 0.5*sft", {"beta": 0.2}),
    (CPOConfig, {"loss_type": "hinge"}, "cpo_hinge + sft", {"beta": 0.1}),
    (CPOConfig, {"loss_type": "ipo", "cpo_alpha": 0.0}, "cpo_ipo", {"beta": 0.1}),
    (
        CPOConfig,
        {"loss_type": "simpo", "cpo_alpha": 0.0, "simpo_gamma": 0.7, "label_smoothing": 0.1},
        "simpo",
        {"beta": 0.1, "gamma": 0.7, "label_smoothing": 0.1},
    ),
    (
        CPOConfig,
        {"loss_type": "alphapo", "alpha": 0.25},
        "alphapo",
        {"beta": 0.1, "gamma": 0.5, "alpha": 0.25},
    ),
    (CPOConfig, {"loss_type": "simpo", "alpha": 0.25}, "alphapo + sft", {"alpha": 0.25}),
    (ORPOConfig, {}, "orpo", {"lambda_": 0.1}),
    (ORPOConfig, {"beta": 0.25}, "orpo", {"lambda_": 0.25}),
]


@pytest.mark.parametrize(("config", "options", "name", "values"), LOSSES)
def test_names_of_losses_mean_what_they_mean_to_the_trainer(
    config, options, name, values, tmp_path
):
    objective = config(str(tmp_path), report_to="none", **options).objective
    assert objective.name == name
    assert values.items() <= objective.terms[0].hyperparameters.items()


@pytest.mark.parametrize(
    ("config", "options", "words"),
    [
        (CPOConfig, {"loss_type": "dpo"}, "CPOConfig: loss_type must be one of sigmoid, hinge"),
        (CPOConfig, {"loss_type": ["sigmoid"]}, "CPOConfig: loss_type must be one of sigmoid"),
        (CPOConfig, {"alpha": 0.5}, "alpha=0.5 bends the reward of 'simpo' and 'alphapo' alone"),
        (CPOConfig, {"loss_type": "alphapo", "label_smoothing": 0.1}, "label_smoothing"),
        (DPOConfig, {"loss_type": "orpo", "beta": 0.3}, "beta=0.3 of TRL's ORPOConfig is lambda_"),
        (ORPOConfig, {"loss_type": "sigmoid"}, "loss_type='sigmoid', and only 'orpo' is ORPO"),
        (KTOConfig, {"loss_type": "sigmoid"}, "'sigmoid' is dpo, which compares two completions"),
        (DPOConfig, {"loss_type": "exo_pair"}, "label_smoothing"),  # as TRL 1.16
    ],
)
def test_a_loss_of_another_trainer_is_refused(config, options, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        config(str(tmp_path), report_to="none", **options)


UNUSED = [
    (DPOConfig, {"loss_type": "sft", "beta": 0.3}, "beta=0.3 has no effect"),
    (DPOConfig, {"loss_type": "hinge", "label_smoothing": 0.1}, "label_smoothing=0.1 has no effe"),
    (DPOConfig, {"discopop_tau": 0.1}, "discopop_tau=0.1 has no effect"),
    (DPOConfig, {"f_alpha_divergence_coef": 0.7}, "f_alpha_divergence_coef has no effect without"),
    (
        DPOConfig,
        {"f_divergence_type": "forward_kl", "f_alpha_divergence_coef": 0.7},
        "f_alpha_divergence_coef has no effect without f_divergence_type='alpha_divergence'",
    ),
    (DPOConfig, {"loss_type": "sft", "ld_alpha": 0.3}, "ld_alpha has no effect on 'sft'"),
    (DPOConfig, {"ref_model_mixup_alpha": 0.3}, "ref_model_mixup_alpha has no effect without"),
    (KTOConfig, {"ref_model_sync_steps": 64}, "ref_model_sync_steps has no effect without"),
    (CPOConfig, {"loss_type": "ipo", "label_smoothing": 0.1}, "label_smoothing=0.1 has no effe"),
]


@pytest.mark.parametrize(("config", "options", "words"), UNUSED)
def test_an_option_that_trl_does_not_read_is_taken_and_said(config, options, words, tmp_path):
    args = config(str(tmp_path), report_to="none", **options)
    assert sum(words in text for text in args.differences) == 1
    for name, value in options.items():
        if name in ("beta", "label_smoothing", "discopop_tau"):
            assert getattr(args, name) == value
    kept = ("loss_type", "f_divergence_type")
    without = {name: value for name, value in options.items() if name in kept}
    plain = config(str(tmp_path), report_to="none", **without)
    assert not any("has no effect" in text for text in plain.differences)
    assert plain.objective.name == args.objective.name


def test_a_configuration_of_another_trainer_is_refused(tmp_path):
    other = made(CPOConfig, tmp_path)
    for args in (other, made(PreferenceConfig, tmp_path), made(trl.DPOConfig, tmp_path)):
        with pytest.raises(TypeError, match=r"DPOTrainer of prefopt.trl takes args=prefopt.trl."):
            trainer(DPOConfig, tmp_path, args=args)


SAID = [
    (DPOConfig, "prefopt: loss dpo (DPOConfig: loss_type=['sigmoid']), "),
    (KTOConfig, "prefopt: loss kto (KTOConfig: loss_type='kto'), "),
    (CPOConfig, "prefopt: loss cpo + sft (CPOConfig: loss_type='sigmoid', cpo_alpha=1.0), "),
    (ORPOConfig, "prefopt: loss orpo (ORPOConfig: beta=0.1), "),
]


@pytest.mark.parametrize(("config", "words"), SAID)
def test_a_trainer_says_which_loss_it_took_and_why(config, words, tmp_path, capsys):
    trainer(config, tmp_path)
    assert words in capsys.readouterr().err


def test_without_a_configuration_there_is_that_of_the_trainer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "store"))
    made = ORPOTrainer(
        tiny_model("llama"), train_dataset=tiny_rows(4), processing_class=tiny_tokenizer()
    )
    assert made.objective.name == "orpo"
    assert made.args.output_dir.endswith("-ORPO")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"label_smoothing": 0.1}, "label_smoothing makes 'sigmoid' conservative DPO"),
        ({"use_weighting": True}, "WPO's weights are at most 1"),
        ({"f_divergence_type": "forward_kl"}, "rewards are those of the divergence"),
        ({"pad_to_multiple_of": 8}, "pad_to_multiple_of has no effect: rows are not padded"),
    ],
)
def test_a_meaning_that_differs_is_said(options, words, tmp_path, capsys):
    trainer(DPOConfig, tmp_path, **options)
    assert f"prefopt.trl: {words}" in capsys.readouterr().err
    trainer(DPOConfig, tmp_path)
    assert "prefopt.trl: " not in capsys.readouterr().err


def test_keep_end_is_taken_where_nothing_is_cut_and_refused_elsewhere(tmp_path):
    whole = trainer(DPOConfig, tmp_path, truncation_mode="keep_end")
    longest = max(report.prompts.longest for report in whole.data_reports.values())
    words = r"'keep_end' would cut the beginning of what is longer than .*, and here the end"
    for max_length in (longest + 1, 4):
        with pytest.raises(ValueError, match=words):
            trainer(DPOConfig, tmp_path, truncation_mode="keep_end", max_length=max_length)
    stream = tiny_rows(8).to_iterable_dataset()
    with pytest.raises(ValueError, match="rows of a stream"):
        trainer(DPOConfig, tmp_path, rows=stream, truncation_mode="keep_end")


def test_kto_learns_from_pairs_too(tmp_path):
    both = trainer(KTOConfig, tmp_path, rows=tiny_rows(8))
    both.train()
    assert both.objective.name == "kto"
    assert steps(both)[0]["loss"] == pytest.approx(0.5, abs=1e-5)


@pytest.mark.filterwarnings("ignore:train data. every label is True")
@pytest.mark.parametrize("accumulation", [1, 2])
def test_kto_trains_a_single_row_whose_kl_estimate_is_0(accumulation, tmp_path, capsys):
    row = tiny_rows(1, "unpaired")
    options = {"gradient_accumulation_steps": accumulation, "learning_rate": 1e-2}
    alone = trainer(KTOConfig, tmp_path, rows=row, eval_dataset=row, **options)
    assert "KTO's KL estimate is 0" in capsys.readouterr().err
    alone.train()
    first, second = steps(alone)
    assert (first["kl"], second["kl"]) == (0, 0)
    assert first["loss"] == pytest.approx(0.5, abs=1e-6)  # sigmoid(0)
    assert second["loss"] < first["loss"]
    assert alone.evaluate()["eval_kl"] == 0


@pytest.mark.parametrize("loaded", ["by the script", "by name"])
def test_a_policy_in_float16_is_trained_in_float32_and_that_is_said(loaded, tmp_path, caplog):
    half = tiny_model("llama").half()
    half.save_pretrained(tmp_path / "half")
    same = type(half).from_pretrained(tmp_path / "half", dtype=torch.float32)
    options = {"learning_rate": 1e-2}
    wanted = trainer(DPOConfig, tmp_path, model=same, **options)
    assert "float16" not in caplog.text
    if loaded == "by name":
        options["model_init_kwargs"] = {"dtype": "float16"}
    else:
        half = type(half).from_pretrained(tmp_path / "half", dtype=torch.float16)
    given = half if loaded == "by the script" else str(tmp_path / "half")
    found = trainer(DPOConfig, tmp_path, model=given, **options)
    said = [record.getMessage() for record in caplog.records if record.name == "prefopt"]
    assert [text[:60] for text in said] == [
        "the model is in float16 and is trained in float32: in float1"
    ]
    for one in (wanted, found):
        one.train()
    assert [step["loss"] for step in steps(found)] == [step["loss"] for step in steps(wanted)]
    for name, weight in found.model.named_parameters():
        assert torch.equal(weight, wanted.model.get_parameter(name)), name


# What is read from a trainer ----------------------------------------------------------------------


def test_there_is_no_reference_model_where_log_probs_are_computed_once(tmp_path):
    assert trainer(DPOConfig, tmp_path).ref_model is None
    assert trainer(CPOConfig, tmp_path).ref_model is None


def test_an_adapter_needs_no_reference_model(tmp_path):
    lora = LoraConfig(target_modules=["q_proj"])
    assert trainer(DPOConfig, tmp_path, peft_config=lora, reference="live").ref_model is None


def test_a_reference_that_is_given_is_the_reference_model_while_its_owner_keeps_it(tmp_path):
    given = tiny_model("llama", seed=3)
    before = {name: weight.clone() for name, weight in given.named_parameters()}
    run = trainer(DPOConfig, tmp_path, ref_model=given)
    run.train()
    assert run.ref_model is given
    for name, weight in run.ref_model.named_parameters():
        torch.testing.assert_close(weight, before[name])
    del given, weight
    assert run.ref_model is None


@pytest.mark.parametrize("moving", [False, True])
def test_a_live_reference_can_be_looked_at(tmp_path, moving):
    options = {"sync_ref_model": True, "ref_model_sync_steps": 2} if moving else {}
    run = trainer(DPOConfig, tmp_path, reference="live", learning_rate=0.1, **options)
    start = {name: weight.detach().clone() for name, weight in run.model.named_parameters()}
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        before = run.ref_model(ids).logits
    run.train()
    assert run.ref_model is not run.model
    for name, weight in run.ref_model.named_parameters():
        assert not weight.requires_grad
        assert torch.equal(weight, start[name]) != moving, name
        assert not torch.equal(weight, run.model.get_parameter(name))
    with torch.no_grad():
        assert torch.equal(run.ref_model(ids).logits, before) != moving


def test_a_load_balancing_loss_is_told(tmp_path):
    moe = tiny_model("qwen3_moe", output_router_logits=True)
    assert trainer(DPOConfig, tmp_path, model=moe).aux_loss_enabled
    assert not trainer(DPOConfig, tmp_path).aux_loss_enabled


@pytest.mark.parametrize("config", OURS)
@pytest.mark.parametrize("adapter", [None, LoraConfig(target_modules=["q_proj"])])
def test_model_and_card_have_the_tags_of_trl(config, adapter, tmp_path):
    run = trainer(config, tmp_path, peft_config=adapter)
    tag = config.method.lower()
    assert {"trl", "prefopt", tag} <= set(run.model.model_tags)
    run.save_model(str(tmp_path / "saved"))
    card = (tmp_path / "saved" / "README.md").read_text()
    assert {"- trl", "- prefopt", f"- {tag}"} <= set(card.splitlines())


def test_prepared_rows_can_be_looked_at(tmp_path):
    run = trainer(DPOConfig, tmp_path, rows=tiny_rows(3), eval_dataset=tiny_rows(2, seed=1))
    row, tokenizer = tiny_rows(3)[0], tiny_tokenizer()
    prepared = run.train_dataset[0]
    assert prepared["prompt_ids"] == tokenizer(row["prompt"])["input_ids"]
    chosen, rejected = prepared["completion_ids"]
    assert tokenizer.decode(chosen[:-1]).split() == row["chosen"].split()
    assert tokenizer.decode(rejected[:-1]).split() == row["rejected"].split()
    assert len(run.eval_dataset) == 2
    (batch,) = next(iter(run.get_train_dataloader()))["batches"]
    assert len(batch.texts.examples) == 2


# Names --------------------------------------------------------------------------------------------


def test_other_names_are_those_of_trl():
    from prefopt.trl import ModelConfig, TrlParser, get_peft_config

    assert (ModelConfig, TrlParser) == (trl.ModelConfig, trl.TrlParser)
    assert get_peft_config is trl.get_peft_config
    with pytest.raises(ImportError, match="cannot import name 'NeverWas'"):
        from prefopt.trl import NeverWas  # noqa: F401


def test_trl_is_not_imported():
    said = "import sys, prefopt.trl; prefopt.trl.DPOTrainer; print('trl' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", said], capture_output=True, text=True, env=environment(), check=True
    )
    assert done.stdout == "False\n"


@pytest.mark.parametrize("config", OURS)
def test_a_command_line_can_be_made_of_each_configuration(config, tmp_path):
    parser = trl.TrlParser((trl.ScriptArguments, config, trl.ModelConfig))
    words = ["--dataset_name", "rows", "--output_dir", str(tmp_path), "--beta", "0.25"]
    words += ["--report_to", "none", "--learning_rate", "1e-4", "--no_gradient_checkpointing"]
    _, args, _ = parser.parse_args_and_config(words)
    assert (args.beta, args.learning_rate, args.gradient_checkpointing) == (0.25, 1e-4, False)
    assert isinstance(args, TrainingArguments)
    assert next(islice(args.objective.terms, 1)).hyperparameters
