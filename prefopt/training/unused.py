"""Arguments of transformers that would do nothing here, or something else than they say."""

from dataclasses import replace
from typing import Any

from prefopt.config import PreferenceConfig
from prefopt.data.collate import PreferenceCollator

# What transformers' own loop reads of accelerate's options of accumulation.
_ACCUMULATION = frozenset({"num_steps", "sync_each_batch"})


def check_used(args: PreferenceConfig) -> None:
    """Check that each argument that was given does what it says.

    Raises:
        ValueError: If one would do nothing, saying what to do instead.
    """
    _check_loading(args.accelerator_config)
    _check_together(args)
    if args.include_num_input_tokens_seen == "non_padding":
        # No padding is counted here, and the token that pads may stand in a text.
        args.include_num_input_tokens_seen = "all"


def _check_loading(loading: Any) -> None:
    if loading.dispatch_batches:
        raise ValueError(
            "dispatch_batches=True is not supported: batches are records of several shapes, which "
            "one process cannot cut up and send to the others; leave it out: each process reads "
            "its own share"
        )
    if not loading.use_seedable_sampler:
        raise ValueError(
            "use_seedable_sampler=False is not supported: the order of the rows follows from seed "
            "and epoch, so that all processes agree on it and a run can be resumed; leave it out"
        )
    for name in (loading.gradient_accumulation_kwargs or {}).keys() - _ACCUMULATION:
        raise ValueError(
            f"gradient_accumulation_kwargs: {name!r} is not supported: transformers counts the "
            f"micro-batches itself; leave it out (there is {', '.join(sorted(_ACCUMULATION))})"
        )
    # No row is taken twice, so that nothing can be evened up by repeating some.
    loading.dispatch_batches, loading.even_batches = False, False


def _check_together(args: PreferenceConfig) -> None:
    optim = str(getattr(args.optim, "value", args.optim))
    if args.fp16 and args.device.type == "cpu":
        raise ValueError(
            "fp16=True does nothing on a CPU, which has no mixed precision in float16: use "
            "bf16=True, or leave it out"
        )
    if args.auto_find_batch_size and args.world_size > 1:
        raise ValueError(
            "auto_find_batch_size=True works in one process only: one that runs out of memory "
            "would begin again while the others wait for it; use max_tokens_per_batch"
        )
    # transformers renamed it; where there is a new name, the old one is a copy.
    name = "activation_checkpointing"
    name = name if hasattr(args, name) else "gradient_checkpointing"
    if getattr(args, f"{name}_kwargs") and not getattr(args, name):
        raise ValueError(f"{name}_kwargs do nothing without {name}=True")
    if args.optim_target_modules and not optim.startswith(("galore", "apollo")):
        raise ValueError(
            f"optim_target_modules do nothing for optim={optim!r}: only GaLore's and APOLLO's "
            "optimisers choose modules; leave it out"
        )
    in_backward = optim in ("lomo", "adalomo") or optim.endswith("layerwise")
    if in_backward and (args.gradient_accumulation_steps > 1 or args.max_tokens_per_batch):
        raise ValueError(
            f"optim={optim!r} moves the weights in each backward pass, so that a step must be one: "
            "leave out gradient_accumulation_steps and max_tokens_per_batch"
        )


def check_unmoved(steps: int, batch_size: int) -> None:
    """Check that training can begin anew with smaller forward passes.

    Args:
        steps: How many were taken.
        batch_size: What to begin with.

    Raises:
        ValueError: If the weights have moved.
    """
    if steps:
        raise ValueError(
            f"memory was too small after {steps} steps, when the weights had moved already, so "
            "that auto_find_batch_size cannot begin anew: start again with "
            f"max_tokens_per_batch, or with per_device_train_batch_size={batch_size} and more "
            "gradient_accumulation_steps"
        )


def in_parts(collator: Any, rows: int) -> PreferenceCollator:
    """Return a collator whose batches have at most so many rows.

    Raises:
        ValueError: If it is not one that can cut them.
    """
    if not isinstance(collator, PreferenceCollator):
        raise ValueError(
            "auto_find_batch_size cuts batches, which a data_collator of your own cannot: leave "
            "one of them out"
        )
    return replace(collator, max_rows=rows)
