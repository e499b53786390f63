"""What the fields of a ``PreferenceConfig`` may hold: kinds of values, ranges, what goes together.

``PreferenceConfig`` calls these when it is made; each raises a ``ValueError`` that names the field.
"""

import difflib
import json
import math
import os
import warnings
from dataclasses import fields
from functools import cache
from numbers import Real
from types import NoneType
from typing import Any, NamedTuple, get_args, get_type_hints

from accelerate import ParallelismConfig
from transformers import TrainingArguments

from prefopt.engine.attention import check_request
from prefopt.migration import REFUSED, refuse

# Where reference log-probs come from; or, after this, from a saved adapter.
REFERENCES = ["auto", "cached", "live"]
ADAPTER = "adapter:"

# TRL's defaults of a reference that follows the policy.
_MOVING = {"ref_model_mixup_alpha": 0.6, "ref_model_sync_steps": 512}


# Sizes of accelerate's ``ParallelismConfig`` by which one row is spread over processes.
_ROWS_IN_PARTS = {"tp_size": "tensor", "cp_size": "context", "sp_size": "sequence"}
SPREAD_INSTEAD = "use FSDP2 or DeepSpeed's ZeRO-3, which spread weights and no rows"


class _Range(NamedTuple):
    """Numbers that a field may hold.

    Attributes:
        least: The least.
        most: The largest.
        above: Whether the least itself is left out.
        below: Whether the largest itself is left out.
        beside: A number outside that has a meaning of its own.
        whole: Whether it is whole from 1 on; below 1 it is a share.
        hint: What to do instead.
    """

    least: float
    most: float = math.inf
    above: bool = False
    below: bool = False
    beside: float | None = None
    whole: bool = False
    hint: str = ""

    def holds(self, value: float) -> bool:
        """Whether a value is one of these numbers."""
        if value == self.beside:
            return True
        at_least = value > self.least if self.above else value >= self.least
        at_most = value < self.most if self.below else value <= self.most
        return at_least and at_most and (not self.whole or value < 1 or value == int(value))

    def __str__(self) -> str:
        words = f"{'above' if self.above else 'at least'} {self.least}"
        if self.most < math.inf:
            words += f" and {'below' if self.below else 'at most'} {self.most}"
        if self.whole:
            words += ", and whole from 1 on (below 1, it is a share of all steps)"
        if self.beside is not None:
            words += f", or {self.beside} for none"
        return words


# Where transformers or torch would complain late and from deep inside, or not at all.
_COUNT = _Range(1)
_EVERY = _Range(0, above=True, whole=True)
_SEED = _Range(0, 2**32 - 1)
_WORKERS = _Range(0, 1024)
_RANGES = {
    "learning_rate": _Range(0),
    "weight_decay": _Range(0),
    "adam_beta1": _Range(0, 1, below=True),
    "adam_beta2": _Range(0, 1, below=True),
    "adam_epsilon": _Range(0, above=True),
    "max_grad_norm": _Range(0, hint="0 and inf clip nothing"),
    "warmup_steps": _Range(0, whole=True),
    "num_train_epochs": _Range(0, above=True),
    "max_steps": _Range(1, beside=-1),
    "per_device_train_batch_size": _COUNT,
    "per_device_eval_batch_size": _COUNT,
    "gradient_accumulation_steps": _COUNT,
    "eval_accumulation_steps": _COUNT,
    "torch_empty_cache_steps": _COUNT,
    "logging_steps": _EVERY._replace(hint="logging_strategy='no' logs nothing"),
    "eval_steps": _EVERY._replace(hint="eval_strategy='no' evaluates at no step"),
    "save_steps": _EVERY._replace(hint="save_strategy='no' saves no checkpoint"),
    "save_total_limit": _COUNT._replace(hint="None keeps all checkpoints"),
    "eval_delay": _Range(0),
    "label_smoothing_factor": _Range(0, 1, below=True),
    "neftune_noise_alpha": _Range(0),
    "seed": _SEED,
    "data_seed": _SEED,
    "dataloader_num_workers": _WORKERS,
    "dataset_num_proc": _WORKERS,
    "dataloader_prefetch_factor": _COUNT,
    "ddp_bucket_cap_mb": _COUNT,
    "ddp_timeout": _Range(1, 10**9),
    "local_rank": _Range(-1),
    "discopop_tau": _Range(0, above=True),
    "beta_final": _Range(0, above=True),
    "max_length": _Range(2),
    "sample_every": _COUNT,
    "sample_tokens": _COUNT,
    "max_tokens_per_batch": _COUNT,
    "precompute_ref_batch_size": _COUNT,
    "router_aux_loss_coef": _Range(0),
    "non_finite_steps": _Range(0),
    "profile_steps": _Range(0),
}
# What torch computes with: float32 and int64.
_LARGEST = {float: 3.4e38, int: 2**63 - 1}

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
    for name, numbers in _RANGES.items():
        value = getattr(config, name)
        if value is not None and not numbers.holds(value):
            hint = f"; {numbers.hint}" if numbers.hint else ""
            raise ValueError(f"{name} must be {numbers}, got {value}{hint}")


@cache
def plain_fields(config: type[Any]) -> dict[str, frozenset[type]]:
    """Return the types of every field that takes numbers or switches, or (of our own) text."""
    inherited = {item.name for item in fields(TrainingArguments)}
    hints, found = get_type_hints(config), {}
    for name in (item.name for item in fields(config)):  # the class variables are left out
        kinds = frozenset(get_args(hints[name]) or (hints[name],))
        known = {int, float, bool, NoneType} | (set() if name in inherited else {str})
        if kinds <= known:
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
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if is_number and kinds & {int, float}:
        kind = float if float in kinds else int
        if abs(value) <= _LARGEST[kind] and (kind is float or value == int(value)):
            return value if kind is float else int(value)
        if value == math.inf and name == "max_grad_norm":
            return value
        if _LARGEST[kind] < abs(value) < math.inf:
            raise ValueError(f"{name} must be at most {_LARGEST[kind]:.3g}, got {value!r:.200}")
    words = {int: "a whole number", float: "a finite number", bool: "True or False", str: "text"}
    wanted = " or ".join(text for kind, text in words.items() if kind in kinds)
    hint = f"; {_RANGES[name].hint}" if name in _RANGES and _RANGES[name].hint else ""
    raise ValueError(f"{name} must be {wanted}, got {value!r:.200}{hint}")


def check_schedule(config: TrainingArguments) -> None:
    """Check that what is to be kept or reached in a run is something that happens in it.

    Raises:
        ValueError: Naming the fields that do not go together.
    """
    saves, evaluates = (
        str(getattr(strategy, "value", strategy))
        for strategy in (config.save_strategy, config.eval_strategy)
    )
    keeps_best = "load_best_model_at_end=True" if config.load_best_model_at_end else ""
    keeps_best = keeps_best or ("save_strategy='best'" if saves == "best" else "")
    if keeps_best and evaluates == "no":
        raise ValueError(
            f"{keeps_best} needs evaluations to know the best model, and eval_strategy='no' makes "
            "none: set eval_strategy to 'steps' or 'epoch', and give data for it"
        )
    if config.load_best_model_at_end and saves not in ("best", evaluates):
        raise ValueError(
            "load_best_model_at_end=True needs a checkpoint of each evaluation: set save_strategy "
            f"({saves!r}) and eval_strategy ({evaluates!r}) to the same, or save_strategy to 'best'"
        )
    if 1 <= config.max_steps <= config.warmup_steps:
        warnings.warn(
            f"warmup_steps={config.warmup_steps} is not below max_steps={config.max_steps}: the "
            "learning rate never gets to what was asked for; lower warmup_steps",
            stacklevel=4,
        )


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


def read_parallelism(config: TrainingArguments) -> None:
    """Replace ``parallelism_config`` that was written as JSON or a dictionary by accelerate's.

    Raises:
        ValueError: If it is not one, or asks for what spreads one row over several processes.
    """
    if not isinstance(config.parallelism_config, ParallelismConfig | None):
        read_json(config, "parallelism_config")
        config.parallelism_config = _parallelism(config.parallelism_config)
    if config.parallelism_config is not None:
        refuse_rows_in_parts(config.parallelism_config)


def _parallelism(given: dict[str, Any]) -> ParallelismConfig:
    known = [item.name for item in fields(ParallelismConfig) if item.init]
    for name, size in given.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(known)}"
            raise ValueError(f"parallelism_config has no {name!r}{hint}")
        if name.endswith("_size") and type(size) is not int:
            raise ValueError(f"parallelism_config: {name} must be a whole number, got {size!r}")
    try:
        return ParallelismConfig(**given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"parallelism_config={given}: {error}") from None


def refuse_rows_in_parts(parallelism: Any) -> None:
    """Raise for kinds of parallelism in which several processes hold one row together.

    Raises:
        ValueError: Saying what to use instead.
    """
    for name, kind in _ROWS_IN_PARTS.items():
        size = getattr(parallelism, name, None) or 1
        if size > 1:
            raise ValueError(
                f"{name}={size} asks for {kind} parallelism, in which {size} processes hold one "
                "row together, and prefopt gives each process rows of its own: it is not "
                f"supported; {SPREAD_INSTEAD}"
            )


def check_options_of_optimiser(config: TrainingArguments) -> None:
    """Check what is handed on to the optimiser and the schedule of its learning rate.

    Raises:
        ValueError: If one can't be read, or holds a number that is not finite.
    """
    given = dict(config.lr_scheduler_kwargs or {})
    for part in (config.optim_args or "").replace(" ", "").split(",") if config.optim_args else ():
        name, is_given, value = part.partition("=")
        if not name or not is_given:
            raise ValueError(
                f"optim_args must be like 'name=value,name=value', got {config.optim_args!r}"
            )
        given[name] = value
    for name, value in given.items():
        try:
            number = float(value)
        except (TypeError, ValueError):  # a word, or several values
            continue
        if not math.isfinite(number):
            field = "optim_args" if name not in (config.lr_scheduler_kwargs or {}) else ""
            field = field or "lr_scheduler_kwargs"
            raise ValueError(f"{field}: {name} must be a finite number, got {value}")


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
            "are not padded, so grouping them by length gains nothing, and processes get rows of "
            "as many tokens by themselves; use 'random'"
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
