"""The help of ``prefopt train``: in groups, each option once, the common ones first.

``--help`` shows the options that people set, ``--help GROUP`` all of one group, ``--help OPTION``
one of them, ``--help-all`` everything. Texts are those of the fields; only some of transformers'
are written anew here, where their first sentence does not say what the option does.
"""

import argparse
import copy
import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from prefopt.cli.errors import UserError


@dataclass(frozen=True)
class Group:
    """Options that are shown together.

    Attributes:
        name: What ``--help`` calls it.
        title: The heading.
        common: Options of the short help, in the order to show them.
        others: Further options of the group.
    """

    name: str
    title: str
    common: tuple[str, ...]
    others: tuple[str, ...] = ()


REST = Group("more", "everything else of transformers.TrainingArguments", ())

GROUPS = (
    Group(
        "model",
        "model",
        ("model", "dtype", "attn_implementation", "trust_remote_code"),
        ("model_revision", "model_init_kwargs", "allow_missing_weights", "pad_token"),
    ),
    Group(
        "data",
        "data",
        (
            *("dataset_name", "datasets", "columns", "max_length"),
            *("dataset_train_split", "dataset_test_split", "eval_fraction"),
        ),
        (
            *("dataset_config", "eval_datasets", "eval_rows", "dataset_streaming"),
            *("dataset_num_proc", "truncation_mode"),
        ),
    ),
    Group(
        "loss",
        "loss",
        ("loss_type", "beta", "loss_kwargs", "label_smoothing", "length_normalize"),
        (
            *("loss_weights", "desirable_weight", "undesirable_weight", "discopop_tau"),
            *("margin_scale", "beta_schedule", "beta_final", "ld_alpha", "f_divergence_type"),
            *("f_alpha_divergence_coef", "use_weighting", "router_aux_loss_coef"),
        ),
    ),
    Group(
        "reference",
        "reference",
        ("reference", "reference_cache_dir", "sync_ref_model"),
        (
            *("ref_model_mixup_alpha", "ref_model_sync_steps", "precompute_ref_log_probs"),
            "precompute_ref_batch_size",
        ),
    ),
    Group(
        "training",
        "training",
        (
            *("learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size"),
            *("gradient_accumulation_steps", "warmup_steps", "lr_scheduler_type", "optim"),
            *("bf16", "gradient_checkpointing", "max_tokens_per_batch", "seed"),
        ),
        (
            *("weight_decay", "max_grad_norm", "lr_scheduler_kwargs", "optim_args", "adam_beta1"),
            *("adam_beta2", "adam_epsilon", "fp16", "use_cpu", "torch_compile", "layout"),
            *("attn_backend", "disable_dropout", "activation_offloading", "check_first_batch"),
            *("non_finite_steps", "neftune_noise_alpha", "padding_free", "pad_to_multiple_of"),
            *("resume_from_checkpoint", "fsdp", "fsdp_config", "deepspeed"),
        ),
    ),
    Group(
        "lora",
        "LoRA and quantisation",
        ("use_peft", "lora_r", "lora_alpha", "lora_target_modules", "load_in_4bit"),
        (
            *("lora_dropout", "lora_target_parameters", "lora_modules_to_save", "lora_task_type"),
            *("use_rslora", "use_dora", "load_in_8bit", "bnb_4bit_quant_type"),
            *("use_bnb_nested_quant", "bnb_4bit_quant_storage"),
        ),
    ),
    Group(
        "output",
        "output",
        (
            *("output_dir", "logging_steps", "eval_strategy", "eval_steps", "save_steps"),
            *("report_to", "push_to_hub", "diagnostics", "config"),
        ),
        (
            *("logging_strategy", "logging_first_step", "log_token_metrics", "run_name"),
            *("log_ratios", "log_throughput", "profile_steps"),
            *("sample_prompts", "sample_every", "sample_tokens", "save_strategy"),
            *("save_total_limit",),
            *("save_only_model", "load_best_model_at_end", "metric_for_best_model"),
            *("greater_is_better", "hub_model_id", "hub_private_repo", "hub_strategy"),
            *("hub_revision", "per_device_eval_batch_size", "eval_on_start"),
        ),
    ),
)

_TEXTS = {
    "attn_implementation": "How the model attends, such as sdpa or flash_attention_2.",
    "datasets": "Several datasets in place of one; in a file with weights and columns.",
    "dtype": "Of the weights: auto, bfloat16, float16 or float32.",
    "eval_strategy": "When to evaluate: no, steps or epoch.",
    "gradient_accumulation_steps": "Batches of one optimiser step.",
    "gradient_checkpointing": "Compute activations a second time instead of keeping them.",
    "loss_kwargs": "Hyper-parameters of the loss: tau=0.1,blend_temperature=2, or a JSON object.",
    "load_in_4bit": "Load the model in 4 bits (QLoRA; with --use_peft).",
    "logging_steps": "Log every so many optimiser steps.",
    "lora_alpha": "Scale of the adapter: alpha / r times its output.",
    "lora_r": "Rank of the adapter.",
    "lora_target_modules": "Layers with an adapter, by name.",
    "lr_scheduler_type": "Schedule of the learning rate: linear, cosine, constant, ...",
    "max_steps": "Stop after so many optimiser steps; -1: after num_train_epochs.",
    "num_train_epochs": "Passes over the data.",
    "optim": "Optimiser: adamw_torch_fused, paged_adamw_8bit, adafactor, ...",
    "output_dir": "Folder for the model, its checkpoints and the log.",
    "per_device_train_batch_size": "Rows of a batch, on each device.",
    "push_to_hub": "Upload the model to the Hub at the end.",
    "reference": "Where reference log-probs come from: auto, cached, live, adapter:PATH.",
    "report_to": "Where to log: tensorboard, wandb, trackio, ...; none for nowhere.",
    "save_steps": "Save a checkpoint every so many steps.",
    "seed": "Of the order of the rows and everything else that is random.",
    "use_peft": "Train an adapter (LoRA), not all weights.",
    "warmup_steps": "Steps in which the learning rate rises from 0; below 1, a share of all.",
}
_METAVARS = {
    **{"int": "N", "float": "NUMBER", "string_to_bool": "BOOL", "_json_object": "JSON"},
    **{"loss_kwargs": "NAME=VALUE"},
    **{"model": "MODEL", "dataset_name": "DATA", "datasets": "DATA", "eval_datasets": "DATA"},
    **{"loss_type": "LOSS", "output_dir": "FOLDER", "config": "FILE"},
}
_MOST_CHOICES = 6  # that are listed; of optimisers there are 40


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Leaves the description's lines, and shows one spelling of an option and what it takes."""

    def __init__(self, prog: str, **more: Any) -> None:
        super().__init__(prog, max_help_position=32, **more)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        names = spellings(action)
        if not names or action.nargs == 0:
            return ", ".join(names) or super()._format_action_invocation(action)
        takes = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(names)} {takes}"

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        if action.choices:
            return "NAME"
        kind = getattr(action.type, "__name__", "")
        return _METAVARS.get(_name(action), _METAVARS.get(kind, "VALUE"))

    def _metavar_formatter(self, action: argparse.Action, default_metavar: str) -> Any:
        if action.choices is None or len(list(action.choices)) <= _MOST_CHOICES:
            return super()._metavar_formatter(action, default_metavar)
        return lambda size: (default_metavar,) * size

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        says_so = "default" in text.lower()
        if says_so or action.default in (None, False, argparse.SUPPRESS):
            return text
        return super()._get_help_string(action) or text


def spellings(action: argparse.Action) -> list[str]:
    """Return the names of an option, the one with underscores where both are taken.

    Examples:
        >>> parser = argparse.ArgumentParser()
        >>> spellings(parser.add_argument("--lora_r", "--lora-r"))
        ['--lora_r']
    """
    names = list(action.option_strings)
    taken = {name.replace("-", "_") for name in names if "_" in name}
    return [name for name in names if "_" in name or name.replace("-", "_") not in taken]


class _Help(argparse.Action):
    """``--help [GROUP or OPTION]``."""

    def __call__(
        self, parser: Any, namespace: Any, values: Any, option_string: str | None = None
    ) -> None:
        topic = "all" if option_string in ("--help-all", "--help_all") else values
        print(help_text(parser, topic), end="")
        parser.exit()


def add_help(parser: argparse.ArgumentParser) -> None:
    """Add ``--help`` and ``--help-all`` to a parser that was made without.

    Args:
        parser: Of the options of ``prefopt train``.
    """
    hidden: dict[str, Any] = {
        "action": _Help,
        "default": argparse.SUPPRESS,
        "help": argparse.SUPPRESS,
    }
    parser.add_argument("-h", "--help", nargs="?", **hidden)
    parser.add_argument("--help-all", "--help_all", nargs=0, dest="help", **hidden)


def help_text(parser: argparse.ArgumentParser, topic: str | None = None) -> str:
    """Return the help of ``prefopt train``'s options.

    Args:
        parser: Of these options.
        topic: The name of a group or an option, or ``all``; None for the short help.

    Raises:
        UserError: If there is no such group or option.
    """
    options = _shown(parser)
    formatter = parser._get_formatter()
    made = _short if topic is None else _whole
    if topic is None or topic == "all":
        formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups)
        formatter.add_text(parser.description)
    for group, names in _selected(topic, options):
        formatter.start_section(group.title)
        formatter.add_arguments([made(options[name]) for name in names])
        formatter.end_section()
    if topic is None:
        formatter.add_text(_further(parser.prog))
    return formatter.format_help()


def _further(program: str) -> str:
    names = ", ".join(group.name for group in GROUPS)
    return (
        f"{program} --help GROUP shows all options of a group:\n  {names}\n"
        f"{program} --help OPTION shows one, --help-all shows all."
    )


def _shown(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Return the options by name, those that another option's help stands for left out."""
    actions = [one for one in parser._actions if one.help is not argparse.SUPPRESS]
    return {_name(one): one for one in actions}


def _selected(
    topic: str | None, options: dict[str, argparse.Action]
) -> Iterator[tuple[Group, list[str]]]:
    """Yield the groups to show, each with the names of its options."""
    if topic is not None and topic not in ("all", *(group.name for group in (*GROUPS, REST))):
        yield _one_option(topic, options)
        return
    grouped = {name for group in GROUPS for name in (*group.common, *group.others)}
    for group in GROUPS:
        if topic in (None, "all", group.name):
            wanted = group.common + (() if topic is None else group.others)
            yield group, [name for name in wanted if name in options]
    if topic in ("all", REST.name):
        yield REST, [name for name in options if name not in grouped]


def _one_option(topic: str, options: dict[str, argparse.Action]) -> tuple[Group, list[str]]:
    wanted = f"--{topic.lstrip('-').replace('-', '_')}"
    for name, action in options.items():
        if wanted in action.option_strings:
            return Group(name, "option", (name,)), [name]
    groups = [group.name for group in (*GROUPS, REST)]
    near = difflib.get_close_matches(topic, [*groups, *options], n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else "."
    raise UserError(f"no group or option {topic!r}{hint} Groups: {', '.join(groups)}")


def _short(action: argparse.Action) -> argparse.Action:
    """Return a copy of an option whose help is a sentence, and its default."""
    made = copy.copy(action)
    sentences = re.split(r"(?<=\.) (?=[A-Z'`])", " ".join((action.help or "").split()))
    default = [text for text in sentences[1:] if text.startswith("Default: ")]
    made.help = _TEXTS.get(_name(action), " ".join([sentences[0], *default]))
    return made


def _whole(action: argparse.Action) -> argparse.Action:
    """Return a copy of an option whose help lists what it may be, where that is much."""
    made = copy.copy(action)
    choices = [str(choice) for choice in action.choices or ()]
    if len(choices) > _MOST_CHOICES:
        made.help = f"{action.help} One of: {', '.join(choices)}."
    return made


def _name(action: argparse.Action) -> str:
    return (spellings(action) or [action.dest])[0].removeprefix("--")
