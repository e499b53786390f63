"""Launches that spread one row over several processes: tensor, context and sequence parallelism.

Here each process has rows of its own: means, references and the order of rows count on it. A launch
in which several processes hold one row together is refused, where it is asked for and, of a model
that was loaded so, where it is seen.
"""

import os
from typing import Any

from accelerate import ParallelismConfig

from prefopt.config_checks import SPREAD_INSTEAD, refuse_rows_in_parts
from prefopt.engine.probe import inside_peft


def check_launch_of_rows(args: Any) -> None:
    """Raise where the launcher or DeepSpeed's configuration spreads rows over processes.

    Args:
        args: A run's arguments; their ``parallelism_config`` has been checked.

    Raises:
        ValueError: Saying what to use instead.
    """
    if os.environ.get("ACCELERATE_USE_PARALLELISM_CONFIG", "false").lower() == "true":
        refuse_rows_in_parts(ParallelismConfig())  # which reads its sizes from the environment
    plugin = getattr(args, "deepspeed_plugin", None)
    config = {} if plugin is None else plugin.deepspeed_config
    for name, size in (
        ("tensor_parallel", config.get("tensor_parallel", {}).get("autotp_size", 1)),
        ("sequence_parallel_size", config.get("sequence_parallel_size", 1)),
    ):
        if isinstance(size, int) and size > 1:
            raise ValueError(
                f"{name} of DeepSpeed's configuration lets {size} processes hold one row together, "
                "and prefopt gives each process rows of its own: it is not supported; leave it "
                "out, and let ZeRO-3 spread the weights"
            )


def check_not_in_parts(model: Any, called: str = "model") -> None:
    """Raise for a model whose layers were spread over processes when it was loaded.

    Args:
        model: A model, with adapters or without.
        called: As which argument it is given.

    Raises:
        ValueError: Saying what to use instead.
    """
    base = inside_peft(model)
    size = getattr(base, "_tp_size", None) or 1
    if size > 1 or any(hasattr(weight, "device_mesh") for weight in base.parameters()):
        raise ValueError(
            f"{called} was loaded with its weights spread over processes (tp_plan, tp_size or "
            "distributed_config), which then hold one row together, and prefopt gives each process "
            f"rows of its own: it is not supported; load it without, and {SPREAD_INSTEAD}"
        )
