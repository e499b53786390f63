"""The rows of the launch matrix: what starts the processes, and what shows that it did."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.conftest import ROOT
from tests.launches.cells import CELLS, REFUSALS, SPREAD
from tests.processes import environment, torchrun

# Each configuration that users are given to copy is that of a row.
CONFIGURATIONS = ROOT / "docs" / "examples" / "accelerate"


@dataclass(frozen=True)
class Engine:
    """A way to launch training.

    Attributes:
        name: Of the row.
        processes: How many are started.
        configuration: A file of ``CONFIGURATIONS`` for ``accelerate launch``; None for no launcher.
        lora: Whether an adapter is trained, and not the whole model.
        by_path: Whether the model is loaded by its path, as this launch loads it, and not given.
        is_sharded: Whether a trainer's weights are spread over its processes, seen while it trains;
            None where each process must have all of them.
        options: Training arguments of this row.
        environment: Variables of this row.
        cells: Names of its columns.
        refusals: Names of what is refused here, run beside its columns.
    """

    name: str
    processes: int = 2
    configuration: str | None = None
    lora: bool = False
    by_path: bool = False
    is_sharded: Callable[[Any], bool] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    cells: tuple[str, ...] = tuple(CELLS)
    refusals: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name

    @property
    def started_with(self) -> "list[Engine]":
        """The rows of the same launch, this one among them: starting takes as long as training."""
        every = (ENGINES | GPU_ENGINES).values()
        same = ("processes", "configuration", "environment")
        return [
            other
            for other in every
            if all(getattr(other, part) == getattr(self, part) for part in same)
        ]

    def command(self) -> list[str]:
        """Return what starts a Python script."""
        return torchrun(self.processes) if self.configuration else [sys.executable]

    def variables(self) -> dict[str, str]:
        """Return the environment that ``accelerate launch`` would make of the configuration."""
        made = _of_accelerate(self.configuration) if self.configuration else os.environ
        return environment(made) | self.environment


def _of_accelerate(configuration: str) -> dict[str, str]:
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    file = str(CONFIGURATIONS / configuration)
    words = ["--config_file", file, "--main_process_port", "0", "script.py"]
    arguments, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    if arguments.use_deepspeed:
        fields = ",".join(defaults.deepspeed_config)  # as accelerate's `launch_command` does
        arguments.deepspeed_fields_from_accelerate_config = fields
        return dict(prepare_deepspeed_cmd_env(arguments)[1])
    return dict(prepare_multi_gpu_env(arguments))


def are_dtensors(trainer: Any) -> bool:
    """Whether each process holds a part of every weight, and none holds all (FSDP2)."""
    import torch
    from torch.distributed.tensor import DTensor

    weights = list(trainer.model.parameters())
    parts = [weight for weight in weights if isinstance(weight, DTensor)]
    held = sum(weight.to_local().numel() for weight in parts)
    whole = sum(weight.numel() for weight in weights)
    share = whole / torch.distributed.get_world_size()
    return len(parts) == len(weights) and held < 1.5 * share


def are_partitioned(trainer: Any) -> bool:
    """Whether each process holds a part of every weight, and none holds all (ZeRO-3)."""
    weights = list(trainer.model.parameters())
    parts = [weight.ds_tensor for weight in weights if hasattr(weight, "ds_id")]
    held = sum(part.numel() for part in parts)
    return len(parts) == len(weights) and held < 0.75 * sum(it.ds_numel for it in weights)


def use_deepspeed_without_building() -> None:
    """Let DeepSpeed leave out what it would compile for minutes: torch's gloo does the same."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def apply_fsdp_on_cpus() -> None:
    """Let accelerate shard on CPUs too, where it leaves FSDP as plain data parallelism."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    original = AcceleratorState.__init__

    def initialise(self: Any, *args: Any, **kwargs: Any) -> None:
        # Its list of the types to which it applies FSDP lacks MULTI_CPU.
        kind = PartialState._shared_state.get("distributed_type")
        asked = kwargs.get("fsdp_plugin") is not None and "LEAVE_CPUS" not in os.environ
        if kind is DistributedType.MULTI_CPU and asked:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        original(self, *args, **kwargs)

    AcceleratorState.__init__ = initialise


# With an adapter, what does not depend on which weights are trained is tried once or twice.
LORA_CELLS = (
    "pairwise",
    "unpaired",
    "live",
    "accumulated batch-dependent",
    "uneven unpaired",
    "resumed",
)
SPREAD_LORA_CELLS = (*LORA_CELLS, *(name for name in SPREAD if "adapter" in name), "bfloat16 live")
FULL_CELLS = (*CELLS, *(name for name in SPREAD if "adapter" not in name))
ALONE = Engine("alone", 1, cells=FULL_CELLS)
ALONE_LORA = Engine("alone-lora", 1, lora=True, cells=SPREAD_LORA_CELLS)

# Of DeepSpeed, which looks for GPUs first.
ON_CPU = {"DS_ACCELERATOR": "cpu"}
ZERO_3: dict[str, Any] = {
    "configuration": "zero3.yaml",
    "is_sharded": are_partitioned,
    "environment": ON_CPU,
}
# DeepSpeed's are the slowest rows: what two columns show together is not shown apart as well.
ZERO_CELLS = tuple(
    name
    for name in CELLS
    if name not in ("running means", "live unpaired", "accumulated", "uneven unpaired")
)
LOADED_WHOLE = {"environment": ON_CPU | {"ACCELERATE_DEEPSPEED_ZERO3_INIT": "false"}}
ZERO_3_CELLS = (
    *ZERO_CELLS,
    "tied",
    "padded",
    "gradient checkpointing",
    "other reference",
    "other reference live",
)
ZERO_3_LORA_CELLS = (*LORA_CELLS, "begun adapter", "begun adapter live")
ZERO_3_REFUSALS = ("follows the policy", "all predictions")

ENGINES = {
    engine.name: engine
    for engine in (
        ALONE,
        ALONE_LORA,
        Engine("ddp", configuration="ddp.yaml"),
        Engine("ddp-lora", configuration="ddp.yaml", lora=True, cells=LORA_CELLS),
        Engine(
            "fsdp2",
            configuration="fsdp2.yaml",
            is_sharded=are_dtensors,
            cells=FULL_CELLS,
            refusals=tuple(REFUSALS),
        ),
        Engine(
            "fsdp2-lora",
            configuration="fsdp2.yaml",
            lora=True,
            is_sharded=are_dtensors,
            cells=SPREAD_LORA_CELLS,
        ),
        Engine("zero1", configuration="zero1.yaml", cells=LORA_CELLS, environment=ON_CPU),
        Engine("zero2", configuration="zero2.yaml", cells=ZERO_CELLS, environment=ON_CPU),
        Engine("zero3", by_path=True, cells=ZERO_3_CELLS, refusals=ZERO_3_REFUSALS, **ZERO_3),
        Engine("zero3-lora", by_path=True, lora=True, cells=ZERO_3_LORA_CELLS, **ZERO_3),
        Engine("zero3-loaded-whole", cells=("unpaired", "live"), **(ZERO_3 | LOADED_WHOLE)),
    )
}

# One GPU, and FSDP2 on it in one process.
_ON_GPU = {
    "options": {"use_cpu": False},
    "environment": {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0")},
    "cells": ("bfloat16", "bfloat16 live"),
}
GPU_ALONE = Engine("gpu", 1, **_ON_GPU)
GPU_FSDP2 = Engine("gpu-fsdp2", 1, "fsdp2.yaml", is_sharded=are_dtensors, **_ON_GPU)
GPU_ENGINES = {engine.name: engine for engine in (GPU_ALONE, GPU_FSDP2)}
