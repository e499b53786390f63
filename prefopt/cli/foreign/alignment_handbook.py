"""alignment-handbook's recipes, and TRL's of the same kind: those of DPO and ORPO.

Read from its scripts as of July 2025 (commit 925acdf) and before 2025 (``dataset_mixer``). Most of
their keys are TRL's, and so ours.
"""

from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from prefopt.cli.foreign.axolotl import own_tokens
from prefopt.cli.foreign.conversion import (
    Conversion,
    Key,
    cannot,
    differs,
    nothing,
    number,
    optimizer,
    put_attention,
    put_environment,
    same,
    saved_text,
    scheduler,
    together,
)
from prefopt.cli.foreign.trainer_keys import TRAINER, of_gone
from prefopt.migration import OLD_OPTIONS, OLD_TRL_FIELDS

PROGRAM = "alignment-handbook"
# Keys that a file of another program does not have.
MARKS = frozenset(
    {"dataset_mixer", "dataset_mixture", "dataset_splits", "dataset_configs", "torch_dtype"}
)
OURS = frozenset({"datasets", "loss_kwargs"})
# Why a loss is taken that no key names.
_IMPLIED = {
    "orpo": "orpo: the recipe says so of its folder or output",
    "dpo": "`--loss_type orpo` where it is that of ORPO",
}
_ALIASES = ("model", "dataset", "env")

KEYS: dict[str, Key] = {
    **{name: of_gone(gone) for name, gone in (OLD_TRL_FIELDS | OLD_OPTIONS).items()},
    **TRAINER,
    "loss_type": together("loss_type", "dpo where none is named; orpo in a recipe of ORPO"),
    "beta": together("beta", "lambda_ of loss_kwargs where the loss is orpo"),
    "rpo_alpha": together("loss_type", "a term sft: `dpo + a*sft`"),
    "dataset_mixer": together("datasets", "shares are weights"),
    "dataset_splits": together("datasets, dataset_test_split", "split of each", default=["train"]),
    "dataset_configs": together("datasets", "name of each"),
    "dataset_mixture": together("datasets", "id is path, and config name"),
    "tokenizer_name_or_path": together("", "the model alone"),
    "chat_template": together("", "the tokenizer's own alone"),
    "attn_implementation": together("attn_implementation", "eager alone; else the fastest"),
    "use_peft": together("use_peft"),
    "lora_r": together("lora_r", default=16),
    "lora_alpha": together("lora_alpha", default=32),
    "lora_dropout": together("lora_dropout", default=0.05),
    "torch_dtype": same("dtype"),
    "model_dtype": same("dtype"),
    "model_name": same("model_name_or_path"),
    "base_model_revision": same("model_revision"),
    "use_lora": same("use_peft"),
    "use_flash_attention_2": nothing("attn_backend picks the fastest attention"),
    "optim": same("optim", read=optimizer),
    "lr_scheduler_type": same("lr_scheduler_type", read=scheduler),
    "preprocessing_num_workers": same("dataset_num_proc"),
    "hub_model_revision": same("hub_revision"),
    "optimizer_type": same("optim", read=optimizer),
    "log_freq": same("logging_steps"),
    "log_with": same("report_to"),
    "max_prompt_length": differs("", "prompts are not cut: a row without room is set aside"),
    "max_completion_length": differs("", "only max_length cuts completions"),
    "auto_insert_empty_system_msg": differs("", "no empty system message is put in"),
    "precompute_ref_log_probs": nothing("they are computed once anyway"),
    "ignore_bias_buffers": nothing("of the launch"),
    "overwrite_output_dir": nothing("output_dir may exist"),
    "wandb_entity": together("env", "WANDB_ENTITY"),
    "wandb_project": together("env", "WANDB_PROJECT"),
    "wandb_run_group": together("env", "WANDB_RUN_GROUP"),
    "do_train": cannot("prefopt train trains", True),
}


def convert(values: Mapping[str, Any], folder: Path, loss: str | None = None) -> Conversion:
    """Return the conversion of a file.

    Args:
        values: What it says.
        folder: Where it is; a recipe of ORPO lies in a folder of that name.
        loss: A loss of the command line, in place of the file's.
    """
    conversion = Conversion.of(PROGRAM, values)
    given = conversion.given
    model = given.get("model_name_or_path", given.get("model"))
    if "model_name_or_path" in given:
        conversion.put("model_name_or_path", model, "model_name_or_path")
    _put_data(conversion)
    _put_loss(conversion, folder, loss)
    _put_adapter(conversion)
    put_attention(conversion, "attn_implementation")
    _put_tokenizer(conversion, model)
    wandb = ("wandb_project", "wandb_entity", "wandb_run_group")
    put_environment(conversion, wandb, beside="env")
    if "max_length" in values and values["max_length"] is None:
        conversion.put("max_length", None, note="no limit")
    conversion.apply(KEYS, (*our_options(), *_ALIASES))
    return conversion


@cache
def our_options() -> frozenset[str]:
    """Return the names of the options of ``prefopt train``."""
    from trl import ModelConfig

    from prefopt.cli.rows import DataArguments
    from prefopt.config import PreferenceConfig

    kinds: tuple[Any, ...] = (DataArguments, PreferenceConfig, ModelConfig)
    return frozenset(item.name for kind in kinds for item in fields(kind) if item.init)


def _put_loss(conversion: Conversion, folder: Path, loss: str | None) -> None:
    """Name the loss, which the recipe's script may imply: DPO, or ORPO in a recipe of ORPO."""
    given, note = conversion.given, ""
    chosen: Any = given.get("loss_type") if loss is None else loss
    if loss is not None:
        conversion.leave("loss_type", f"the command line says {loss}")
    elif chosen is None:
        places = [folder.resolve().name, *map(str, map(given.get, ("output_dir", "hub_model_id")))]
        chosen = "orpo" if any("orpo" in place.lower() for place in places) else "dpo"
        note = f"the recipe's script is not named; {_IMPLIED[chosen]}"
    alpha = number(given.get("rpo_alpha") or 0.0, "rpo_alpha")
    if loss is None:
        if alpha and isinstance(chosen, str):
            chosen = f"{chosen} + {alpha:.12g}*sft"
        elif alpha:
            conversion.refuse("rpo_alpha", "add sft to loss_type, and its weight to loss_weights")
        conversion.put("loss_type", chosen, "loss_type", "rpo_alpha", note=note, differs=bool(note))
    if "beta" not in given and chosen != "orpo":
        return
    beta = number(given.get("beta", 0.1), "beta")
    if chosen == "orpo":
        conversion.put("loss_kwargs", {"lambda_": beta}, "beta", note="ORPO's lambda")
    else:
        conversion.put("beta", beta, "beta")


def _put_adapter(conversion: Conversion) -> None:
    """Write out what holds for LoRA where the recipe does not say."""
    given = conversion.given
    if not (given.get("use_peft") or given.get("use_lora")):
        return
    conversion.put("use_peft", True, "use_peft", "use_lora")
    for key in ("lora_r", "lora_alpha", "lora_dropout"):
        conversion.put(key, given.get(key, KEYS[key].default), key)


def _put_tokenizer(conversion: Conversion, model: Any) -> None:
    """The tokenizer is that of the model, and the chat template is the tokenizer's own."""
    given = conversion.given
    advice = OLD_OPTIONS["chat_template"].advice
    if given.get("tokenizer_name_or_path", model) == model:
        conversion.leave("tokenizer_name_or_path", "it is the model's")
    else:
        conversion.refuse("tokenizer_name_or_path", advice)
    template = given.get("chat_template")
    if template is None or template == own_template(model):
        conversion.leave("chat_template", "it is the tokenizer's own")
    else:
        conversion.refuse("chat_template", advice)


def own_template(model: Any) -> Any:
    """Return the chat template that is saved with a model; None if it has none."""
    return saved_text(model, "chat_template.jinja") or own_tokens(model).get("chat_template")


def _put_data(conversion: Conversion) -> None:
    """Convert a mixture of datasets; a single one is named as here."""
    given = conversion.given
    try:
        if "dataset_mixture" in given:
            _put_mixture(conversion, given["dataset_mixture"])
        elif "dataset_mixer" in given:
            _put_mixer(conversion, given["dataset_mixer"])
    except (ValueError, TypeError, AttributeError) as error:
        key = "dataset_mixture" if "dataset_mixture" in given else "dataset_mixer"
        conversion.refuse(key, str(error))


def _put_mixture(conversion: Conversion, mixture: Any) -> None:
    known = {"id": "path", "config": "name", "split": "split", "columns": "columns"}
    known |= {"weight": "weight"}
    entries = []
    if not isinstance(mixture, Mapping) or not isinstance(mixture.get("datasets"), list):
        raise ValueError("it must be a mapping with a list `datasets`")
    for item in mixture["datasets"]:
        unknown = [key for key in item if key not in known]
        if unknown:
            raise ValueError(f"unknown key {unknown[0]!r}; there are {', '.join(known)}")
        entry = {known[key]: value for key, value in item.items() if value is not None}
        entries.append({**entry, "split": entry.get("split", "train")})
    note = "a weight below 1 takes another random part of the rows"
    parts = any(entry.get("weight", 1) != 1 for entry in entries)
    conversion.put(
        "datasets",
        entries,
        "dataset_mixture",
        note=note if parts else "",
        differs=parts,
    )
    unknown = [key for key in mixture if key not in ("datasets", "seed", "test_split_size")]
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r}; there are datasets, seed, test_split_size")
    size = mixture.get("test_split_size")
    if size:
        note = "" if _evaluates(conversion) else "there held out, and not evaluated"
        option = "eval_rows" if size >= 1 else "eval_fraction"
        conversion.put(option, int(size) if size >= 1 else size, "dataset_mixture", note=note)


def _put_mixer(conversion: Conversion, mixer: Mapping[str, Any]) -> None:
    given = conversion.given
    splits = given.get("dataset_splits") or ["train", "test"]
    train = [split for split in splits if "train" in split]
    test = [split for split in splits if "test" in split]
    others = [split for split in splits if split not in (*train, *test)]
    configs = given.get("dataset_configs") or [None] * len(mixer)
    if others or not train or len(configs) != len(mixer):
        raise ValueError(
            f"the splits {splits} must be of train or test, and configs as many as datasets"
        )
    entries = []
    for (path, share), config in zip(mixer.items(), configs, strict=True):
        for split in train:
            entry: dict[str, Any] = {"path": path, "split": split}
            entry |= {"name": config} if config else {}
            entries.append(entry | ({"weight": share} if share != 1 else {}))
    keys = ("dataset_mixer", "dataset_splits", "dataset_configs")
    conversion.put("datasets", entries, *keys)
    if not test or not _evaluates(conversion):
        return
    if len(test) > 1:
        conversion.refuse("dataset_splits", "name one split to evaluate on")
        return
    conversion.put("dataset_test_split", test[0], "dataset_splits")


def _evaluates(conversion: Conversion) -> bool:
    given = conversion.given
    strategy = given.get("eval_strategy", given.get("evaluation_strategy", "no"))
    return bool(given.get("do_eval")) or strategy not in ("no", False)
