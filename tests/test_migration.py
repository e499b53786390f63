"""Every argument that TRL's trainers had since 0.7 is taken, or refused with what to use instead.

The names were read from the wheels of 55 versions of TRL, 0.7.0 to 1.16.0: the fields of the
configurations and the arguments of the constructors of DPO, KTO, CPO, ORPO and BCO, with the
versions that had them; and from the wheels of transformers 4.31 to 5.17.
"""

import copy
import dataclasses
import inspect
import pickle
import re

import pytest
import transformers

from prefopt import PreferenceConfig, PreferenceTrainer
from prefopt.migration import (
    OLD_FIELDS,
    OLD_OPTIONS,
    OLD_TRAINER_ARGUMENTS,
    OLD_TRANSFORMERS_FIELDS,
    OLD_TRL_FIELDS,
    TRL_FIELDS,
    check_trainer_arguments,
)
from tests.models import tiny_model, tiny_rows, tiny_tokenizer


def names(text):
    """Return the words of a text."""
    return text.split()


# Fields of DPOConfig, KTOConfig, CPOConfig, ORPOConfig and BCOConfig in any version.
CONFIGURATIONS = names("""
    activation_offloading alpha base_model_attribute_name beta bf16 cpo_alpha dataset_num_proc
    desirable_weight disable_dropout discopop_tau f_alpha_divergence_coef f_divergence_type
    force_use_ref_model generate_during_eval gradient_checkpointing is_encoder_decoder
    label_pad_token_id label_smoothing ld_alpha learning_rate logging_steps loss_type loss_weights
    lr_scheduler_kwargs max_completion_length max_density_ratio max_length max_prompt_length
    max_target_length min_density_ratio model_adapter_name model_init_kwargs pad_to_multiple_of
    pad_token padding_free padding_value precompute_ref_batch_size precompute_ref_log_probs
    prompt_sample_size ref_adapter_name ref_model_init_kwargs ref_model_mixup_alpha
    ref_model_sync_steps reference_free router_aux_loss_coef rpo_alpha simpo_gamma sync_ref_model
    tools torch_empty_cache_steps train_sampling_strategy truncation_mode trust_remote_code
    undesirable_weight use_liger_kernel use_liger_loss use_logits_to_keep use_num_logits_to_keep
    use_weighting
""")

# Arguments of the five trainers in any version.
CONSTRUCTORS = names("""
    args beta callbacks compute_metrics data_collator dataset_num_proc disable_dropout
    embedding_func embedding_tokenizer eval_dataset force_use_ref_model generate_during_eval
    is_encoder_decoder label_pad_token_id label_smoothing loss_type max_length max_prompt_length
    max_target_length model model_adapter_name model_init model_init_kwargs
    optimizer_cls_and_kwargs optimizers padding_value peft_config precompute_ref_log_probs
    preprocess_logits_for_metrics processing_class quantization_config ref_adapter_name ref_model
    ref_model_init_kwargs reference_free tokenizer train_dataset truncation_mode
""")

# Fields of TrainingArguments that 5.23 has no more.
GONE_FROM_TRANSFORMERS = names("""
    adafactor dispatch_batches evaluation_strategy fp16_backend fp16_opt_level fsdp_min_num_params
    fsdp_transformer_layer_cls_to_wrap group_by_length half_precision_backend
    include_inputs_for_metrics include_tokens_per_second jit_mode_eval logging_dir mp_parameters
    no_cuda overwrite_output_dir past_index per_gpu_eval_batch_size per_gpu_train_batch_size
    push_to_hub_model_id push_to_hub_organization push_to_hub_token ray_scope save_safetensors
    sharded_ddp split_batches torchdynamo tp_size tpu_metrics_debug tpu_num_cores use_ipex
    use_legacy_prediction_loop use_mps_device warmup_ratio xpu_backend
""")

# What configurations of TRL had as a default, where it changes nothing here either.
OLD_DEFAULTS = {
    "alpha": 0.0,
    "base_model_attribute_name": "model",
    "force_use_ref_model": False,
    "generate_during_eval": False,
    "is_encoder_decoder": None,
    "label_pad_token_id": -100,
    "max_completion_length": None,
    "max_density_ratio": 10.0,
    "max_target_length": None,
    "min_density_ratio": 0.5,
    "model_adapter_name": None,
    "padding_free": False,
    "padding_value": 0,
    "prompt_sample_size": 1024,
    "ref_adapter_name": None,
    "ref_model_init_kwargs": None,
    "reference_free": False,
    "rpo_alpha": None,
    "tools": None,
    "use_liger_loss": False,
    "use_logits_to_keep": True,
    "use_num_logits_to_keep": False,
}

FIELDS = {item.name for item in dataclasses.fields(PreferenceConfig)}
ARGUMENTS = {*inspect.signature(PreferenceTrainer).parameters} - {"old"}


def make(**fields):
    return PreferenceConfig("out", report_to="none", use_cpu=True, **fields)


def message(call, **arguments):
    """Return the error of a call, or None where the arguments are taken."""
    try:
        call(**arguments)
    except ValueError as error:
        return str(error)
    return None


def test_each_table_holds_what_its_versions_had():
    assert {*CONFIGURATIONS} <= {*FIELDS, *OLD_TRL_FIELDS}
    assert {*CONSTRUCTORS} <= {*ARGUMENTS, *FIELDS, *OLD_TRL_FIELDS, *OLD_TRAINER_ARGUMENTS}
    assert {*GONE_FROM_TRANSFORMERS} == {*OLD_TRANSFORMERS_FIELDS}
    # What is a field is not refused as a thing of the past.
    inherited = {item.name for item in dataclasses.fields(transformers.TrainingArguments)}
    assert not FIELDS & ({*OLD_FIELDS} - inherited)
    assert {*TRL_FIELDS} <= FIELDS


@pytest.mark.parametrize("name", sorted({*OLD_FIELDS} - FIELDS))
def test_an_old_field_is_refused_with_what_to_use_instead_or_changes_nothing(name):
    said = message(make, **{name: "something"})
    if OLD_FIELDS[name].harmless is None:
        assert said is None
    else:
        assert said.startswith(f"PreferenceConfig: {name}='something' is not supported: ")
        assert "instead" in said


@pytest.mark.parametrize("name", sorted({*CONSTRUCTORS} - ARGUMENTS))
def test_an_old_argument_of_a_trainer_is_refused_with_what_to_use_instead(name):
    def check(value):
        check_trainer_arguments({name: value}, ARGUMENTS, PreferenceConfig)

    check(None)
    said = message(check, value=0.25)
    harmless = name in OLD_TRL_FIELDS and OLD_TRL_FIELDS[name].harmless is None
    assert said is None if harmless else "instead" in said
    if name in FIELDS:
        assert f"PreferenceConfig({name}=0.25)" in said


@pytest.mark.parametrize("name", sorted(OLD_DEFAULTS))
def test_a_default_of_trl_that_changes_nothing_is_taken(name):
    config = make(**{name: OLD_DEFAULTS[name]})
    assert (name in FIELDS) == hasattr(config, name)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("rpo_alpha", 0.5, "loss_type='dpo + 0.5*sft'"),
        ("cpo_alpha", 0.5, "loss_type='cpo + 0.5*sft'"),
        ("simpo_gamma", 0.7, "loss_type='simpo' with loss_kwargs={'gamma': 0.7}"),
        ("alpha", 0.2, "loss_type='alphapo' with loss_kwargs={'alpha': 0.2}"),
    ],
)
def test_what_is_advised_can_be_done(name, value, words):
    said = message(make, **{name: value})
    assert words in said
    found = re.findall(r"(loss_type|loss_kwargs)=('[^']*'|\{[^}]*\})", words)
    advised = make(**{field: eval(text) for field, text in found}).objective
    settings = [term.hyperparameters for term in advised.terms]
    assert value in [term.weight for term in advised.terms] or value in settings[-1].values()


def test_all_that_is_wrong_is_said_at_once():
    said = message(make, max_prompt_length=64, rpo_alpha=1.0, torch_dtype="auto")
    for name in ("max_prompt_length", "rpo_alpha", "torch_dtype"):
        assert f"{name}=" in said
    assert len(said.splitlines()) == 1


def test_an_argument_that_never_was_is_a_type_error_with_near_names():
    with pytest.raises(TypeError, match=r"PreferenceConfig has no argument 'betta'.*'beta'"):
        make(betta=0.1)
    with pytest.raises(TypeError, match=r"no argument 'gamma'\. Hyper-parameters .* loss_kwargs"):
        make(gamma=0.1)
    with pytest.raises(TypeError, match=r"PreferenceTrainer has no argument 'train_data'"):
        PreferenceTrainer("model", train_data=[])


def test_the_configuration_stays_a_dataclass():
    config = make(beta=0.2, rpo_alpha=None)
    assert pickle.loads(pickle.dumps(config)).beta == 0.2
    assert copy.deepcopy(config).beta == 0.2
    assert dataclasses.replace(config, beta=0.3).beta == 0.3
    assert next(iter(inspect.signature(PreferenceConfig).parameters)) == "output_dir"
    assert "rpo_alpha" not in config.to_dict()
    with pytest.raises(ValueError, match="rpo_alpha=1"):
        dataclasses.replace(config, rpo_alpha=1)


def test_a_trainer_takes_old_arguments_only_where_they_change_nothing(tmp_path):
    given = {"args": make(), "train_dataset": tiny_rows(4)}
    with pytest.raises(ValueError, match="tokenizer is not supported: use processing_class"):
        PreferenceTrainer(tiny_model("llama"), **given, tokenizer=tiny_tokenizer())
    config = PreferenceConfig(str(tmp_path), report_to="none", use_cpu=True)
    PreferenceTrainer(
        tiny_model("llama"),
        args=config,
        train_dataset=tiny_rows(4),
        processing_class=tiny_tokenizer(),
        model_init=None,
        label_pad_token_id=-100,
    )


def test_other_arguments_of_training_are_refused_with_what_to_do(tmp_path):
    args = transformers.TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    with pytest.raises(TypeError, match="got TrainingArguments; PreferenceConfig takes the fields"):
        PreferenceTrainer(tiny_model("llama"), args=args, train_dataset=tiny_rows(4))


def test_options_of_recipes_are_options_here_or_have_advice():
    train = pytest.importorskip("prefopt.cli.train")
    options = {name for action in train.make_parser()._actions for name in action.option_strings}
    assert not {f"--{name}" for name in OLD_OPTIONS} & options
    # Of TRL's ModelConfig and ScriptArguments, and of alignment-handbook's recipes.
    recipes = names("""
        attn_implementation auto_insert_empty_system_msg base_model_revision bnb_4bit_quant_storage
        bnb_4bit_quant_type chat_template dataset_config dataset_configs dataset_kwargs
        dataset_mixer dataset_mixture dataset_name dataset_num_proc dataset_splits
        dataset_streaming dataset_test_split dataset_train_split do_eval dtype eos_token
        gradient_checkpointing_kwargs gradient_checkpointing_use_reentrant hub_model_id
        hub_model_revision hub_strategy ignore_bias_buffers load_in_4bit load_in_8bit log_level
        lora_alpha lora_dropout lora_modules_to_save lora_r lora_target_modules
        lora_target_parameters lora_task_type lr_scheduler_type max_seq_length
        model_code_revision model_name_or_path model_revision packing
        preprocessing_num_workers run_name sanity_check save_total_limit streaming system_prompt
        text_column tokenizer_name_or_path torch_dtype truncation_side trust_remote_code
        use_bnb_nested_quant use_dora use_flash_attention_2 use_peft use_rslora warmup_ratio
    """)
    assert {f"--{name}" for name in recipes} <= options | {f"--{name}" for name in OLD_FIELDS}
