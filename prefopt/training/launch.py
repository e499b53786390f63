"""How a run is launched: its processes, and whether each has all weights."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator

from prefopt.config import PreferenceConfig
from prefopt.reference.processes import Processes
from prefopt.training.waiting import meet
from prefopt.training.zero import ready_for_engine, zero_stage


@dataclass(frozen=True)
class Launch:
    """How a run is launched, as far as scoring depends on it.

    Attributes:
        accelerator: Prepares models and casts what they compute.
        processes: Those that share the run.
        show_progress: Whether progress is shown.
    """

    accelerator: Any
    processes: Processes
    show_progress: bool = False

    @classmethod
    def of(cls, accelerator: Any, show_progress: bool = False) -> "Launch":
        """Return the launch that an accelerator describes."""
        count, rank = accelerator.num_processes, accelerator.process_index
        processes = Processes(
            rank,
            count,
            gather_objects if count > 1 else None,
            partial(accelerator.reduce, reduction="sum") if count > 1 else None,
            meet if count > 1 else None,
        )
        return cls(accelerator, processes, show_progress and processes.is_main)

    @classmethod
    def to_score(cls, model: Any, args: PreferenceConfig) -> "Launch":
        """Return the launch of a run that only scores, its model on the device for that."""
        precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "no"
        accelerator = Accelerator(
            mixed_precision=precision,
            cpu=args.use_cpu,
            deepspeed_plugin=getattr(args, "deepspeed_plugin", None),
        )
        placed = getattr(model, "hf_device_map", None) or getattr(model, "is_quantized", False)
        if not placed and zero_stage(accelerator) is None:
            model.to(accelerator.device)
        ready_for_engine(model, accelerator)
        return cls.of(accelerator, show_progress=not args.disable_tqdm)

    @property
    def is_sharded(self) -> bool:
        """Whether no process has all weights (FSDP, DeepSpeed's ZeRO-3)."""
        is_fsdp = getattr(self.accelerator.state, "fsdp_plugin", None) is not None
        return is_fsdp or zero_stage(self.accelerator) == 3

    @property
    def keeps_float32(self) -> bool:
        """Whether weights of half precision are trained by copies in float32."""
        if zero_stage(self.accelerator) is not None:
            return True
        return self.is_sharded and str(self.accelerator.mixed_precision) != "no"

    @property
    def autocast_name(self) -> str:
        """The dtype to which forward passes are cast, or ``"none"``."""
        # DeepSpeed casts weights instead.
        return str(self.accelerator.mixed_precision) if self.accelerator.native_amp else "none"


def gather_objects(value: Any) -> list[Any]:
    """Return an object of every process, in their order."""
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, value)
    return gathered
