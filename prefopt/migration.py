"""From TRL: what its arguments have become here, and what to use in place of those that are gone.

TRL's DPO, KTO, CPO, ORPO and BCO trainers have dropped, renamed and moved arguments since 0.7, and
transformers has too; scripts and YAML recipes still spell them out. Each is taken where it changes
nothing, or refused with what to use instead. ``tests/test_migration.py`` has the names by version.
"""

import difflib
import json
from collections.abc import Collection, Mapping
from dataclasses import fields
from functools import wraps
from typing import Any, NamedTuple, TypeVar


class Gone(NamedTuple):
    """An argument that is not taken.

    Attributes:
        advice: What to use instead; ``{value}`` stands for what was given.
        harmless: Values that change nothing, and are left out; None for all.
    """

    advice: str
    harmless: tuple[Any, ...] | None = (None,)


_ALL_LENGTH = "use max_length instead, the most tokens of prompt + completion"
_WEIGHTS = "BCO's matching of prompts (UDM) is not available; give rows a column `weight` instead"
_ONE_LIST = (
    "for several datasets use `datasets` instead, a list of entries with path, name, split, "
    "columns and weight (how often each row is used in an epoch)"
)
_WITH_TOKENIZER = (
    "set it on the tokenizer and save that with the model, or in Python give the tokenizer as "
    "processing_class, instead"
)
_ELSEWHERE = (
    "Hyper-parameters of a loss go into loss_kwargs and options of loading into model_init_kwargs "
    "of PreferenceConfig; model, tokenizer (processing_class), adapter (peft_config) and data go "
    "to PreferenceTrainer."
)
_PRECISION = "use bf16 or fp16 instead"
_LAUNCHER = "use the launcher's options (accelerate launch) instead"

# Fields of a configuration that are refused unless at a value that changes nothing.
REFUSED: dict[str, Gone] = {
    "truncation_mode": Gone(
        "completions are cut at their end; shorten prompts in the data or raise max_length instead",
        (None, "keep_start"),
    ),
    "pad_to_multiple_of": Gone("rows are not padded; leave it out instead", (None, "auto")),
    "use_liger_kernel": Gone(
        "the LM head is chunked here already, for every loss; leave it out instead", (None, False)
    ),
    "label_smoothing_factor": Gone("use label_smoothing instead", (0.0,)),
    "liger_kernel_config": Gone("Liger's kernels are not used; leave it out instead"),
    "include_for_metrics": Gone(
        "compute_metrics gets rewards and labels alone; leave it out instead", (None, [])
    ),
    "average_tokens_across_devices": Gone(
        "means are taken over the examples of all devices; leave it out instead", (None, True)
    ),
    "eval_do_concat_batches": Gone(
        "predictions come as one array in the order of the rows; leave it out instead",
        (None, True),
    ),
    "eval_use_gather_object": Gone(
        "rewards of all processes are gathered as they are; leave it out instead", (None, False)
    ),
    "eval_accumulation_steps": Gone(
        "evaluation keeps a few numbers of each row and no logits; leave it out instead"
    ),
    "label_names": Gone(
        "what is compared is read from the columns of the data; leave it out instead",
        (None, [], ["labels"]),
    ),
    "length_column_name": Gone(
        "rows are not grouped by length, and processes get rows of as many tokens by themselves; "
        "leave it out instead",
        (None, "length"),
    ),
}

# Fields that configurations of TRL have had, beside those of `TRL_FIELDS`.
OLD_TRL_FIELDS: dict[str, Gone] = {
    "max_prompt_length": Gone(
        "prompts are not cut, and a row whose prompt leaves no room is reported; " + _ALL_LENGTH
    ),
    "max_completion_length": Gone(_ALL_LENGTH),
    "max_target_length": Gone(_ALL_LENGTH),
    "rpo_alpha": Gone(
        "add the term to the loss instead: loss_type='dpo + {value}*sft' (or another loss in "
        "place of dpo)",
        (None, 0.0),
    ),
    "cpo_alpha": Gone(
        "name the loss and its likelihood term instead: loss_type='cpo + {value}*sft', or 'simpo + "
        "{value}*sft'; 'cpo' or 'simpo' alone where it is 0",
    ),
    "simpo_gamma": Gone(
        "use loss_type='simpo' with loss_kwargs={{'gamma': {value}}} instead; 'simpo + sft' has "
        "the likelihood term that TRL adds",
    ),
    "alpha": Gone(
        "use loss_type='alphapo' with loss_kwargs={{'alpha': {value}}} instead", (None, 0.0)
    ),
    "reference_free": Gone(
        "use a loss without reference instead: 'cpo' is 'dpo' without one, 'simpo' is that per "
        "token with a margin",
        (None, False),
    ),
    "force_use_ref_model": Gone("a ref_model is used wherever it is given", None),
    "ref_model_init_kwargs": Gone(
        "load the reference and give it as ref_model instead", (None, {})
    ),
    "model_adapter_name": Gone(
        "the active adapter is trained; call model.set_adapter({value!r}) instead"
    ),
    "ref_adapter_name": Gone(
        "save that adapter and name its folder instead: reference='adapter:<folder>'"
    ),
    "generate_during_eval": Gone(
        "generate from the saved model, or in a callback's on_evaluate, instead", (None, False)
    ),
    "is_encoder_decoder": Gone(
        "encoder-decoder models cannot be trained; use a causal language model instead",
        (None, False),
    ),
    "tools": Gone("use a column `tools` of the data instead"),
    "label_pad_token_id": Gone("labels are not padded", None),
    "padding_value": Gone("rows are not padded", None),
    "use_logits_to_keep": Gone("logits of prompts are never computed", None),
    "use_num_logits_to_keep": Gone("logits of prompts are never computed", None),
    "use_liger_loss": Gone("the LM head is chunked for every loss, as Liger does", None),
    "base_model_attribute_name": Gone("the part below the LM head is found automatically", None),
    "prompt_sample_size": Gone(_WEIGHTS, (None, 1024)),
    "min_density_ratio": Gone(_WEIGHTS, (None, 0.5)),
    "max_density_ratio": Gone(_WEIGHTS, (None, 10.0)),
}

# Arguments of TRL's trainers, beside those that `PreferenceTrainer` has or are fields.
OLD_TRAINER_ARGUMENTS: dict[str, Gone] = {
    "tokenizer": Gone("use processing_class instead"),
    "model_init": Gone("give the model itself, its id or its path instead, as model"),
    "preprocess_logits_for_metrics": Gone(
        "compute_metrics gets rewards, not logits; use log_token_metrics=True for entropy and "
        "mean logits instead"
    ),
    "optimizer_cls_and_kwargs": Gone(
        "use optimizers=(optimizer, scheduler) instead, or optim and optim_args of the "
        "configuration"
    ),
    "compute_loss_func": Gone("register a loss with prefopt.register_loss instead"),
    "embedding_func": Gone(_WEIGHTS),
    "embedding_tokenizer": Gone(_WEIGHTS),
}

# Options of TRL's scripts, of alignment-handbook's recipes and of others that grew from them.
OLD_OPTIONS: dict[str, Gone] = {
    "torch_dtype": Gone("use dtype instead (in Python model_init_kwargs={{'dtype': ...}})"),
    "model_dtype": Gone("use dtype instead"),
    "model_name": Gone("use model_name_or_path instead"),
    "base_model_revision": Gone("use model_revision instead"),
    "model_code_revision": Gone("use model_init_kwargs with code_revision instead", (None, "main")),
    "use_flash_attention_2": Gone(
        "use attn_implementation flash_attention_2 instead, or leave it out: attn_backend finds "
        "the fastest",
        (None, False),
    ),
    "use_lora": Gone("use use_peft instead", (None, False)),
    "tokenizer_name": Gone(_WITH_TOKENIZER),
    "tokenizer_name_or_path": Gone(_WITH_TOKENIZER),
    "chat_template": Gone(_WITH_TOKENIZER),
    "chat_template_path": Gone(_WITH_TOKENIZER),
    "eos_token": Gone(_WITH_TOKENIZER),
    "truncation_side": Gone(
        "completions are cut at their end; shorten prompts in the data instead", (None, "right")
    ),
    "auto_insert_empty_system_msg": Gone(
        "put system messages into the data instead, or into a column `system`", (None, False)
    ),
    "system_prompt": Gone("use a column `system` of the data instead"),
    "dataset_mixer": Gone(_ONE_LIST),
    "dataset_mixture": Gone(_ONE_LIST + "; id is path there, and config name"),
    "dataset_splits": Gone("use dataset_train_split and dataset_test_split instead; " + _ONE_LIST),
    "dataset_configs": Gone("use dataset_config instead; " + _ONE_LIST),
    "streaming": Gone("use dataset_streaming instead, with one dataset", (None, False)),
    "sanity_check": Gone("use dataset_train_split 'train[:1000]' instead", (None, False)),
    "preprocessing_num_workers": Gone("use dataset_num_proc={value} instead"),
    "text_column": Gone("name the columns prompt, chosen and rejected instead"),
    "dataset_text_field": Gone("name the columns prompt, chosen and rejected instead"),
    "dataset_kwargs": Gone("special tokens are those of the tokenizer; leave it out instead"),
    "max_seq_length": Gone(_ALL_LENGTH),
    "packing": Gone("nothing is padded here; leave it out instead", (None, False)),
    "gradient_checkpointing_use_reentrant": Gone(
        "use gradient_checkpointing_kwargs={{'use_reentrant': {value}}} instead"
    ),
    "ignore_bias_buffers": Gone("use ddp_broadcast_buffers=False instead", (None, False)),
    "hub_model_revision": Gone("use hub_revision instead", (None, "main")),
    "push_to_hub_revision": Gone("use hub_revision instead", (None, False)),
    "optimizer_type": Gone("use optim={value!r} instead"),
    "log_freq": Gone("use logging_steps={value} instead"),
    "log_with": Gone("use report_to={value!r} instead"),
    "not_converted": Gone(
        "it lists what `prefopt convert-config` found no counterpart for; decide on each, and "
        "remove the list instead",
    ),
    "wandb_entity": Gone("set the environment variable WANDB_ENTITY instead, as under `env`"),
    "wandb_project": Gone("set the environment variable WANDB_PROJECT instead, as under `env`"),
    "wandb_run_group": Gone("set the environment variable WANDB_RUN_GROUP instead, as under `env`"),
}

# Fields that `transformers.TrainingArguments` had in 4.31 or later and has no more.
OLD_TRANSFORMERS_FIELDS: dict[str, Gone] = {
    "evaluation_strategy": Gone("use eval_strategy={value!r} instead", (None, "no")),
    "warmup_ratio": Gone(
        "use warmup_steps={value} instead: below 1 it is a share of all steps", (None, 0.0)
    ),
    "no_cuda": Gone("use use_cpu={value} instead", (None, False)),
    "use_mps_device": Gone("the available device is used", None),
    "overwrite_output_dir": Gone("output_dir may exist", None),
    "logging_dir": Gone("set the environment variable TENSORBOARD_LOGGING_DIR instead"),
    "group_by_length": Gone("rows are not padded; leave it out instead", (None, False)),
    "save_safetensors": Gone("models are saved as safetensors; leave it out instead", (None, True)),
    "include_inputs_for_metrics": Gone(
        "compute_metrics gets rewards alone; leave it out instead", (None, False)
    ),
    "include_tokens_per_second": Gone("use include_num_input_tokens_seen instead", (None, False)),
    "per_gpu_train_batch_size": Gone("use per_device_train_batch_size={value} instead"),
    "per_gpu_eval_batch_size": Gone("use per_device_eval_batch_size={value} instead"),
    "push_to_hub_model_id": Gone("use hub_model_id={value!r} instead"),
    "push_to_hub_organization": Gone("use hub_model_id 'organisation/name' instead"),
    "push_to_hub_token": Gone("use hub_token instead"),
    "adafactor": Gone("use optim='adafactor' instead", (None, False)),
    "fp16_backend": Gone(_PRECISION, (None, "auto")),
    "half_precision_backend": Gone(_PRECISION, (None, "auto")),
    "fp16_opt_level": Gone(_PRECISION, (None, "O1")),
    "torchdynamo": Gone("use torch_compile_backend={value!r} instead"),
    "dispatch_batches": Gone("use accelerator_config instead"),
    "split_batches": Gone("use accelerator_config instead", (None, False)),
    "fsdp_min_num_params": Gone("use fsdp_config instead", (None, 0)),
    "fsdp_transformer_layer_cls_to_wrap": Gone("use fsdp_config instead"),
    "sharded_ddp": Gone("use fsdp or deepspeed instead", (None, "", False)),
    "tp_size": Gone("use fsdp or deepspeed instead", (None, 0, 1)),
    "ray_scope": Gone("use the options of your hyper-parameter search instead", (None, "last")),
    "past_index": Gone("leave it out instead", (None, -1)),
    "jit_mode_eval": Gone("leave it out instead", (None, False)),
    "use_ipex": Gone("leave it out instead", (None, False)),
    "use_legacy_prediction_loop": Gone("leave it out instead", (None, False)),
    "mp_parameters": Gone(_LAUNCHER, (None, "")),
    "tpu_num_cores": Gone(_LAUNCHER),
    "tpu_metrics_debug": Gone(_LAUNCHER, (None, False)),
    "xpu_backend": Gone("use ddp_backend={value!r} instead"),
}

# What a configuration or a YAML file may hold that no field is for.
OLD_FIELDS = OLD_TRL_FIELDS | OLD_OPTIONS | OLD_TRANSFORMERS_FIELDS

TRL_FIELDS: dict[str, str] = {
    "model_init_kwargs": "same meaning",
    "trust_remote_code": "same meaning",
    "disable_dropout": "same meaning",
    "dataset_num_proc": "same meaning",
    "max_length": "same meaning; rows whose prompt leaves no room are counted and reported",
    "loss_type": "same meaning; also a sum like 'dpo + 0.2*sft'; None: dpo on pairs, else kto",
    "loss_weights": "same meaning",
    "beta": "same meaning; None is the loss's own default",
    "label_smoothing": "same meaning, and it acts on 'sigmoid' too (cDPO), where TRL ignores it",
    "discopop_tau": "same meaning",
    "ld_alpha": "same meaning, for every loss on pairs that it fits; 1 is off",
    "f_divergence_type": "same meaning and constants, for every loss that uses only log-ratios",
    "f_alpha_divergence_coef": "same meaning and default (0.5)",
    "use_weighting": "WPO's weights, at most 1 as in the authors' code; TRL 1.16 has no limit",
    "desirable_weight": "same meaning",
    "undesirable_weight": "same meaning",
    "precompute_ref_log_probs": "True is reference='cached', which 'auto' does anyway",
    "precompute_ref_batch_size": "same meaning: examples per forward pass while precomputing",
    "pad_token": "same meaning",
    "sync_ref_model": "same meaning; also with an adapter (peft), where TRL refuses",
    "ref_model_mixup_alpha": "same meaning and default (0.6)",
    "ref_model_sync_steps": "same meaning and default (512)",
    "router_aux_loss_coef": "same meaning and default; a token of a shared prefix counts once",
    "padding_free": "accepted: rows are never padded",
    "activation_offloading": "same meaning: saved activations wait in CPU memory",
    "learning_rate": "same meaning and default (1e-6)",
    "logging_steps": "same meaning and default (10)",
    "gradient_checkpointing": "same meaning; off unless asked for (TRL: on)",
    "bf16": "same meaning; None: on where CUDA has it, off elsewhere",
    "lr_scheduler_kwargs": "same meaning",
    "torch_empty_cache_steps": "same meaning",
    "train_sampling_strategy": "'random' or 'sequential'; KTO is right in any order",
    **{
        name: f"refused: {REFUSED[name].advice}"
        for name in ("truncation_mode", "pad_to_multiple_of", "use_liger_kernel")
    },
}


# Where ``prefopt.trl`` has more to say of a field: its configurations have TRL's defaults.
DROP_IN_FIELDS: dict[str, str] = {
    "loss_type": "TRL's names with the meaning of their trainer: `sigmoid` is `dpo` of DPOConfig "
    "and `cpo` of CPOConfig; DPOConfig and KTOConfig take all losses of ours too",
    "beta": "same meaning and default (0.1) for every loss; in ORPOConfig the weight `lambda_`",
    "cpo_alpha": "same meaning and default (1): the weight of `sft` beside the loss",
    "simpo_gamma": "same meaning and default (0.5): `gamma` of `simpo` and `alphapo`",
    "alpha": "same meaning with `simpo` and `alphapo`; refused with others, where TRL overflows",
    "label_smoothing": "same meaning, and it acts on 'sigmoid' of DPOConfig too (cDPO), where TRL "
    "ignores it; a message says so",
    "truncation_mode": "'keep_end' is accepted if nothing is longer than max_length, and refused "
    "elsewhere: completions are cut at their end",
    "gradient_checkpointing": "same meaning and default (on); off is a quarter faster",
    "bf16": "same meaning and default (on unless fp16); off on a machine without a GPU, where TRL "
    "raises unless use_cpu is set",
    "train_sampling_strategy": "same meaning and defaults; 'group_by_length' is 'random'",
    "is_encoder_decoder": "accepted; such models cannot be trained",
    "precompute_ref_log_probs": "True is what happens anyway: the reference is computed once",
}


def refuse(given: Mapping[str, Any], gone: Mapping[str, Gone], what: str = "") -> None:
    """Refuse the arguments that are gone, all in one error, unless they change nothing.

    Args:
        given: Arguments by name.
        gone: Those that are not taken, by name; others are passed over.
        what: What the arguments are of, for the error.

    Raises:
        ValueError: With what to use instead of each.
    """
    problems = [
        f"{_shown(name, value)} is not supported: {_advice(gone[name], value)}"
        for name, value in given.items()
        if name in gone and not is_harmless(gone[name], value)
    ]
    if problems:
        raise ValueError(f"{what}: {'; '.join(problems)}" if what else "; ".join(problems))


def is_harmless(gone: Gone, value: Any) -> bool:
    """Whether an argument that is gone would change nothing."""
    return gone.harmless is None or value in gone.harmless


def known_only(
    given: Mapping[str, Any], known: Collection[str], gone: Mapping[str, Gone], what: str
) -> dict[str, Any]:
    """Return the arguments that are known, without those that are gone and change nothing.

    Raises:
        TypeError: If an argument never existed; it names those that are spelt alike.
        ValueError: If one is gone.
    """
    others = {name: value for name, value in given.items() if name not in known}
    refuse(others, gone, what)
    for name in others:
        if name not in gone:
            near = difflib.get_close_matches(name, known, n=3)
            hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
            raise TypeError(f"{what} has no argument {name!r}{hint or '.'} {_ELSEWHERE}")
    return {name: value for name, value in given.items() if name in known}


def check_trainer_arguments(given: Mapping[str, Any], own: Collection[str], config: type) -> None:
    """Refuse arguments that a trainer does not have, unless they change nothing.

    Args:
        given: The arguments.
        own: The names that it has.
        config: Its configuration, to whose fields most of TRL's arguments have moved.

    Raises:
        TypeError: If an argument never existed.
        ValueError: If it is one of those that TRL's trainers had.
    """
    moved = {
        item.name: Gone(
            f"give it to the configuration instead: {config.__name__}({item.name}={{value!r}})"
        )
        for item in fields(config)
    }
    known_only(given, own, OLD_FIELDS | moved | OLD_TRAINER_ARGUMENTS, "PreferenceTrainer")


_Class = TypeVar("_Class", bound=type)


def checks_arguments(cls: _Class) -> _Class:
    """Have a dataclass say of every argument that it lacks what to use instead.

    The ``__init__`` that ``dataclass`` wrote is wrapped: fields, signature, copies and pickles are
    what they were.
    """
    made = cls.__init__  # type: ignore[misc] # of the class itself
    known = [item.name for item in fields(cls) if item.init]

    @wraps(made)
    def checked(self: Any, *args: Any, **given: Any) -> None:
        made(self, *args, **known_only(given, known, OLD_FIELDS, cls.__name__))

    cls.__init__ = checked  # type: ignore[misc]
    return cls


def _shown(name: str, value: Any) -> str:
    """Return an argument as it was given, without values that would fill the screen."""
    return f"{name}={value!r}" if _is_short(value) else name


def _advice(gone: Gone, value: Any) -> str:
    return gone.advice.format(value=value if _is_short(value) else "...")


def _is_short(value: Any) -> bool:
    try:
        return len(json.dumps(value)) <= 40
    except (TypeError, ValueError):  # a tokenizer, a function
        return False
