"""What DeepSpeed makes of a model, made when the trainer is and not when training begins.

Log-probs of a policy and its reference must be computed alike. DeepSpeed's engine casts all weights
to the half precision that its configuration asks for, and under ZeRO-3 partitions them; so this is
done to a model before it is probed, recognised and scored.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def zero_stage(accelerator: Any) -> int | None:
    """Return the stage of DeepSpeed's ZeRO, 0 to 3, that a run has; None without DeepSpeed."""
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    return None if plugin is None else int(plugin.zero_stage)


def ready_for_engine(model: Any, accelerator: Any) -> Any:
    """Return a model cast, placed and, under ZeRO-3, partitioned as DeepSpeed will have it.

    Without DeepSpeed it stays as it is; so does a quantised one, whose weights are not cast.

    Raises:
        ValueError: If DeepSpeed casts what the policy computes, and not what a reference does.
    """
    stage = zero_stage(accelerator)
    if stage is not None:
        _check_casting(accelerator)
    if stage is None or getattr(model, "is_quantized", False):
        return model
    whole = [parameter for parameter in model.parameters() if not hasattr(parameter, "ds_id")]
    dtype = _engine_dtype(accelerator)
    for parameter in whole:
        if dtype is not None and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    if stage < 3:
        return model.to(accelerator.device)
    partitioned = next((it for it in model.parameters() if hasattr(it, "ds_id")), None)
    if partitioned is None:
        import deepspeed

        deepspeed.zero.Init(module=model, config_dict_or_path=_partitioning(accelerator))
    elif whole:
        partitioned.convert_to_zero_parameters(param_list=whole)
    return model


def _check_casting(accelerator: Any) -> None:
    config = accelerator.state.deepspeed_plugin.deepspeed_config
    if config.get("torch_autocast", {}).get("enabled") is True:
        raise ValueError(
            "torch_autocast of DeepSpeed's configuration casts what the policy computes inside its "
            "engine, and not what the reference does: leave it out, and set bf16 there"
        )


@contextmanager
def gathering_on_save(engine: Any) -> Iterator[None]:
    """Inside, DeepSpeed's engine saves whole weights, be they spread over processes.

    One process holds them meanwhile, in the memory of its CPU. None is for no engine.
    """
    zero = None if engine is None else engine._config.zero_config
    asked = None if zero is None else zero.gather_16bit_weights_on_model_save
    if zero is not None:
        zero.gather_16bit_weights_on_model_save = True
    try:
        yield
    finally:
        if zero is not None:
            zero.gather_16bit_weights_on_model_save = asked


def _engine_dtype(accelerator: Any) -> torch.dtype | None:
    """Return the dtype to which DeepSpeed casts all weights; None for that of each."""
    config = accelerator.state.deepspeed_plugin.deepspeed_config
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        enabled = config.get(name, {}).get("enabled", False)
        if enabled == "auto":
            enabled = str(accelerator.mixed_precision) == name
        if enabled:
            return dtype
    return None


def _partitioning(accelerator: Any) -> dict[str, Any]:
    """Return what of DeepSpeed's configuration says how weights are partitioned."""
    config = accelerator.state.deepspeed_plugin.deepspeed_config
    fields = config.get("zero_optimization", {})
    known = {name: value for name, value in fields.items() if value != "auto"}
    return {"train_micro_batch_size_per_gpu": 1, "zero_optimization": known}
