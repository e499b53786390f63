"""The keys of Axolotl's YAML, and what becomes of each."""

from prefopt.cli.foreign.axolotl_data import DATA_KEYS
from prefopt.cli.foreign.conversion import (
    ATTENTION,
    Key,
    cannot,
    differs,
    nothing,
    optimizer,
    same,
    together,
    words,
)

_ONE_RATE = "one learning rate holds for all weights"
_ONLY_SFT = "Axolotl does not use it with rl"
TOKENIZER = "set it on the tokenizer, save that with the model, and name their folder instead"
_LAUNCH = "use deepspeed, or accelerate launch with a configuration of FSDP"
WARMUP = "below 1 it is a share of all steps, rounded up where Axolotl rounds down"

_IGNORED_WITH_RL = words(
    "sample_packing sample_packing_group_size sample_packing_bin_size "
    "sample_packing_sequentially sample_packing_mp_start_method eval_sample_packing "
    "curriculum_sampling multipack_real_batches batch_flattening train_on_inputs "
    "group_by_length early_stopping_patience load_best_model_at_end metric_for_best_model "
    "greater_is_better loss_watchdog_threshold loss_watchdog_patience neftune_noise_alpha "
    "eval_table_size eval_max_new_tokens do_causal_lm_eval eval_causal_lm_metrics do_bench_eval "
    "bench_dataset bench_split use_pose pose_split_on_token_ids pose_max_context_len "
    "pose_num_chunks generate_samples num_generation_samples generation_max_new_tokens "
    "generation_temperature generation_top_p generation_top_k generation_prompt_ratio "
    "generation_do_sample eval_sequence_len max_prompt_len chunked_cross_entropy "
    "chunked_cross_entropy_num_chunks use_eaft eaft_alpha eaft_k vllm ebft "
    "center_rewards_coefficient num_labels auto_find_batch_size"
)
_NO_EFFECT = words(
    "model_type type_of_model tokenizer_type tokenizer_use_fast tokenizer_legacy processor_type "
    "processor_kwargs tokenizer_save_jinja_files is_falcon_derived_model is_llama_derived_model "
    "is_mistral_derived_model is_qwen_derived_model strict experimental_skip_move_to_device "
    "low_cpu_mem_usage device device_map world_size local_rank ddp max_memory gpu_memory_limit "
    "dataset_keep_in_memory skip_prepare_dataset num_dataset_shards_to_save push_dataset_to_hub "
    "hf_use_auth_token remove_unused_columns pad_to_sequence_len pad_to_multiple_of "
    "save_safetensors save_first_step include_tokens_per_second include_tkps profiler_steps "
    "profiler_steps_start gc_steps gc_collect_steps axolotl_config_path is_preprocess "
    "lora_on_cpu merge_lora merge_method qlora_sharded_model_loading torchdistx_path "
    "wandb_watch wandb_log_model wandb_run_id mlflow_tracking_uri mlflow_experiment_name "
    "mlflow_run_name hf_mlflow_log_artifacts comet_api_key comet_workspace comet_project_name "
    "comet_experiment_key comet_mode comet_online comet_experiment_config trackio_project_name "
    "trackio_run_name trackio_space_id gradio_title gradio_share gradio_server_name "
    "gradio_server_port gradio_max_new_tokens gradio_temperature use_otel_metrics "
    "otel_metrics_host otel_metrics_port dataloader_pin_memory debug total_num_tokens "
    "sample_packing_eff_est"
)
_KERNELS = words(
    "use_kernels flash_attn_cross_entropy flash_attn_fuse_mlp flash_attn_rms_norm "
    "fused_attn_kernel lora_mlp_kernel lora_qkv_kernel lora_o_kernel lora_embedding_kernel "
    "tiled_mlp tiled_mlp_num_shards tiled_mlp_use_original_mlp dpo_use_liger_kernel "
    "dpo_padding_free dpo_use_logits_to_keep liger_rope liger_rms_norm liger_layer_norm "
    "liger_glu_activation liger_fused_linear_cross_entropy liger_cross_entropy "
    "cut_cross_entropy flex_attn_compile_kwargs gemma4_hybrid_attn_impl large_head_attention "
    "flash_attn_d512 sdpa_varlen use_unsloth unsloth_lora_mlp unsloth_lora_qkv unsloth_lora_o "
    "unsloth_cross_entropy_loss"
)
_ATTENTION = words(
    "flash_attention sdp_attention xformers_attention flex_attention sage_attention flash_optimum"
)
_OFF_OR_REFUSED: dict[str, str] = {
    **dict.fromkeys(("embedding_lr", "embedding_lr_scale", "lr_groups"), _ONE_RATE),
    **dict.fromkeys(("loraplus_lr_ratio",), _ONE_RATE),
    **dict.fromkeys(
        ("cosine_constant_lr_ratio", "lr_quadratic_warmup", "jagged_restart_steps"),
        "use lr_scheduler_type with lr_scheduler_kwargs instead",
    ),
    **dict.fromkeys(("adam_beta3", "adam_epsilon2", "dion_lr"), "is of optimisers not found here"),
    **dict.fromkeys(("relora", "lisa_n_layers", "lisa_step_interval"), "use LoRA instead"),
    **dict.fromkeys(
        ("fsdp", "fsdp_config", "fsdp_version", "dp_shard_size", "tensor_parallel_size"), _LAUNCH
    ),
    **dict.fromkeys(("context_parallel_size", "sequence_parallel_degree"), _LAUNCH),
    **dict.fromkeys(("dp_replicate_size", "use_ray", "layer_offloading", "deepcompile"), _LAUNCH),
    **dict.fromkeys(("tokens", "added_tokens_overrides", "chat_template_jinja"), TOKENIZER),
    **dict.fromkeys(("tokenizer_use_mistral_common", "eot_tokens"), TOKENIZER),
    **dict.fromkeys(("resize_token_embeddings_to_32x", "shrink_embeddings"), TOKENIZER),
    **dict.fromkeys(("fix_untrained_tokens", "reinit_weights"), "the model is trained as saved"),
    "default_system_message": "put it into a column `system` of the data",
    "chat_template_kwargs": "give rows a column chat_template_kwargs",
    "unfrozen_parameters": "in Python: set requires_grad of the model's parameters",
    "trainer_cls": "there is one trainer",
    "qat": "use load_in_4bit or load_in_8bit instead",
    "quantization": "use model_init_kwargs with quantization_config instead",
    "gptq": "use model_init_kwargs with quantization_config instead",
    "model_quantization_config": "use model_init_kwargs with quantization_config instead",
    "bnb_config_kwargs": "use bnb_4bit_quant_type, use_bnb_nested_quant, bnb_4bit_quant_storage",
    "fp8": "use bf16 instead",
    "float16": "use fp16 instead",
    "fp32_norms": "use dtype float32 instead, for all weights",
    "lora_model_dir": "name the adapter's folder as model instead: it is trained further",
    "peft_init_lora_weights": "in Python: peft_config=LoraConfig(init_lora_weights=...)",
    "peft": "in Python: peft_config=LoraConfig(loftq_config=...)",
    "peft_layers_to_transform": "in Python: peft_config=LoraConfig(layers_to_transform=...)",
    "peft_layers_pattern": "in Python: peft_config=LoraConfig(layers_pattern=...)",
    "peft_layer_replication": "layers that share weights cannot be merged; use LoRA without it",
    "peft_trainable_token_indices": "in Python: LoraConfig(trainable_token_indices=...)",
    "lora_rank_pattern": "in Python: peft_config=LoraConfig(rank_pattern=...)",
    "lora_alpha_pattern": "in Python: peft_config=LoraConfig(alpha_pattern=...)",
    "lora_fan_in_fan_out": "in Python: peft_config=LoraConfig(fan_in_fan_out=True)",
    "reward_model": "prefopt trains preferences, not reward models",
    "process_reward_model": "prefopt trains preferences, not reward models",
    "pretraining_dataset": "prefopt trains preferences",
    "streaming": "use dataset_streaming with dataset instead",
    "rope_scaling": "use model_init_kwargs with rope_parameters instead",
    "overrides_of_model_config": "use model_init_kwargs instead",
    "model_config": "use model_init_kwargs instead",
    "s2_attention": "attention is that of the model",
    "scaling_softmax": "attention is that of the model",
    "noisy_embedding_alpha": _ONLY_SFT,
    "dpo_norm_loss": "use loss_type ipo, or length_normalize, instead",
    "auto_resume_from_checkpoints": "use resume_from_checkpoint: true instead",
    "selective_checkpointing": "use gradient_checkpointing: true instead",
    "freeze_mm_modules": "text alone is trained on",
    "dynamic_checkpoint": "an interrupted run saves a checkpoint by itself",
    "experts_implementation": "the model's own is used",
    "quantize_moe_experts": "experts are quantised as other weights are",
    "optim_target_modules": "of optimisers that are not here",
    "dion_momentum": "of optimisers that are not here",
    "peft_ensure_weight_tying": "in Python: peft_config=LoraConfig(ensure_weight_tying=True)",
    "peft_autocast_adapter_dtype": "adapters are in float32",
}

KEYS: dict[str, Key] = {
    "rl": together("loss_type"),
    "rl_beta": together("beta", "lambda_ of loss_kwargs where the loss is orpo", default=0.1),
    "dpo_beta": together("beta"),
    "orpo_alpha": together("loss_kwargs", "lambda_ of orpo"),
    "simpo_gamma": together("loss_kwargs", "gamma of simpo", default=0.5),
    "cpo_alpha": together("loss_type", "a term sft: `simpo + a*sft`", default=1.0),
    "rpo_alpha": together("loss_type", "a term sft: `dpo + a*sft`"),
    "kto_desirable_weight": together("desirable_weight", default=1.0),
    "kto_undesirable_weight": together("undesirable_weight", default=1.0),
    "dpo_loss_type": together("loss_type", "TRL's names", default=["sigmoid"]),
    "dpo_loss_weights": together("loss_weights"),
    "dpo_label_smoothing": together("label_smoothing", "with sigmoid too, where TRL ignores it"),
    "dpo_use_weighting": together("use_weighting"),
    "precompute_ref_log_probs": together("", "they are computed once anyway"),
    "trl": together("beta", "beta alone; the rest is of GRPO"),
    "adapter": together("use_peft"),
    "lora_r": together("lora_r"),
    "lora_alpha": together("lora_alpha"),
    "lora_dropout": together("lora_dropout", default=0.0),
    "lora_target_modules": together("lora_target_modules"),
    "lora_target_linear": together("lora_target_modules", "all-linear"),
    "lora_target_parameters": together("lora_target_parameters"),
    "lora_modules_to_save": together("lora_modules_to_save"),
    "peft_use_dora": together("use_dora"),
    "peft_use_rslora": together("use_rslora"),
    "load_in_4bit": together("load_in_4bit", "nf4, quantised twice"),
    "load_in_8bit": together("load_in_8bit"),
    "bf16": together("bf16, dtype", default="auto"),
    "bfloat16": together("bf16, dtype"),
    "fp16": together("fp16, dtype"),
    "float32": together("dtype"),
    "tf32": together("tf32", "auto is left to PyTorch"),
    "gradient_checkpointing": together("gradient_checkpointing"),
    "activation_offloading": together("activation_offloading"),
    "eager_attention": together("attn_implementation"),
    "attn_implementation": together("attn_implementation", "eager alone; else the fastest"),
    "learning_rate": together("learning_rate"),
    "lr_scheduler": together("lr_scheduler_type", default="cosine"),
    "cosine_min_lr_ratio": together("lr_scheduler_type", "cosine_with_min_lr"),
    "warmup_steps": together("warmup_steps", default=0.03),
    "warmup_ratio": together("warmup_steps", WARMUP),
    "batch_size": together("gradient_accumulation_steps", "batch_size // micro_batch_size"),
    "eval_batch_size": together("per_device_eval_batch_size", default="micro_batch_size"),
    "save_steps": together("save_steps, save_strategy"),
    "saves_per_epoch": together("save_steps, save_strategy"),
    "save_strategy": together("save_strategy", default="epoch"),
    "eval_steps": together("eval_steps, eval_strategy"),
    "evals_per_epoch": together("eval_steps, eval_strategy"),
    "eval_strategy": together("eval_strategy"),
    "evaluation_strategy": together("eval_strategy"),
    "special_tokens": together("pad_token", "the pad token alone; others are the tokenizer's"),
    "use_wandb": together("report_to"),
    "wandb_project": together("env", "WANDB_PROJECT; and report_to"),
    "wandb_entity": together("env", "WANDB_ENTITY"),
    "wandb_mode": together("env", "WANDB_MODE"),
    "wandb_name": together("run_name"),
    "use_mlflow": together("report_to"),
    "use_tensorboard": together("report_to"),
    "use_comet": together("report_to", "comet_ml"),
    "use_trackio": together("report_to"),
    "hub_model_id": together("hub_model_id, push_to_hub", "private, and after each save"),
    "plugins": together("", "kernels (liger, cut_cross_entropy) compute the same"),
    "base_model_config": together("", "base_model alone"),
    "tokenizer_config": together("", "base_model alone"),
    "base_model": together("model_name_or_path"),
    "model_revision": same("model_revision"),
    "revision_of_model": same("model_revision"),
    "model_kwargs": same("model_init_kwargs"),
    "overrides_of_model_kwargs": same("model_init_kwargs"),
    "trust_remote_code": same("trust_remote_code"),
    "output_dir": same("output_dir", default="./model-out"),
    "micro_batch_size": same("per_device_train_batch_size", default=1),
    "gradient_accumulation_steps": same("gradient_accumulation_steps", default=1),
    "num_epochs": same("num_train_epochs", default=1.0),
    "optimizer": same("optim", read=optimizer, default="adamw_torch_fused"),
    "save_total_limit": same("save_total_limit", default=4),
    "logging_steps": same("logging_steps", "by default a 200th of all steps, from 1 to 10"),
    "chat_template": differs("", "the chat template is the tokenizer's own here"),
    "save_only_model": same("save_only_model"),
    "hub_strategy": same("hub_strategy"),
    "gradient_checkpointing_kwargs": same("gradient_checkpointing_kwargs"),
    "optim_args": same("optim_args"),
    "torch_compile": together("torch_compile"),
    "lr_div_factor": nothing("of the schedule one_cycle"),
    "loraplus_lr_embedding": nothing("of loraplus_lr_ratio"),
    "relora_prune_ratio": nothing("of relora"),
    **{
        name: same(name)
        for name in words(
            "max_steps seed weight_decay max_grad_norm adam_beta1 adam_beta2 adam_epsilon "
            "lr_scheduler_kwargs deepspeed resume_from_checkpoint ddp_timeout ddp_bucket_cap_mb "
            "ddp_broadcast_buffers ddp_find_unused_parameters dataloader_num_workers hub_revision "
            "dataloader_prefetch_factor dataloader_drop_last torch_compile_backend "
            "torch_compile_mode torch_empty_cache_steps accelerator_config"
        )
    },
    **{name: nothing(ATTENTION) for name in _ATTENTION},
    **dict.fromkeys(
        words(
            "use_swanlab swanlab_project swanlab_experiment_name swanlab_description swanlab_mode "
            "swanlab_workspace swanlab_log_completions swanlab_completion_log_interval "
            "swanlab_completion_max_buffer swanlab_log_model swanlab_api_key"
        ),
        nothing("logging; `report_to: swanlab` does it"),
    ),
    **dict.fromkeys(("use_scattermoe", "use_sonicmoe"), nothing("kernels, which compute the same")),
    "use_onebitllms": cannot("models are trained in 16 or 32 bits, or with an adapter", False),
    **dict.fromkeys(_KERNELS, nothing("kernels, which compute the same")),
    **dict.fromkeys(_IGNORED_WITH_RL, nothing(_ONLY_SFT)),
    **dict.fromkeys(_NO_EFFECT, nothing("nothing that is trained depends on it")),
    **{name: cannot(advice, False, 1, "") for name, advice in _OFF_OR_REFUSED.items()},
    **DATA_KEYS,
}
