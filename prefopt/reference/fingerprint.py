"""What a reference is, as a digest: references that may score differently have different digests.

It is made of content: every weight, what is quantised how, the active adapters, the precision of
the computation, tables that were rounded with the weights (``model.bfloat16()`` rounds the
frequencies of rotary positions, loading in bfloat16 does not), and the configuration but for fields
that are known to change no score. Paths,
seeds, optimisers and losses do not change it. A policy whose adapter is switched off has the digest
of its base model, so neither rank nor seed of an adapter changes it.
"""

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b, sha256
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from prefopt.engine.partitioned import is_partitioned, whole, whole_shape
from prefopt.engine.probe import inside_peft
from prefopt.engine.quantised import inner_tensors, keep_trainable
from prefopt.reference.adapters import active_adapters, adapter_containers, place_of_adapter

# Raised when the engine computes other numbers for the same model and text.
ENGINE_VERSION = 2

# Bytes digested at a time: large tensors are cut, so that all cores have work.
_BLOCK_BYTES = 64 << 20

# Configuration that changes no score of a given text; any other field may change some.
_IGNORED_CONFIG = {
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_attn_implementation_internal",
    "_commit_hash",
    "_experts_implementation",
    "_name_or_path",
    "architectures",
    "attn_implementation",
    "auto_map",
    "bos_token_id",
    "chunk_size_feed_forward",
    "decoder_start_token_id",
    "dtype",
    "eos_token_id",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "gradient_checkpointing",
    "id2label",
    "initializer_range",
    "label2id",
    "name_or_path",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "pad_token_id",
    "prefix",
    "problem_type",
    "pruned_heads",
    "return_dict",
    "router_aux_loss_coef",
    "sep_token_id",
    "task_specific_params",
    "tie_word_embeddings",  # tied weights are digested under both their names
    "tokenizer_class",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "quantization_config",  # digested by itself
}
_DROPOUT = ("dropout", "_pdrop", "drop_rate", "droprate")

# Fields of a peft configuration that say where an adapter came from, not what it computes.
_IGNORED_ADAPTER = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "init_lora_weights",
    "lora_dropout",
    "peft_version",
    "revision",
    "runtime_config",
    "task_type",
}


class Fingerprint(NamedTuple):
    """What a reference is.

    Attributes:
        digest: Equal for references that give equal scores; 32 hexadecimal digits.
        facts: What went into it, for people.
    """

    digest: str
    facts: dict[str, Any]


def fingerprint_of(
    model: Any, *, weights: str | None = None, adapter_off: bool = False, autocast: str = "none"
) -> Fingerprint:
    """Return the fingerprint of a model as it is now.

    Args:
        model: A ``PreTrainedModel`` or ``PeftModel``, not sharded but perhaps partitioned by
            DeepSpeed: then every process must ask, and one weight at a time is whole.
        weights: Digest of its weights if it is known (``weights_digest``).
        adapter_off: Whether the base model is meant, without the active adapters.
        autocast: The dtype to which computation is cast, or ``"none"``.
    """
    base = inside_peft(model)
    parts: dict[str, Any] = {
        "engine": ENGINE_VERSION,
        # The module of code that came with a checkpoint is named after its content.
        "class": f"{type(base).__module__}.{type(base).__qualname__}",
        "weights": weights or weights_digest(model, adapter_off),
        "config": _digest_json(_score_fields(base.config.to_dict())),
        "quantization": quantization_facts(base),
        "adapters": [] if adapter_off else adapter_facts(model),
        "scalings": _digest_json({} if adapter_off else _scalings(model)),
        "autocast": autocast,
    }
    if rounded := _rounded_buffers(base):
        parts["buffers"] = rounded
    facts = parts | {
        "model": type(base).__name__,
        "model_type": getattr(base.config, "model_type", ""),
        "name_or_path": getattr(base.config, "_name_or_path", ""),
        "dtype": str(getattr(base, "dtype", "")).removeprefix("torch."),
        "parameters": sum(whole_shape(parameter).numel() for parameter in base.parameters()),
    }
    return Fingerprint(_digest_json(parts), json.loads(as_json(facts)))


# Weights ------------------------------------------------------------------------------------------


def weights_digest(model: Any, adapter_off: bool = False) -> str:
    """Return a digest of all weights of a model, not sharded: names, dtypes, shapes and values.

    About a second for a gigabyte and core. Tied weights are digested once; what belongs to adapters
    is left out if ``adapter_off``.

    Raises:
        ValueError: If 4-bit weights were packed for inference on CPU: bitsandbytes (0.50) spoils
            them when they are listed.
    """
    keep_trainable(model)
    lines = set()
    known: dict[Any, str] = {}
    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
        for name, tensor in _named_tensors(model, adapter_off):
            place = _place(tensor)
            if place not in known or not tensor.numel():
                with whole([tensor]):
                    known[place] = _tensor_digest(tensor.detach(), pool)
            line = (name, str(tensor.dtype), list(whole_shape(tensor)), known[place])
            lines.add(json.dumps(line))
    return sha256("\n".join(sorted(lines)).encode()).hexdigest()[:32]


def _rounded_buffers(model: nn.Module) -> dict[str, str]:
    """Return digests of the buffers in half precision that are not saved with the weights.

    In float32 they follow from the configuration, to the rounding of the device.
    """
    with ThreadPoolExecutor(1) as pool:
        return {
            f"{path}.{name}": f"{buffer.dtype} {_tensor_digest(buffer, pool)}"
            for path, module in model.named_modules()
            for name in sorted(module._non_persistent_buffers_set)
            if isinstance(buffer := module._buffers[name], Tensor)
            and buffer.dtype in (torch.float16, torch.bfloat16)
        }


def _named_tensors(model: Any, adapter_off: bool) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of a model under the names that they have without peft.

    Adapters that are not active are left out; those that are go by their place among the active.
    """
    known = set(getattr(model, "peft_config", None) or ())
    active = [] if adapter_off else active_adapters(model)
    containers = adapter_containers(model) if known else set()
    # Detached, a partitioned weight could not be gathered any more.
    for name, tensor in model.state_dict(keep_vars=is_partitioned(model)).items():
        parts = name.split(".")
        place = place_of_adapter(parts, known, containers)
        if place is not None:
            adapter = parts[place]
            if adapter not in active:
                continue
            parts[place] = f"adapter{active.index(adapter)}"
        if known:
            name = ".".join(parts).removeprefix("base_model.model.")
            for wrapping in (".token_adapter.base_layer.", ".base_layer.", ".original_module."):
                name = name.replace(wrapping, ".")
        if isinstance(tensor, Tensor):
            yield from _plain_tensors(name, tensor)


def _plain_tensors(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield a tensor, or what it is made of: numbers, their scales, and how these are read."""
    parts = inner_tensors(tensor)
    if not parts:
        yield name, tensor
        return
    how = f"{type(tensor).__name__} {tensor.dtype} {as_json(parts.pop(''))}"
    yield f"{name} {how}", torch.empty(0)
    for part, inner in parts.items():
        if isinstance(inner, Tensor):  # None where there is none, such as a zero point
            yield from _plain_tensors(f"{name}.{part}", inner.detach())


def _place(tensor: Tensor) -> Any:
    """Return what is equal for names of one weight, and for no others."""
    if hasattr(tensor, "ds_id"):
        return tensor.ds_id
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())


def _tensor_digest(tensor: Tensor, pool: ThreadPoolExecutor) -> str:
    """Return a digest of the values of a tensor, whatever device they lie on."""
    flat = tensor.contiguous().view(-1).view(torch.uint8) if tensor.numel() else tensor.view(-1)
    blocks = [flat[start : start + _BLOCK_BYTES] for start in range(0, flat.numel(), _BLOCK_BYTES)]
    digests = pool.map(lambda block: blake2b(block.cpu().numpy()).digest(), blocks)
    return blake2b(b"".join(digests), digest_size=16).hexdigest()


# The rest -----------------------------------------------------------------------------------------


def _score_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a configuration that may change scores, nested ones too."""
    return {
        name: _score_fields(value) if isinstance(value, Mapping) else value
        for name, value in fields.items()
        if name not in _IGNORED_CONFIG and not name.endswith(_DROPOUT)
    }


def quantization_facts(model: Any) -> Any:
    """Return how a model is quantised; None if it is not."""
    config = getattr(model.config, "quantization_config", None)
    if config is None:
        return None
    return config if isinstance(config, dict) else config.to_dict()


def adapter_facts(model: Any) -> list[dict[str, Any]]:
    """Return the configurations of the active adapters of a peft model."""
    return [
        {
            field: value
            for field, value in model.peft_config[name].to_dict().items()
            if field not in _IGNORED_ADAPTER
        }
        for name in active_adapters(model)
    ]


def _scalings(model: Any) -> dict[str, list[float]]:
    """Return by how much each layer weights the active adapters now: it can be set by hand."""
    active = active_adapters(model)
    base = inside_peft(model)
    scalings = {}
    for name, layer in base.named_modules() if active else ():
        own = getattr(layer, "scaling", None)
        if isinstance(own, dict) and not own.keys().isdisjoint(active):
            off = getattr(layer, "disable_adapters", False)
            scalings[name] = [0.0 if off else own.get(adapter, 0.0) for adapter in active]
    return scalings


def _digest_json(value: Any) -> str:
    return blake2b(as_json(value).encode(), digest_size=16).hexdigest()


def as_json(value: Any) -> str:
    """Return a value as JSON, the same for equal values."""
    return json.dumps(value, sort_keys=True, default=_plain)


def _plain(value: Any) -> Any:
    """Return what JSON can hold for what it cannot: sets in order, dtypes and enums by name."""
    if isinstance(value, set | frozenset):
        return sorted(str(item) for item in value)
    return str(value)
