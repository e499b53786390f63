"""LLaMA-Factory's YAML: stages ``dpo`` and ``kto``, full, LoRA and QLoRA.

Read from its ``hparams`` and trainers as of August 2026 (commit ff6d4d1).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefopt.cli.foreign.conversion import (
    Conversion,
    Key,
    cannot,
    names,
    nothing,
    number,
    optimizer,
    put_attention,
    same,
    scheduler,
    together,
    training_fields,
    whole,
    words,
)
from prefopt.cli.foreign.llama_factory_data import DATA_KEYS, put_data
from prefopt.cli.foreign.trainer_keys import TRAINER

PROGRAM = "LLaMA-Factory"
# Keys that a file of another program does not have.
MARKS = frozenset(
    {"stage", "finetuning_type", "pref_loss", "pref_beta", "pref_ftx", "cutoff_len", "lora_rank"}
    | {"lora_target", "dataset_dir", "quantization_bit", "kto_chosen_weight", "flash_attn"}
)
OURS = frozenset({"loss_type", "beta", "dataset_name", "datasets", "use_peft", "lora_r"})

_LOSSES = {
    "sigmoid": "dpo",
    "hinge": "hinge",
    "ipo": "ipo",
    "kto_pair": "kto",
    "orpo": "orpo",
    "simpo": "simpo",
}
_WITHOUT_REFERENCE = ("orpo", "simpo")
_MEANS = ("ipo", "orpo", "simpo")  # of log-probs over tokens
_KERNELS = "kernels, which compute the same"
_SPECIAL_OPTIMISER = "use optim instead, with one of transformers' optimisers"
_TOKENS = "add tokens to the tokenizer and the model, save both, and name their folder instead"
_ELSEWHERE = "is of other stages"
_GENERATION = "is of generation"
_MULTIMODAL = "is of images, audio and video"

_OFF_UNLESS = words(
    "use_galore use_apollo use_badam use_adam_mini use_muon use_dft_loss use_asft_loss "
    "use_eaft_loss use_mca use_megatron_bridge use_hyper_parallel use_kt"
)
_OPTIONS_OF_THOSE = words(
    "galore_target galore_rank galore_update_interval galore_scale galore_proj_type "
    "galore_layerwise apollo_target apollo_rank apollo_update_interval apollo_scale apollo_proj "
    "apollo_proj_type apollo_scale_type apollo_layerwise apollo_scale_front badam_mode "
    "badam_start_block badam_switch_mode badam_switch_interval badam_update_ratio badam_mask_mode "
    "badam_verbose asft_alpha eaft_alpha hyper_parallel_args hyper_parallel_cp_size "
    "kt_cpu_activation kt_weight_path kt_non_expert_weight_path kt_expert_checkpoint_path "
    "kt_use_lora_experts kt_lora_expert_num kt_lora_expert_intermediate_size kt_config "
    "freeze_trainable_layers freeze_trainable_modules freeze_extra_modules oft_rank oft_block_size "
    "oft_target module_dropout pissa_iter pissa_convert loraplus_lr_embedding "
    "ref_model_quantization_bit swanlab_project swanlab_workspace swanlab_run_name swanlab_mode "
    "swanlab_api_key swanlab_logdir swanlab_lark_webhook_url swanlab_lark_secret "
    "fp8_backend fp8_enable_fsdp_float8_all_gather profiler_output_dir profiler_wait_steps "
    "profiler_warmup_steps profiler_active_steps profiler_repeat profiler_record_shapes "
    "profiler_profile_memory profiler_with_stack profile_modules"
)
_OTHER_STAGES = words(
    "ppo_buffer_size ppo_epochs ppo_score_norm ppo_target ppo_whiten_rewards reward_model "
    "reward_model_adapters reward_model_quantization_bit reward_model_type compute_accuracy"
)
_OF_GENERATION = words(
    "infer_backend infer_dtype offload_folder use_kv_cache use_v1_kernels vllm_maxlen "
    "vllm_gpu_util vllm_enforce_eager vllm_max_lora_rank vllm_config sglang_maxlen "
    "sglang_mem_fraction sglang_tp_size sglang_config sglang_lora_backend do_sample temperature "
    "top_p top_k num_beams max_length max_new_tokens repetition_penalty length_penalty "
    "skip_special_tokens generation_max_length generation_num_beams generation_config "
    "predict_with_generate sortish_sampler export_dir export_size export_device "
    "export_quantization_bit export_quantization_dataset export_quantization_nsamples "
    "export_quantization_maxlen export_legacy_format export_hub_model_id"
)
_OF_IMAGES = words(
    "freeze_vision_tower freeze_multi_modal_projector freeze_language_model image_max_pixels "
    "image_min_pixels image_do_pan_and_scan crop_to_patches video_max_pixels video_min_pixels "
    "video_fps video_maxlen use_audio_in_video audio_sampling_rate"
)

KEYS: dict[str, Key] = {
    **TRAINER,
    "stage": together("loss_type"),
    "pref_loss": together("loss_type"),
    "pref_beta": together("beta", "lambda_ of loss_kwargs where the loss is orpo", default=0.1),
    "pref_ftx": together("loss_type", "a term sft, per sequence: `dpo + 0.1*sft`", default=0.0),
    "pref_bco_weight": together("loss_type", "a term bco_pair: (dpo + w*bco_pair) / (1 + w)"),
    "simpo_gamma": together("loss_kwargs", "gamma of simpo", default=0.5),
    "dpo_label_smoothing": together("label_smoothing", "of dpo alone", default=0.0),
    "ld_alpha": together("ld_alpha", "here for the reference too, there for the policy alone"),
    "kto_chosen_weight": together("desirable_weight", default=1.0),
    "kto_rejected_weight": together("undesirable_weight", default=1.0),
    "finetuning_type": together("use_peft", default="lora"),
    "lora_rank": together("lora_r", default=8),
    "lora_alpha": together("lora_alpha", default="2 * lora_rank"),
    "lora_dropout": together("lora_dropout", default=0.0),
    "lora_target": together("lora_target_modules", "all is all-linear", default="all"),
    "additional_target": together("lora_modules_to_save"),
    "use_rslora": together("use_rslora"),
    "use_dora": together("use_dora"),
    "quantization_bit": together("load_in_4bit, load_in_8bit"),
    "quantization_type": together("bnb_4bit_quant_type", default="nf4"),
    "double_quantization": together("use_bnb_nested_quant", default=True),
    "quantization_method": together("load_in_4bit, load_in_8bit", "bnb alone", default="bnb"),
    "quantization_device_map": cannot("models are loaded whole on a device"),
    "ref_model": together("", "the model itself alone; in Python PreferenceTrainer(ref_model=...)"),
    "ref_model_adapters": together("reference", "adapter:<path>"),
    "bf16": together("bf16, dtype", default=False),
    "fp16": together("fp16, dtype", default=False),
    "pure_bf16": together("dtype", "bfloat16, without mixed precision"),
    "flash_attn": together("attn_implementation", "eager for disabled; else the fastest is used"),
    "disable_gradient_checkpointing": together("gradient_checkpointing", default=False),
    "gradient_checkpointing": together("gradient_checkpointing"),
    "use_swanlab": nothing("logging; `report_to: swanlab` does it"),
    "model_name_or_path": same("model_name_or_path"),
    "model_revision": same("model_revision"),
    "trust_remote_code": same("trust_remote_code"),
    "moe_aux_loss_coef": same("router_aux_loss_coef"),
    "learning_rate": same("learning_rate", default=5e-5),
    "num_train_epochs": same("num_train_epochs", default=3.0),
    "per_device_train_batch_size": same("per_device_train_batch_size", default=8),
    "lr_scheduler_type": same("lr_scheduler_type", read=scheduler, default="linear"),
    "logging_steps": same("logging_steps", default=500),
    "optim": same("optim", read=optimizer),
    "disable_shuffling": same(
        "train_sampling_strategy", read=lambda value: "sequential" if value else "random"
    ),
    "do_train": cannot("prefopt train trains", True),
    "train_on_prompt": cannot("prompts are not trained on", False),
    "mask_history": cannot("the last answer alone is trained on", False),
    "adapter_name_or_path": cannot(
        "name the adapter's folder as model instead: it is trained further, and the reference is "
        "what it was; there the reference is the base model"
    ),
    "adapter_folder": cannot("name the adapter's folder as model instead"),
    "create_new_adapter": cannot("merge the adapter into its base model first", False),
    "loraplus_lr_ratio": cannot("use one learning_rate for both matrices of LoRA instead"),
    "pissa_init": cannot("in Python: LoraConfig(init_lora_weights='pissa')", False),
    "use_llama_pro": cannot("use LoRA instead", False),
    "mixture_of_depths": cannot("the model is trained as it is saved"),
    "shift_attn": cannot("attention is that of the model", False),
    "rope_scaling": cannot("use model_init_kwargs with rope_parameters instead"),
    "upcast_layernorm": cannot("use dtype float32 instead, for all weights", False),
    "train_from_scratch": cannot("save a model with random weights, and name its folder", False),
    "resize_vocab": cannot(_TOKENS, False),
    "add_tokens": cannot(_TOKENS),
    "add_special_tokens": cannot(_TOKENS),
    "new_special_tokens_config": cannot(_TOKENS),
    "split_special_tokens": cannot("special tokens stay whole", False),
    "early_stopping_steps": cannot(
        "in Python: PreferenceTrainer(callbacks=[transformers.EarlyStoppingCallback(...)])"
    ),
    "fp8": cannot("use bf16 instead", False),
    "enable_torch_profiler": cannot("leave it out", False),
    "ray_num_workers": cannot("start it with torchrun or accelerate launch instead", 1),
    **dict.fromkeys(
        ("ray_init_kwargs", "master_addr", "master_port", "ray_storage_path", "ray_run_name"),
        nothing("is of the launch"),
    ),
    **{name: cannot(_SPECIAL_OPTIMISER, False) for name in _OFF_UNLESS},
    **{name: nothing("an option of what is off") for name in _OPTIONS_OF_THOSE},
    **dict.fromkeys(_OTHER_STAGES, nothing(_ELSEWHERE)),
    **dict.fromkeys(_OF_GENERATION, nothing(_GENERATION)),
    **dict.fromkeys(_OF_IMAGES, nothing(_MULTIMODAL)),
    **dict.fromkeys(
        ("enable_liger_kernel", "use_unsloth", "use_unsloth_gc", "upcast_lmhead_output"),
        nothing(_KERNELS),
    ),
    **dict.fromkeys(
        words(
            "plot_loss print_param_status include_effective_tokens_per_second cache_dir "
            "use_fast_tokenizer low_cpu_mem_usage use_reentrant_gc init_special_tokens "
            "hf_hub_token ms_hub_token om_hub_token"
        ),
        nothing("nothing that is trained depends on it"),
    ),
    **DATA_KEYS,
}


def convert(values: Mapping[str, Any], folder: Path, loss: str | None = None) -> Conversion:
    """Return the conversion of a file.

    Args:
        values: What it says.
        folder: Where it is, for paths that it names.
        loss: A loss of the command line; the file says its own.
    """
    conversion = Conversion.of(PROGRAM, values)
    if "model_name_or_path" in conversion.given:
        conversion.put(
            "model_name_or_path", conversion.given["model_name_or_path"], "model_name_or_path"
        )
    stage = conversion.given.get("stage", "sft")
    if stage in ("dpo", "kto"):
        put_data(conversion, stage, folder)
        _put_loss(conversion, stage)
    else:
        conversion.refuse("stage", "prefopt trains the stages dpo and kto")
    _put_adapter(conversion)
    _put_reference(conversion)
    _put_precision(conversion)
    put_attention(conversion, "flash_attn")
    _put_checkpointing(conversion)
    conversion.apply(KEYS, training_fields())
    return conversion


def _put_loss(conversion: Conversion, stage: str) -> None:
    """Name the loss that the keys imply, and its hyper-parameters."""
    given = conversion.given
    name = str(given.get("pref_loss", "sigmoid")) if stage == "dpo" else "kto"
    if stage == "kto" and "pref_loss" in given:
        conversion.leave("pref_loss", "the stage kto has one loss")
    if stage == "dpo" and name not in _LOSSES:
        conversion.refuse("pref_loss", f"there are {', '.join(_LOSSES)}")
        return
    ours = _LOSSES[name] if stage == "dpo" else "kto"
    options: dict[str, Any] = {}
    _put_terms(conversion, ours, options)
    beta = number(given.get("pref_beta", 0.1), "pref_beta")
    if ours == "orpo":
        options["lambda_"] = beta
    else:
        conversion.put("beta", beta, "pref_beta")
    if ours == "simpo":
        options["gamma"] = number(given.get("simpo_gamma", 0.5), "simpo_gamma")
    if options:
        keys = [
            key for key, loss in (("pref_beta", "orpo"), ("simpo_gamma", "simpo")) if loss == ours
        ]
        conversion.put("loss_kwargs", options, *keys, note=_note_of(ours))
    if stage == "kto":
        for key, option in (
            ("kto_chosen_weight", "desirable_weight"),
            ("kto_rejected_weight", "undesirable_weight"),
        ):
            conversion.put(option, number(given.get(key, 1.0), key), key)
    elif ours == "dpo" and number(given.get("dpo_label_smoothing", 0.0), "dpo_label_smoothing"):
        conversion.put("label_smoothing", given["dpo_label_smoothing"], "dpo_label_smoothing")
    elif given.get("dpo_label_smoothing"):
        conversion.refuse("dpo_label_smoothing", "is of pref_loss sigmoid alone, there too")
    _put_ld_alpha(conversion, ours, stage)


def _put_terms(conversion: Conversion, ours: str, options: dict[str, Any]) -> None:
    """Set the loss: alone, with a likelihood term, or with BCO's."""
    given = conversion.given
    likelihood = number(given.get("pref_ftx", 0.0), "pref_ftx")
    bco = number(given.get("pref_bco_weight", 0.0), "pref_bco_weight")
    keys = ["stage", "pref_loss"] if ours != "kto" or given["stage"] == "dpo" else ["stage"]
    note, other = "", False
    if given.get("pref_loss") == "kto_pair":
        note, other = "as TRL 0.8 had it; the KL estimate is of mismatched completions", True
    weights = {ours: 1.0}
    if bco and ours not in _WITHOUT_REFERENCE and given["stage"] == "dpo":
        weights = {ours: 1 / (1 + bco), "bco_pair": bco / (1 + bco)}
        keys.append("pref_bco_weight")
    if likelihood > 1e-6:
        weights["sft"] = likelihood
        keys.append("pref_ftx")
        options["sft"] = {"normalize": "sequence"}
        if given["stage"] == "kto":
            other = True
            note = (
                "sft is a mean over desirable completions; there it grows with the share of "
                "undesirable ones in a batch"
            )
    if "bco_pair" in weights:
        conversion.put("loss_type", list(weights), *keys)
        conversion.put("loss_weights", list(weights.values()), "pref_bco_weight")
        return
    terms = [name if weight == 1 else f"{weight:.12g}*{name}" for name, weight in weights.items()]
    conversion.put("loss_type", " + ".join(terms), *keys, note=note, differs=other)


def _note_of(ours: str) -> str:
    return {
        "orpo": "pref_beta is ORPO's lambda",
        "simpo": "simpo_gamma is the target margin: beta * difference - gamma",
    }.get(ours, "sft is a mean over completions, each of the mean over its tokens")


def _put_ld_alpha(conversion: Conversion, ours: str, stage: str) -> None:
    value = conversion.given.get("ld_alpha")
    if value is None or stage == "kto":
        return
    if ours in _MEANS:
        conversion.refuse("ld_alpha", f"is of sums of log-probs; {ours} takes means")
        return
    note = "here for the reference too, there for the policy alone"
    conversion.put("ld_alpha", number(value, "ld_alpha"), "ld_alpha", note=note, differs=True)


def _put_adapter(conversion: Conversion) -> None:
    """Convert full fine-tuning, LoRA and QLoRA."""
    given = conversion.given
    kind = given.get("finetuning_type", "lora")
    if kind not in ("lora", "full"):
        conversion.refuse("finetuning_type", "use lora or full instead; in Python any peft_config")
        return
    conversion.put("use_peft", kind == "lora", "finetuning_type")
    if kind == "full":
        if given.get("quantization_bit"):
            conversion.refuse("quantization_bit", "goes with finetuning_type lora, there too")
        return
    rank = whole(given.get("lora_rank", 8), "lora_rank")
    conversion.put("lora_r", rank, "lora_rank")
    conversion.put("lora_alpha", given.get("lora_alpha") or 2 * rank, "lora_alpha")
    conversion.put("lora_dropout", given.get("lora_dropout", 0.0), "lora_dropout")
    targets = names(given.get("lora_target", "all"))
    conversion.put(
        "lora_target_modules", ["all-linear"] if targets == ["all"] else targets, "lora_target"
    )
    if given.get("additional_target"):
        conversion.put(
            "lora_modules_to_save", names(given["additional_target"]), "additional_target"
        )
    for key in ("use_rslora", "use_dora"):
        if given.get(key):
            conversion.put(key, True, key)
    if given.get("quantization_bit"):
        _put_quantisation(conversion)


def _put_quantisation(conversion: Conversion) -> None:
    given = conversion.given
    bits = given["quantization_bit"]
    if str(given.get("quantization_method", "bnb")).lower() not in ("bnb", "bitsandbytes"):
        conversion.refuse(
            "quantization_method",
            "use model_init_kwargs with quantization_config, such as {quant_method: hqq, ...}",
        )
    elif bits not in (4, 8):
        conversion.refuse("quantization_bit", "bitsandbytes has 4 and 8")
    else:
        conversion.put(f"load_in_{bits}bit", True, "quantization_bit", "quantization_method")
        if bits == 4:
            conversion.put(
                "bnb_4bit_quant_type", given.get("quantization_type", "nf4"), "quantization_type"
            )
            conversion.put(
                "use_bnb_nested_quant",
                bool(given.get("double_quantization", True)),
                "double_quantization",
            )


def _put_reference(conversion: Conversion) -> None:
    """Convert the reference, which is the model itself or an adapter on it."""
    given = conversion.given
    needed = given.get("stage") == "kto" or given.get("pref_loss") not in _WITHOUT_REFERENCE
    own = given.get("ref_model", given.get("model_name_or_path")) == given.get("model_name_or_path")
    if not needed or own:
        conversion.leave("ref_model", "it is what the reference is anyway" if needed else "no use")
    else:
        conversion.refuse(
            "ref_model",
            "the reference is the model as it is when training starts; another is given in Python: "
            "PreferenceTrainer(..., ref_model=PATH)",
        )
    adapter = given.get("ref_model_adapters")
    if adapter and needed and own:
        conversion.put("reference", f"adapter:{adapter}", "ref_model_adapters")


def _put_precision(conversion: Conversion) -> None:
    """Convert what is computed in which precision; weights that are trained are in float32."""
    given = conversion.given
    half = "bfloat16" if given.get("bf16") else "float16" if given.get("fp16") else None
    if given.get("pure_bf16"):
        conversion.put("dtype", "bfloat16", "pure_bf16", note="without mixed precision")
        conversion.put("bf16", False, "pure_bf16")
        return
    conversion.put("bf16", bool(given.get("bf16", False)), "bf16")
    if given.get("fp16"):
        conversion.put("fp16", True, "fp16")
    keys = [key for key in ("bf16", "fp16") if given.get(key)]
    if given.get("finetuning_type", "lora") == "full":
        conversion.put("dtype", "float32", *keys, note="all weights are trained, in float32")
    elif half:
        conversion.put("dtype", half, *keys, note="of the base model; the adapter is in float32")
    elif given.get("quantization_bit"):
        note = "there what the checkpoint says; give bf16: true where it is in bfloat16"
        conversion.put("dtype", "float32", note=note, differs=True)
    else:
        conversion.put("dtype", "auto", note="of the base model; the adapter is in float32")


def _put_checkpointing(conversion: Conversion) -> None:
    """Gradient checkpointing is on there unless it is switched off."""
    off = bool(conversion.given.get("disable_gradient_checkpointing", False))
    keys = ("disable_gradient_checkpointing", "gradient_checkpointing")
    conversion.put("gradient_checkpointing", not off, *keys)
