"""Training that FSDP2 shards: refused where it would be wrong, and made ready to be exact.

Weights are spread when training begins. Until then each process has them all: the probe, and a
reference that is computed once, score with whole weights.
"""

import os
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import DistributedType, str_to_bool
from torch.distributed.fsdp import CPUOffloadPolicy

from prefopt.batch import Batch
from prefopt.config import PreferenceConfig
from prefopt.engine import Scorer
from prefopt.objective import Objective
from prefopt.reference.adapters import is_sharded
from prefopt.reference.processes import Processes
from prefopt.training.launch import Launch
from prefopt.training.zero import zero_stage


def check_launch(args: PreferenceConfig, launch: Launch) -> None:
    """Raise where a run cannot be had, or not be right, as it is launched.

    Raises:
        ValueError: Saying what would be right.
    """
    if args.n_gpu > 1:
        raise ValueError(
            "several GPUs in one process (nn.DataParallel) are not supported: start one "
            "process per GPU with `accelerate launch`, or set CUDA_VISIBLE_DEVICES to one GPU"
        )
    check_fsdp(args, launch)
    if args.max_tokens_per_batch and zero_stage(launch.accelerator) is not None:
        raise ValueError(
            "max_tokens_per_batch cuts batches into as many passes as each process needs, and "
            "DeepSpeed counts passes; lower per_device_train_batch_size and raise "
            "gradient_accumulation_steps instead"
        )


def check_fsdp(args: PreferenceConfig, launch: Launch) -> None:
    """Raise where FSDP was asked for, and would not be had or not be right.

    Raises:
        ValueError: Saying what would be right.
    """
    environment = os.environ.get("ACCELERATE_USE_FSDP", "false")
    asked = bool(args.fsdp) or bool(str_to_bool(environment))
    if not applies_fsdp(launch):
        if asked and launch.processes.count > 1:
            raise ValueError(
                "FSDP was asked for, but accelerate does not apply it here "
                f"({launch.accelerator.distributed_type}): each process would hold and train a "
                "whole copy; start it on GPUs, or leave FSDP out (fsdp, ACCELERATE_USE_FSDP, "
                "distributed_type in accelerate's configuration)"
            )
        if asked:
            warnings.warn(
                "FSDP was asked for, but there is one process: the weights stay whole",
                stacklevel=3,
            )
        return
    plugin = launch.accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise ValueError(
            "FSDP of version 1 flattens weights into tensors that cannot be scored one by one; "
            "set fsdp_version: 2 (version: 2 in fsdp_config)"
        )
    if plugin.cpu_ram_efficient_loading:
        raise ValueError(
            "fsdp_cpu_ram_efficient_loading leaves the weights of all processes but one empty, and "
            "the probe and the reference need them before they are spread; set it to false"
        )
    stateless = args.optim == "sgd" and "momentum" not in (args.optim_args or "")
    if stateless and args.save_strategy != "no" and not writes_parts(launch):
        raise ValueError(
            "torch cannot load the empty state of SGD without momentum from a whole checkpoint, so "
            "that training could not go on; set fsdp_state_dict_type: SHARDED_STATE_DICT, "
            "optim_args='momentum=...' or save_strategy='no'"
        )
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        raise ValueError(
            "fsdp_offload_params keeps weights on the CPU between passes, where scores would be "
            "looked for; set it to false, and gradient_checkpointing or activation_offloading to "
            "true to save memory"
        )


def applies_fsdp(launch: Launch) -> bool:
    """Whether the policy of a run is sharded by FSDP when training begins."""
    return bool(launch.accelerator.distributed_type == DistributedType.FSDP)


def make_ready(model: Any, args: PreferenceConfig, objective: Objective, launch: Launch) -> None:
    """Put a policy that will be sharded where, and in the dtypes in which, it will be trained.

    transformers leaves it on the CPU until then, where a reference would take hours to score.

    Raises:
        ValueError: If its weights are stored as FSDP2 would spoil them.
    """
    if not applies_fsdp(launch):
        return
    if is_sharded(model):
        raise ValueError(
            "the model is sharded already (device_mesh, tp_plan or fully_shard), and the probe and "
            "the reference need whole weights; pass it as from_pretrained loads it by default, and "
            "FSDP shards it when training begins"
        )
    accelerator, plugin = launch.accelerator, launch.accelerator.state.fsdp_plugin
    stored = [it.dtype for it in model.parameters() if type(it).__name__ == "Params4bit"]
    if stored:
        _check_storage(model, stored[0])
    elif accelerator.mixed_precision != "no":
        # accelerate does so when it shards; the reference must be computed alike.
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    asked = objective.needs_reference or args.log_ratios
    cached = asked and args.reference_mode != "live"
    if stored or cached:
        # Weights that are gathered in another dtype compute otherwise than whole ones under
        # autocast, which is what the reference was computed with; and 4-bit weights are spoilt.
        plugin.mixed_precision_policy = None
    if stored or getattr(model, "hf_device_map", None):
        return
    try:
        model.to(accelerator.device)
    except torch.OutOfMemoryError:
        model.to("cpu")
        warnings.warn(
            f"the policy does not fit on {accelerator.device} whole: the probe and reference "
            "log-probs that the store lacks are computed on the CPU; compute them beforehand with "
            "`prefopt cache fill`",
            stacklevel=3,
        )


def _check_storage(model: Any, stored: torch.dtype) -> None:
    """Raise where 4-bit weights are stored as integers, which FSDP2 does not shard (or spoils)."""
    others = {
        it.dtype
        for it in model.parameters()
        if type(it).__name__ != "Params4bit" and it.is_floating_point()
    }
    if stored.is_floating_point and others <= {stored}:
        return
    wanted = " and ".join(sorted(str(it).removeprefix("torch.") for it in others))
    raise ValueError(
        f"4-bit weights are stored as {str(stored).removeprefix('torch.')} beside others in "
        f"{wanted}, and FSDP2 shards weights of one floating dtype only: load the model in one "
        "dtype, and name it in BitsAndBytesConfig(bnb_4bit_quant_storage=...) too"
    )


def check_passes(scorer: Scorer, launch: Launch, longest: int | None) -> None:
    """Raise where a model would be called more often in one process than in another.

    Args:
        scorer: Of the model.
        launch: How the run is launched.
        longest: Tokens of the longest text; None for any.

    Raises:
        ValueError: If it is sharded and must compute some texts apart.
    """
    if launch.is_sharded and scorer.company.may_separate(longest):
        raise ValueError(
            f"this model computes {scorer.company}, in as many passes as its texts need, but "
            "sharded training (FSDP, DeepSpeed) needs as many passes in every process; train it "
            "whole in each process (DDP)"
        )


def as_many_everywhere(
    batches: Sequence[Batch], nothing: Batch, processes: Processes
) -> list[Batch]:
    """Return batches, and behind them so many of nothing that all processes have as many.

    Every process must call this.
    """
    missing = max(processes.all(len(batches))) - len(batches)
    return [*batches, *[nothing] * missing]


def writes_parts(launch: Launch) -> bool:
    """Whether checkpoints hold a file of each process's part of the weights."""
    if not applies_fsdp(launch):
        return False
    return "SHARDED_STATE_DICT" in str(launch.accelerator.state.fsdp_plugin.state_dict_type)
