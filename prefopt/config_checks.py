"""What the fields of a ``PreferenceConfig`` may hold: kinds of values, ranges, what goes together.

``PreferenceConfig`` calls these when it is made; each raises a ``ValueError`` that names the field.
"""

import difflib
import json
import math
import os
from dataclasses import fields
from functools import cache
from numbers import Real
from types import NoneType
from typing import Any, get_args, get_type_hints

from transformers import TrainingArguments

from prefopt.engine.attention import check_request
from prefopt.migration import REFUSED, refuse

# Where reference log-probs come from; or, after this, from a saved adapter.
REFERENCES = ["auto", "cached", "live"]
ADAPTER = "adapter:"

# TRL's defaults of a reference that follows the policy.
_MOVING = {"ref_model_mixup_alpha": 0.6, "ref_model_sync_steps": 512}

# Least values, where transformers or torch would complain late and from deep inside, or not at all.
_LEAST: dict[str, float] = {
    "max_length": 2,
    "max_tokens_per_batch": 1,
    "precompute_ref_batch_size": 1,
    "dataset_num_proc": 0,
    "router_aux_loss_coef": 0,
    "learning_rate": 0,
    "logging_steps": 0,
    "weight_decay": 0,
    "max_grad_norm": 0,
    "seed": 0,
    "num_train_epochs": 0,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 0,
}

# What transformers' evaluation loop would do and the exact one of this trainer does not.
_OTHER_EVALUATION = {
    "bf16_full_eval": "evaluation runs in the precision of training",
    "fp16_full_eval": "evaluation runs in the precision of training",
    "batch_eval_metrics": "compute_metrics gets the rewards of the whole set at once",
}


# Before transformers reads the fields -------------------------------------------------------------


def check_types(config: TrainingArguments) -> None:
    """Check that fields of numbers, switches and (of our own) text hold nothing else.

    A number in another form, such as 8.0 for 8, is replaced by what it says.

    Raises:
        ValueError: If one holds something else, is below its least value, or names no file.
    """
    kind: Any = type(config)
    for name, kinds in plain_fields(kind).items():
        value = getattr(config, name)
        if value is not config.__dataclass_fields__[name].default:
            setattr(config, name, _plain_value(name, value, kinds))
    for name in ("deepspeed", "fsdp_config", "accelerator_config"):
        value = getattr(config, name)
        if isinstance(value, str) and value.endswith(".json") and not os.path.isfile(value):
            raise ValueError(f"{name}: there is no file {value}")
    for name, least in _LEAST.items():
        value = getattr(config, name)
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


@cache
def plain_fields(config: type[Any]) -> dict[str, frozenset[type]]:
    """Return the types of every field that takes numbers or switches, or (of our own) text."""
    inherited = {item.name for item in fields(TrainingArguments)}
    found = {}
    for name, hint in get_type_hints(config).items():
        kinds = frozenset(get_args(hint) or (hint,))
        known = {int, float, bool, NoneType} | (set() if name in inherited else {str})
        if name in config.__dataclass_fields__ and kinds <= known:
            found[name] = kinds
    return found


def _plain_value(name: str, value: Any, kinds: frozenset[type]) -> Any:
    """Return a value of one of the types: a whole number is an int too, 0 and 1 are switches."""
    if value is None and NoneType in kinds:
        return None
    if str in kinds and isinstance(value, str | os.PathLike):
        return os.fspath(value)
    if isinstance(value, Real) and bool in kinds and value in (0, 1):
        return bool(value)
    if isinstance(value, Real) and not isinstance(value, bool) and kinds & {int, float}:
        number = float(value)
        is_finite = math.isfinite(number) or (name == "max_grad_norm" and number == math.inf)
        if is_finite and float in kinds:
            return value
        if is_finite and number.is_integer():
            return int(number)
    words = {int: "a whole number", float: "a finite number", bool: "True or False", str: "text"}
    wanted = " or ".join(text for kind, text in words.items() if kind in kinds)
    raise ValueError(f"{name} must be {wanted}, got {value!r:.200}")


def read_json(config: TrainingArguments, name: str) -> None:
    """Replace an object that was written as JSON, as on a command line, by what it says.

    Raises:
        ValueError: If it is no object.
    """
    value = getattr(config, name)
    if isinstance(value, str):
        value = read_object(name, value)
        setattr(config, name, value)
    if value is not None and not isinstance(value, dict):
        raise ValueError(f'{name} must be an object like {{"a": 1}}, got {value!r}')


def read_object(name: str, text: str) -> Any:
    """Return what JSON says.

    Raises:
        ValueError: If it is no JSON; it names the field.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} is not JSON: {error}, in {text!r}") from None


# After it -----------------------------------------------------------------------------------------


def refuse_unsupported(config: TrainingArguments) -> None:
    """Raise for options of TRL and transformers that would do nothing here.

    Raises:
        ValueError: Saying what to use instead.
    """
    refuse({name: getattr(config, name, None) for name in REFUSED}, REFUSED)
    for name, instead in _OTHER_EVALUATION.items():
        if getattr(config, name):
            raise ValueError(f"{name}=True is not supported: {instead}; leave it out")
    if config.train_sampling_strategy not in ("random", "sequential"):
        raise ValueError(
            f"train_sampling_strategy={config.train_sampling_strategy!r} is not supported: rows "
            "are not padded, so grouping them by length gains nothing; use 'random'"
        )


def check_choices(config: Any) -> None:
    """Raise where a field does not hold one of the words that it may.

    Raises:
        ValueError: Listing the words.
    """
    for name in ("layout", "attn_backend"):
        choices: list[str] = config.__dataclass_fields__[name].metadata["choices"]
        _check_choice(name, getattr(config, name), choices)
    if not config.reference.startswith(ADAPTER):
        _check_choice("reference", config.reference, [*REFERENCES, f"{ADAPTER}<path>"])
    elif config.reference == ADAPTER:
        raise ValueError("reference='adapter:' names no adapter: give its folder or id")
    check_request(config.layout, config.attn_backend)
    if os.path.isfile(config.output_dir):
        raise ValueError(f"output_dir {config.output_dir} is a file; name a folder")


def _check_choice(name: str, value: str, choices: list[str]) -> None:
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}{hint}")


def check_moving_reference(config: Any) -> None:
    """Check the options of a reference that follows the policy, and set their defaults.

    Raises:
        ValueError: If one is out of its range, has no effect, or the reference can't move.
    """
    for name, default in _MOVING.items():
        value = getattr(config, name)
        if not config.sync_ref_model and value not in (None, default):
            raise ValueError(f"{name}={value} has no effect without sync_ref_model=True")
        if config.sync_ref_model and value is None:
            setattr(config, name, default)
    if not config.sync_ref_model:
        return
    if config.reference not in ("auto", "live"):
        raise ValueError(
            f"reference={config.reference!r} stays as it is, and sync_ref_model=True moves it; "
            "leave one of them out (precompute_ref_log_probs is reference='cached')"
        )
    alpha, steps = config.ref_model_mixup_alpha, config.ref_model_sync_steps
    if alpha is None or not 0 < alpha <= 1:
        raise ValueError(f"ref_model_mixup_alpha must be above 0 and at most 1, got {alpha}")
    if steps is None or steps < 1:
        raise ValueError(f"ref_model_sync_steps must be at least 1, got {steps}")
