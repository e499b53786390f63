"""Quantised models: how they are asked for, why one cannot be loaded, which can be trained."""

import copy
import inspect
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoConfig
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AutoQuantizationConfig
from transformers.utils.quantization_config import QuantizationConfigMixin

from prefopt.config import PreferenceConfig
from prefopt.engine.quantised import is_quantised, layer_without_gradient

# How the kind is named in a mapping, and what transformers writes there itself.
_NAMES = ("quant_method", "load_in_4bit", "load_in_8bit", "_load_in_4bit", "_load_in_8bit")

# Packages that quantise, where the error of transformers does not name the one to install.
_PACKAGES = {"gptq": "optimum gptqmodel", "awq": "gptqmodel", "sinq": "sinq"}


class QuantiserError(ValueError):
    """A quantiser cannot be had on this machine, or not with this model."""


# Asking for it ------------------------------------------------------------------------------------


def with_quantization(args: PreferenceConfig, quantization_config: Any) -> PreferenceConfig:
    """Return arguments that ask for a quantisation of every model that is loaded by name.

    The policy, a reference by name, and the policy's base when it is loaded again.

    Raises:
        ValueError: If ``model_init_kwargs`` asks for a quantisation too.
    """
    options: Any = args.model_init_kwargs or {}
    if "quantization_config" in options:
        raise ValueError(
            "quantization_config is given twice: to the trainer and in model_init_kwargs"
        )
    args = copy.copy(args)  # the caller's own stay as they are
    args.model_init_kwargs = {**options, "quantization_config": quantization_config}
    return args


def quantization_of(value: Any) -> QuantizationConfigMixin:
    """Return a quantisation that is asked for, which may be a mapping, as JSON and YAML have it.

    Args:
        value: A configuration of transformers, or its fields: ``load_in_4bit``, ``load_in_8bit`` or
            ``quant_method`` says which kind. That of torchao is ``{"quant_method": "torchao",
            "quant_type": "int8_weight_only"}``, with the fields of its ``Int8WeightOnlyConfig``.

    Raises:
        TypeError: If it is neither.
        ValueError: If there is no such kind, or it has no such field.
        ImportError: If the package of that kind is not installed.
    """
    if isinstance(value, QuantizationConfigMixin):
        return value
    if not isinstance(value, Mapping):
        raise TypeError(
            "quantization_config must be a quantisation of transformers, such as "
            f"BitsAndBytesConfig(load_in_4bit=True), or a mapping of its fields, got {value!r}"
        )
    fields = dict(value)
    kind = _kind_of(fields)
    if kind == "torchao":
        fields = _with_torchao_type(fields)
    try:
        config = AutoQuantizationConfig.from_dict(fields)
    except (TypeError, KeyError, AssertionError) as error:
        said = f"{type(error).__name__}: {error}"
        raise ValueError(f"quantization_config {dict(value)!r} cannot be read: {said}") from None
    known = set(inspect.signature(type(config).__init__).parameters) - {"self", "kwargs"}
    unknown = sorted(fields.keys() - known - config.to_dict().keys() - set(_NAMES))
    if unknown:
        raise ValueError(
            f"quantization_config has no field {unknown[0]!r}; a {type(config).__name__} has "
            f"{', '.join(sorted(known))}"
        )
    return config


def _kind_of(fields: Mapping[str, Any]) -> str:
    """Return the name of a kind of quantisation.

    Raises:
        ValueError: If no kind is named, or there is none of that name.
    """
    if fields.get("load_in_4bit") or fields.get("load_in_8bit"):
        return "bitsandbytes"
    kind = fields.get("quant_method")
    if kind not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        known = ", ".join(name for name in AUTO_QUANTIZATION_CONFIG_MAPPING if "bits" not in name)
        raise ValueError(
            f"quantization_config {dict(fields)!r} must say how to quantise: load_in_4bit or "
            f"load_in_8bit (bitsandbytes), or a quant_method of {known}"
        )
    return str(kind)


def _with_torchao_type(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields in which a type of torchao by name stands as transformers reads it.

    Raises:
        ImportError: If torchao is not installed.
        ValueError: If there is no type of that name, or it has no such field.
    """
    name = fields.get("quant_type")
    if not isinstance(name, str):
        return dict(fields)
    try:
        import torchao.quantization as kinds
        from torchao.core.config import config_to_dict
    except ImportError:
        raise ImportError("quant_method 'torchao' needs torchao: pip install torchao") from None
    from transformers import TorchAoConfig

    called = name if name.endswith("Config") else f"{name.title().replace('_', '')}Config"
    kind = getattr(kinds, called, None)
    if kind is None:
        known = ", ".join(sorted(it for it in dir(kinds) if it.endswith("WeightOnlyConfig")))
        raise ValueError(f"torchao has no quant_type {name!r}; it has {known} and others")
    outer = set(inspect.signature(TorchAoConfig.__init__).parameters) | {"quant_method"}
    own = {key: value for key, value in fields.items() if key not in outer}
    try:
        made = kind(**own)
    except TypeError as error:
        raise ValueError(f"quant_type {name!r} of torchao: {error}") from None
    others = {key: value for key, value in fields.items() if key in outer}
    return others | {"quant_type": {"default": config_to_dict(made)}}


# Loading it ---------------------------------------------------------------------------------------


@contextmanager
def quantiser_explained(name: str, options: Mapping[str, Any]) -> Iterator[None]:
    """Let errors of quantisers say in one sentence what could not be loaded, and why.

    Args:
        name: Of the model, which is loaded inside.
        options: Of ``from_pretrained``.

    Raises:
        ImportError: If a package is missing.
        QuantiserError: If the quantiser cannot be had on this machine or with this model.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        kind = _quantiser_of(name, options)
        if kind is None or isinstance(error, OSError):
            raise
        said = _cause(error)
        if "pre_quantized=False" in said:
            said = f"{kind} cannot quantise while it loads; give a checkpoint that it quantised"
        missing = isinstance(error, ImportError)
        if missing and "install" not in said:
            said += f"; pip install {_PACKAGES.get(kind, kind)}"
        raise (ImportError if missing else QuantiserError)(
            f"can't load the model {name} quantised by {kind}: {said}"
        ) from error


def check_as_asked(name: str, options: Mapping[str, Any], model: Any) -> None:
    """Raise where a checkpoint that is quantised already has other bits than were asked for.

    transformers takes the checkpoint's, and warns.

    Raises:
        QuantiserError: If that is so.
    """
    asked, found = options.get("quantization_config"), None
    if asked is not None:
        found = getattr(model.config, "quantization_config", None)
    for bits in ("load_in_4bit", "load_in_8bit") if found is not None else ():
        if getattr(asked, bits, None) != getattr(found, bits, None):
            raise QuantiserError(
                f"{bits}={getattr(asked, bits, None)} was asked for, but the checkpoint {name} is "
                f"quantised already, with {bits}={getattr(found, bits, None)}; leave "
                "quantization_config out, or give the model before it was quantised"
            )


def leave_file(model: Any) -> None:
    """Copy the weights that were not quantised out of the file that the others were read from.

    Such a weight is a view of the file where it has the file's dtype, and keeps all of it in
    memory: of SmolLM2-135M 0.3 GiB that are read no more, nearly what four bits save.

    Args:
        model: A model that was just loaded; nothing changes if it was quantised before, or not.
    """
    quantiser = getattr(model, "hf_quantizer", None)
    if quantiser is None or quantiser.pre_quantized:
        return
    for weight in (*model.parameters(), *model.buffers()):
        if weight.device.type == "cpu" and not is_quantised(weight):
            weight.data = weight.data.clone()


def _quantiser_of(name: str, options: Mapping[str, Any]) -> str | None:
    """Return the name of what quantises a model that is loaded; None for nothing."""
    config = options.get("quantization_config")
    if config is None:
        places = ("revision", "subfolder", "cache_dir", "token", "trust_remote_code")
        known = {key: options[key] for key in places if key in options}
        try:
            config = getattr(AutoConfig.from_pretrained(name, **known), "quantization_config", None)
        except (OSError, ValueError):
            return None
    return None if config is None else _method(config)


def _method(config: Any) -> str:
    fields = config if isinstance(config, Mapping) else vars(config)
    method = fields.get("quant_method")
    return str(getattr(method, "value", method) or "bitsandbytes")


def _cause(error: Exception) -> str:
    """Return what a quantiser said; transformers writes that into a report and raises another."""
    said = str(error)
    for frame, _ in traceback.walk_tb(error.__traceback__):
        report = getattr(frame.f_locals.get("loading_info"), "conversion_errors", None)
        if report:
            lines = [line.strip() for line in next(iter(report.values())).splitlines()]
            places = [i for i, line in enumerate(lines) if line.startswith("Error: ")]
            said = lines[places[0] - 1] if places and places[0] else lines[-1]
    return " ".join(said.split())[:300]


# Training it --------------------------------------------------------------------------------------


def check_quantised(model: Any) -> None:
    """Raise where a quantised model cannot be trained.

    Raises:
        ValueError: If it has no adapter, or no gradient reaches what lies below its layers.
    """
    quantiser = getattr(model, "hf_quantizer", None)
    config = getattr(model.config, "quantization_config", None)
    names = [name for name, weight in model.named_parameters() if is_quantised(weight)]
    if not names and not getattr(model, "is_quantized", False):
        return
    how = f" by {_method(config)}" if config is not None else ""
    if quantiser is not None and not (
        quantiser.is_trainable or getattr(quantiser, "is_qat_trainable", False)
    ):
        raise ValueError(
            f"the model is quantised{how} in a way that transformers cannot train through, with an "
            f"adapter neither{_torchao_hint(config)}; load it with a quantiser that can, such as "
            "load_in_4bit=True"
        )
    with_adapter = getattr(model, "peft_config", None)
    if not with_adapter and not getattr(quantiser, "is_qat_trainable", False):
        where = f", {names[0]} among others" if names else ""
        raise ValueError(
            f"the weights of the model are quantised{how}{where}, and no step of training can "
            "change them; train an adapter on it: peft_config=LoraConfig(...), or --use_peft on "
            "the command line, or load the model without quantisation"
        )
    wrong = layer_without_gradient(model)
    if wrong is not None:
        raise ValueError(
            f"the model is quantised{how} so that the gradient through its layers is wrong, the "
            f"first is {wrong}: what lies below them would not learn; take a kind that rounds "
            "weights only (torchao: Int8WeightOnlyConfig; bitsandbytes: load_in_4bit=True)"
        )


def _torchao_hint(config: Any) -> str:
    kind = getattr(config, "quant_type", None)
    return "" if kind is None else f" ({type(kind).__name__}: it trains through 8 bits only)"


def check_placed(model: Any) -> None:
    """Raise where weights that are to be trained, or that others are trained below, are elsewhere.

    Accelerate loads weights that do not fit onto the GPU from memory or disk for each forward pass;
    no gradient reaches them, and what an optimiser changes is not what is loaded next.

    Raises:
        ValueError: If there are such weights, or some were never loaded.
    """
    from transformers.integrations import is_deepspeed_zero3_enabled, is_fsdp_enabled

    away = [name for name, module in model.named_modules() if _is_offloaded(module)]
    if away:
        places = getattr(model, "hf_device_map", None) or {}
        where = sorted({str(place) for place in places.values()} & {"cpu", "disk"})
        raise ValueError(
            f"{len(away)} layers of the model are offloaded{' to ' if where else ''}"
            f"{' and '.join(where)}, the first is {away[0]}: they would stay untrained; load it "
            "whole onto one device (without device_map='auto'), quantised if it does not fit "
            "(load_in_4bit=True), or sharded over several processes (FSDP, DeepSpeed)"
        )
    if is_fsdp_enabled() or is_deepspeed_zero3_enabled():  # which load them later
        return
    empty = [name for name, weight in model.named_parameters() if weight.is_meta]
    if empty:
        raise ValueError(
            f"{len(empty)} weights of the model hold no numbers (device meta), the first is "
            f"{empty[0]}; load it whole, without device_map"
        )


def _is_offloaded(module: Any) -> bool:
    """Whether accelerate brings the weights of a module in for each forward pass."""
    hook = getattr(module, "_hf_hook", None)
    return any(getattr(one, "offload", False) is True for one in getattr(hook, "hooks", [hook]))
