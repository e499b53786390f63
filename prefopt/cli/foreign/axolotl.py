"""Axolotl's YAML: ``rl`` dpo, ipo, kto, orpo and simpo, full, LoRA and QLoRA.

Read from its schemas and trainer builders as of July 2026 (commit 067b021).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefopt.cli.foreign.axolotl_data import put_data
from prefopt.cli.foreign.axolotl_keys import KEYS, TOKENIZER, WARMUP
from prefopt.cli.foreign.conversion import (
    Conversion,
    names,
    number,
    put_attention,
    put_environment,
    saved_text,
    scheduler,
    whole,
)

PROGRAM = "Axolotl"
# Keys that a file of another program does not have.
MARKS = frozenset(
    {"base_model", "rl", "rl_beta", "micro_batch_size", "sequence_len", "adapter", "num_epochs"}
    | {"val_set_size", "lora_target_linear", "orpo_alpha", "sample_packing"}
)
OURS = frozenset(
    {"loss_type", "beta", "dataset_name", "model", "model_name_or_path", "use_peft"}
    | {"per_device_train_batch_size"}
)
LOSSES = ("dpo", "ipo", "kto", "orpo", "simpo")


def convert(values: Mapping[str, Any], folder: Path, loss: str | None = None) -> Conversion:
    """Return the conversion of a file.

    Args:
        values: What it says.
        folder: Where it is, for paths that it names.
        loss: A loss of the command line; the file says its own.
    """
    conversion = Conversion.of(PROGRAM, values)
    given = conversion.given
    if "base_model" in given:
        conversion.put("model_name_or_path", given["base_model"], "base_model")
    for key in ("base_model_config", "tokenizer_config"):
        if given.get(key, given.get("base_model")) != given.get("base_model"):
            conversion.refuse(key, "save the tokenizer and the configuration with the model")
        else:
            conversion.leave(key, "it is base_model")
    if given.get("rl") in LOSSES:
        put_data(conversion, given["rl"], folder)
        _put_loss(conversion, given["rl"])
    elif "rl" in given:
        conversion.refuse("rl", f"prefopt trains {', '.join(LOSSES)}")
    else:
        conversion.refuse(
            "rl", f"is missing, which is supervised fine-tuning; prefopt trains {', '.join(LOSSES)}"
        )
    for step in (
        _put_adapter,
        _put_precision,
        _put_memory,
        _put_schedule,
        _put_saving,
        _put_logging,
        _put_tokens,
    ):
        step(conversion)
    conversion.apply(KEYS)
    return conversion


def _put_loss(conversion: Conversion, loss: str) -> None:
    """Name the loss that ``rl`` implies, and its hyper-parameters."""
    given = conversion.given
    trl: Mapping[str, Any] = given["trl"] if isinstance(given.get("trl"), Mapping) else {}
    keys = ("rl_beta", "dpo_beta") if trl.get("beta") is None else ("trl",)
    values = [trl.get("beta"), *(given.get(key) for key in ("rl_beta", "dpo_beta", "orpo_alpha"))]
    beta = number(next((value for value in values if value is not None), 0.1), "rl_beta")
    if loss == "orpo":
        conversion.put("loss_type", "orpo", "rl")
        conversion.put("loss_kwargs", {"lambda_": beta}, *keys, "orpo_alpha", note="ORPO's lambda")
        return
    if loss == "simpo":
        _put_simpo(conversion)
    elif loss == "dpo":
        _put_dpo(conversion)
    else:
        conversion.put("loss_type", loss, "rl")
    conversion.put("beta", beta, *keys)
    if loss == "kto":
        for label in ("desirable", "undesirable"):
            weight = number(given.get(f"kto_{label}_weight") or 1.0, f"kto_{label}_weight")
            conversion.put(f"{label}_weight", weight, f"kto_{label}_weight")
    if given.get("dpo_use_weighting") and loss in ("dpo", "ipo"):
        conversion.put("use_weighting", True, "dpo_use_weighting")


def _put_dpo(conversion: Conversion) -> None:
    given = conversion.given
    losses = given.get("dpo_loss_type") or ["sigmoid"]
    losses = [losses] if isinstance(losses, str) else list(losses)
    weights = given.get("dpo_loss_weights")
    rpo = number(given.get("rpo_alpha") or 0.0, "rpo_alpha")
    if rpo:
        losses.append("sft")
        weights = [*(weights or [1.0] * (len(losses) - 1)), rpo]
    keys = ("rl", "dpo_loss_type", "rpo_alpha")
    ours = ["dpo" if name == "sigmoid" else name for name in losses]
    conversion.put("loss_type", ours[0] if len(ours) == 1 else ours, *keys)
    if weights and len(ours) > 1:
        weights = [number(weight, "dpo_loss_weights") for weight in weights]
        conversion.put("loss_weights", weights, "dpo_loss_weights", "rpo_alpha")
    if given.get("dpo_label_smoothing"):
        value = number(given["dpo_label_smoothing"], "dpo_label_smoothing")
        note = "cDPO; TRL 1.16 ignores it with sigmoid" if "dpo" in ours else ""
        conversion.put(
            "label_smoothing", value, "dpo_label_smoothing", note=note, differs=bool(note)
        )


def _put_simpo(conversion: Conversion) -> None:
    given = conversion.given
    alpha = number(given.get("cpo_alpha", 1.0), "cpo_alpha")
    gamma = number(given.get("simpo_gamma", 0.5), "simpo_gamma")
    name = "simpo" if not alpha else f"simpo + {alpha:.12g}*sft" if alpha != 1 else "simpo + sft"
    note = "" if "cpo_alpha" in given else "cpo_alpha is 1 where it is not given, as in TRL"
    conversion.put("loss_type", name, "rl", "cpo_alpha", note=note)
    conversion.put("loss_kwargs", {"gamma": gamma}, "simpo_gamma", note="the target margin")


def _put_adapter(conversion: Conversion) -> None:
    """Convert full fine-tuning, LoRA and QLoRA."""
    given = conversion.given
    kind = given.get("adapter") or None
    bits = [key for key in ("load_in_4bit", "load_in_8bit") if given.get(key)]
    if kind not in (None, "lora", "qlora"):
        conversion.refuse("adapter", "use lora or qlora instead; in Python any peft_config")
        return
    conversion.put("use_peft", kind is not None, "adapter")
    if kind is None:
        for key in bits:
            conversion.refuse(key, "a quantised model is trained with an adapter: lora or qlora")
        return
    for key in ("lora_r", "lora_alpha"):
        if key in given:
            conversion.put(key, given[key], key)
        else:
            conversion.refuse(key, "is missing: say it")
    conversion.put("lora_dropout", given.get("lora_dropout", 0.0), "lora_dropout")
    _put_targets(conversion)
    for key, option in (
        ("lora_modules_to_save", "lora_modules_to_save"),
        ("lora_target_parameters", "lora_target_parameters"),
    ):
        if given.get(key):
            conversion.put(option, names(given[key]), key)
    for key, option in (("peft_use_dora", "use_dora"), ("peft_use_rslora", "use_rslora")):
        if given.get(key):
            conversion.put(option, True, key)
    if len(bits) == 2 or (kind == "qlora" and bits == ["load_in_8bit"]):
        conversion.refuse("load_in_8bit", "QLoRA is in 4 bits: give load_in_4bit alone")
    elif bits or kind == "qlora":
        option = bits[0] if bits else "load_in_4bit"
        conversion.put(option, True, *(bits or ["adapter"]))
        if option == "load_in_4bit":
            conversion.put("use_bnb_nested_quant", True, note="quantised twice")


def _put_targets(conversion: Conversion) -> None:
    given = conversion.given
    targets = names(given.get("lora_target_modules") or [])
    if not given.get("lora_target_linear"):
        if targets or given.get("lora_target_parameters"):
            conversion.put("lora_target_modules", targets, "lora_target_modules")
        else:
            conversion.refuse("lora_target_modules", "is missing: name modules, or all-linear")
        return
    others = [name for name in targets if "embed" in name or "head" in name]
    if others:
        conversion.refuse(
            "lora_target_modules", f"all-linear leaves out {', '.join(others)}: name all modules"
        )
        return
    keys = ("lora_target_linear", "lora_target_modules")
    conversion.put("lora_target_modules", ["all-linear"], *keys)


def _put_precision(conversion: Conversion) -> None:
    """Convert what is computed in which precision, in which all weights are too."""
    given = conversion.given
    bf16 = given.get("bf16", True if given.get("bfloat16") else "auto")
    if given.get("fp16") and bf16 == "auto":
        bf16 = False
    tf32 = given.get("tf32")
    if isinstance(tf32, bool):
        conversion.put("tf32", tf32, "tf32")
    note = "weights too, as there; dtype: float32 keeps small updates"
    keys = ("bf16", "bfloat16")
    if bf16 == "full":
        conversion.put("dtype", "bfloat16", *keys, note="without mixed precision")
        conversion.put("bf16", False, *keys)
    elif bf16:
        if bf16 == "auto":
            conversion.put("dtype", "bfloat16", *keys, note=f"on a GPU that has it; {note}")
        else:
            conversion.put("bf16", True, *keys)
            conversion.put("dtype", "bfloat16", *keys, note=note)
    else:
        conversion.put("bf16", False, *keys)
        half = "float16" if given.get("fp16") or given.get("load_in_8bit") else "float32"
        if given.get("fp16"):
            conversion.put("fp16", True, "fp16")
        conversion.put("dtype", half, "fp16", "load_in_8bit", *keys)


def _put_memory(conversion: Conversion) -> None:
    given = conversion.given
    checkpointing = given.get("gradient_checkpointing", False)
    conversion.put("gradient_checkpointing", bool(checkpointing), "gradient_checkpointing")
    if given.get("activation_offloading"):
        conversion.put("activation_offloading", True, "activation_offloading")
    if given.get("eager_attention"):
        conversion.put("attn_implementation", "eager", "eager_attention")
    put_attention(conversion, "attn_implementation")
    if given.get("torch_compile") in (True, False):
        conversion.put("torch_compile", given["torch_compile"], "torch_compile")
    for plugin in given.get("plugins") or []:
        if not any(
            word in str(plugin).lower()
            for word in ("liger", "cutcrossentropy", "kernels", "swanlab")
        ):
            conversion.refuse("plugins", f"there are no plugins: {plugin}")
            return
    conversion.leave("plugins", "kernels, which compute the same, or logging")


def _put_schedule(conversion: Conversion) -> None:
    """Convert learning rate, its schedule and warm-up, and the size of a step."""
    given = conversion.given
    if "learning_rate" in given:
        rate = number(given["learning_rate"], "learning_rate")
        conversion.put("learning_rate", rate, "learning_rate")
    else:
        conversion.refuse("learning_rate", "is missing, as it must not be in Axolotl")
    least = given.get("cosine_min_lr_ratio")
    name = given.get("lr_scheduler") or "cosine"
    if least and name == "cosine":
        keys = ("lr_scheduler", "cosine_min_lr_ratio")
        conversion.put("lr_scheduler_type", "cosine_with_min_lr", *keys)
        rate = number(least, "cosine_min_lr_ratio")
        conversion.put("lr_scheduler_kwargs", {"min_lr_rate": rate}, "cosine_min_lr_ratio")
    else:
        try:
            conversion.put("lr_scheduler_type", scheduler(name), "lr_scheduler")
        except ValueError as error:
            conversion.refuse("lr_scheduler", str(error))
    if given.get("warmup_steps") is not None:
        conversion.put("warmup_steps", given["warmup_steps"], "warmup_steps")
        conversion.leave("warmup_ratio", "warmup_steps is given")
    elif "warmup_ratio" in given:
        ratio = number(given["warmup_ratio"], "warmup_ratio")
        conversion.put("warmup_steps", ratio, "warmup_ratio", note=WARMUP)
    else:
        conversion.put("warmup_steps", 0.03, note="of all steps; there 100 at most")
    micro = whole(given.get("micro_batch_size", 1), "micro_batch_size")
    if given.get("batch_size") and "gradient_accumulation_steps" not in given:
        steps = max(1, whole(given["batch_size"], "batch_size") // micro)
        conversion.put("gradient_accumulation_steps", steps, "batch_size")
    conversion.put(
        "per_device_eval_batch_size", given.get("eval_batch_size") or micro, "eval_batch_size"
    )


def _put_saving(conversion: Conversion) -> None:
    """Convert when to save and to evaluate: in steps, or so many times in an epoch."""
    given = conversion.given
    epochs = number(given.get("num_epochs", 1.0), "num_epochs")
    for verb in ("save", "eval"):
        steps, per_epoch = given.get(f"{verb}_steps"), given.get(f"{verb}s_per_epoch")
        keys = (f"{verb}_steps", f"{verb}s_per_epoch")
        if verb == "eval" and not (given.get("val_set_size") or given.get("test_datasets")):
            for key in (*keys, "eval_strategy", "evaluation_strategy"):
                conversion.leave(key, "there is nothing to evaluate on")
            continue
        if steps or per_epoch:
            share = steps or 1 / (number(per_epoch, keys[1]) * epochs)
            if share == 1 and not steps:  # once, at the end: 1 would be a number of steps
                conversion.put(f"{verb}_strategy", "epoch", keys[1])
                continue
            conversion.put(f"{verb}_strategy", "steps", *keys)
            conversion.put(f"{verb}_steps", share, *keys)
        else:
            default = "epoch" if verb == "save" else "no"
            given_strategy = given.get("eval_strategy", given.get("evaluation_strategy", default))
            value = given_strategy if verb == "eval" else given.get("save_strategy", default)
            also = ("evaluation_strategy",) if verb == "eval" else ()
            conversion.put(f"{verb}_strategy", value, f"{verb}_strategy", *also)


def _put_logging(conversion: Conversion) -> None:
    given = conversion.given
    trackers = ("mlflow", "tensorboard", "comet", "trackio")
    chosen = [name for name in trackers if given.get(f"use_{name}")]
    wandb = given.get("use_wandb", bool(given.get("wandb_project")))
    if wandb:
        chosen = ["wandb", *chosen]
        put_environment(conversion, ("wandb_project", "wandb_entity", "wandb_mode"))
        if given.get("wandb_name"):
            conversion.put("run_name", given["wandb_name"], "wandb_name")
    report = ["comet_ml" if name == "comet" else name for name in chosen] or ["none"]
    keys = [f"use_{name}" for name in ("wandb", *trackers)]
    conversion.put("report_to", report, *keys, "wandb_project")
    if given.get("hub_model_id"):
        conversion.put("hub_model_id", given["hub_model_id"], "hub_model_id")
        conversion.put("push_to_hub", True, "hub_model_id")
        conversion.put("hub_private_repo", True, "hub_model_id")


def _put_tokens(conversion: Conversion) -> None:
    """Convert special tokens: the pad token is an option here, the others are the tokenizer's."""
    tokens = conversion.given.get("special_tokens")
    if not isinstance(tokens, Mapping):
        return
    given = {name: value for name, value in tokens.items() if value}
    own = own_tokens(conversion.given.get("base_model"))
    if "pad_token" in given:
        conversion.put("pad_token", given["pad_token"], "special_tokens")
    others = [name for name in given if name != "pad_token" and own.get(name) != given[name]]
    if others:
        said = ", ".join(f"{name} {given[name]!r}" for name in others)
        conversion.refuse("special_tokens", f"{said}: {TOKENIZER}")


def own_tokens(model: Any) -> dict[str, Any]:
    """Return the special tokens of the tokenizer that is saved with a model, by name."""
    try:
        tokens = dict(json.loads(saved_text(model, "tokenizer_config.json") or "{}"))
    except ValueError:
        return {}
    return {
        name: value.get("content") if isinstance(value, dict) else value
        for name, value in tokens.items()
    }
