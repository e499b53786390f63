"""``prefopt plan``: what a run will need of memory and time, before it is started.

Options are those of ``prefopt train``. A few steps are measured on this machine, with a model that
is thrown away; nothing is downloaded, and nothing is written outside the system's temporary folder.
"""

import argparse
import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from prefopt.cli.errors import UserError, user_errors
from prefopt.cli.rows import load_splits
from prefopt.cli.train import make_parser, parse, run_arguments

GIB = 2**30

# Memory of GPUs by name, as sold; GB that are GiB. The first name that is part of what was given.
_GPU_MEMORY = {
    "B200": 180,
    "GH200": 96,
    "H200": 141,
    "H100 NVL": 94,
    "H100": 80,
    "A100-40": 40,
    "A100": 80,
    "L40S": 48,
    "L40": 48,
    "L4": 24,
    "A10G": 24,
    "A10": 24,
    "RTX A6000": 48,
    "RTX 6000 Ada": 48,
    "RTX 5090": 32,
    "RTX 4090": 24,
    "RTX 3090": 24,
    "V100": 32,
    "T4": 16,
}
# What CUDA itself takes of a GPU, and the share of the rest that fragmentation leaves.
_CUDA_BYTES, _USABLE = 0.6 * GIB, 0.93
# Share of a GPU's peak that training is taken to reach where nothing was measured.
_ASSUMED_MFU = 0.35

_DESCRIPTION = """\
Say what a run will need, before it is started: which row is the largest, what batch fits, how much
memory, how long end to end, and what other options would change.

  prefopt plan --model MODEL --dataset DATA [--gpu 24GB] [any option of prefopt train]

A few steps are measured on this machine and thrown away. --gpu names a GPU that is not here, by its
memory (24GB) or by name (H100, "RTX 4090"): what it will need is computed from what was measured.
--seconds bounds the steps that are measured (default 30). Nothing is downloaded: model and data
must be here, in a folder or in the cache of the Hub.
"""


class Device(NamedTuple):
    """A GPU that is not here.

    Attributes:
        name: As it was given.
        memory: Bytes.
        rate: Operations per second that it is sold with; None if only its memory was given.
    """

    name: str
    memory: float
    rate: float | None


def main(argv: Sequence[str]) -> int:
    """Measure, and print what the run will need; return the exit code."""
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--gpu")
    own.add_argument("--seconds", type=float, default=30.0)
    options, rest = own.parse_known_args(list(argv))
    if options.seconds < 0:
        raise UserError(f"--seconds must be at least 0, got {options.seconds:g}")
    parser = make_parser()
    parser.prog, parser.usage = (
        "prefopt plan",
        "prefopt plan --model MODEL --dataset DATA [options]",
    )
    parser.description = _DESCRIPTION
    data_args, config, model_args = parse(parser, rest)
    with user_errors():
        from prefopt.training.planning import plan_run

        gpu = None if options.gpu is None else device_of(options.gpu)
        if data_args.dataset_streaming:
            raise UserError("a stream does not tell its rows: leave out --dataset_streaming")
        train_rows, eval_rows = load_splits(data_args, config)
        arguments = run_arguments(config, model_args)
        print("prefopt: measuring some steps of the run", file=sys.stderr)
        found = plan_run(
            arguments,
            train_rows,
            eval_rows,
            before=_seconds_of_process(),
            most_seconds=options.seconds,
        )
    print("\n".join(lines_of(found, gpu)))
    return 0


def device_of(text: str) -> Device:
    """Return the GPU that is named, by its memory or as it is called.

    Raises:
        UserError: If it is neither.

    Examples:
        >>> device_of("24GB").memory / 2**30
        24.0
        >>> device_of("h100").memory / 2**30
        80.0
    """
    from prefopt.engine.flops import peak_rate

    size = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:GB|GiB|G)?", text.strip(), re.IGNORECASE)
    if size and float(size[1]) > 0:
        return Device(f"a GPU of {float(size[1]):g} GiB", float(size[1]) * GIB, None)
    for name, memory in _GPU_MEMORY.items():
        if name.lower() in text.lower():
            return Device(name, memory * GIB, peak_rate(name))
    raise UserError(
        f"--gpu takes a memory such as 24GB, or one of {', '.join(_GPU_MEMORY)}; got {text!r}"
    )


def lines_of(plan: Any, gpu: Device | None = None) -> list[str]:
    """Return a plan for people.

    Args:
        plan: A ``prefopt.training.planning.RunPlan``.
        gpu: One that is not here, which it is for; None for this machine.
    """
    return [
        *_rows(plan),
        *_memory(plan, gpu),
        *_time(plan, gpu),
        *_fits(plan, gpu),
        *_changes(plan, gpu),
    ]


def _rows(plan: Any) -> list[str]:
    row = plan.largest_row
    name = f"{row.dataset} {row.number}" if row.dataset else f"{row.number}"
    completions = " + ".join(f"{n:,}" for n in row.completions[:4])
    more = " + ..." if len(row.completions) > 4 else ""
    passes = f" in {plan.passes_of_step} passes" if plan.passes_of_step > 1 else ""
    return [
        f"training     {plan.loss}; {plan.trained:,} of {plan.parameters:,} weights"
        f"{' (an adapter)' if plan.is_adapter else ''}",
        f"scored       {plan.scorer}",
        f"rows         {len(plan.sizes):,} with {plan.epoch_tokens:,} tokens to compute",
        f"largest row  {name}: {row.tokens:,} tokens (prompt {row.prompt:,}, completions "
        f"{completions}{more})",
        f"steps        {plan.steps:,} of {plan.rows_of_pass * plan.passes_of_step:,} rows{passes}; "
        f"the largest pass has {plan.largest_batch:,} tokens",
    ]


def _memory(plan: Any, gpu: Device | None) -> list[str]:
    memory = _memory_on(plan.memory, gpu)
    total = memory.of(plan.largest_batch)
    batch = memory.step.at(plan.largest_batch)
    how = f"computed for {gpu.name}" if gpu else "measured here, with the largest batch"
    parts = [
        ("weights", memory.weights),
        ("optimiser", memory.optimizer),
        ("the pass, with gradients", batch),
        ("the process", memory.process),
    ]
    said = ", ".join(f"{name} {_gib(size)}" for name, size in parts if size)
    return [f"memory       {_gib(total)} ({how}): {said}"]


def _memory_on(memory: Any, gpu: Device | None) -> Any:
    """Return the memory with what a GPU holds beside it, in place of what this process does."""
    return memory if gpu is None else replace(memory, process=_CUDA_BYTES)


def _time(plan: Any, gpu: Device | None) -> list[str]:
    if gpu is not None:
        return _time_on(plan, gpu)
    times = plan.times
    parts = [
        ("start", times.start),
        ("reference", times.reference),
        ("training", times.steps),
        ("evaluations", times.evaluations),
        ("saving", times.saving),
    ]
    said = ", ".join(f"{name} {duration(seconds)}" for name, seconds in parts if seconds)
    lines = [
        f"time         {duration(times.total)} end to end, as fast as this machine is now: {said}",
        f"             {plan.seconds_per_step:.3g} s a step, after {plan.measured_steps} measured",
    ]
    if plan.unknown is not None:
        missing, wanted = plan.unknown
        known = "none" if missing == wanted else f"{wanted - missing:,}"
        lines.append(f"reference    {wanted:,} completions, {known} of them in the store")
    return lines


def _time_on(plan: Any, gpu: Device) -> list[str]:
    if gpu.rate is None:
        return ["time         not known: name the GPU (--gpu H100) for a guess by its data sheet"]
    seconds = plan.flops / (gpu.rate * _ASSUMED_MFU)
    return [
        f"time         {duration(seconds)} of training if it reaches {_ASSUMED_MFU:.0%} of its "
        f"peak ({gpu.rate / 1e12:.0f} TFLOP/s), which small models do not: a guess, not measured"
    ]


def _fits(plan: Any, gpu: Device | None) -> list[str]:
    from prefopt.training.needs import rows_that_fit

    limit, where = limit_of(plan, gpu)
    memory = _memory_on(plan.memory, gpu)
    rows = rows_that_fit(memory, plan.sizes, limit)
    tokens = memory.most_tokens(limit)
    if rows == 0:
        return [
            f"fits         no: the largest row needs {_gib(memory.of(plan.largest_row.tokens))} "
            f"alone, and {where} leaves {_gib(limit)}"
        ]
    fits = memory.of(plan.largest_batch) <= limit
    if plan.is_cut:  # then the number of rows changes no pass
        said = f"max_tokens_per_batch up to {tokens}"
        return [f"fits         {'yes' if fits else 'no'}; {said} ({_gib(limit)} of {where})"]
    all_rows = rows == len(plan.sizes)
    said = "all rows at once" if all_rows else f"per_device_train_batch_size up to {rows}"
    within = "" if all_rows else f", or passes of max_tokens_per_batch={tokens}"
    return [f"fits         {'yes' if fits else 'no'}; {said}{within} ({_gib(limit)} of {where})"]


def limit_of(plan: Any, gpu: Device | None) -> tuple[float, str]:
    """Return the bytes that a run may use, and of what."""
    if gpu is not None:
        return gpu.memory * _USABLE, gpu.name
    if plan.on_cpu:
        import psutil

        return psutil.virtual_memory().total * _USABLE, "this machine's memory"
    import torch

    return torch.cuda.get_device_properties(0).total_memory * _USABLE, "this GPU"


def _changes(plan: Any, gpu: Device | None) -> list[str]:
    """Return what options that are not in use would make of the memory."""
    memory, model, tokens = _memory_on(plan.memory, gpu), plan.model, plan.largest_batch
    from prefopt.training.needs import with_4_bits, with_checkpointing, with_lora

    options = []
    most = plan.largest_row.tokens
    if most < plan.largest_batch:
        options.append((f"--max_tokens_per_batch {most}", memory.of(most), "changes no result"))
    if not plan.checkpointing:
        less = with_checkpointing(memory, model)
        note = "a third more to compute"
        options.append(("--gradient_checkpointing", less.of(tokens), note))
    if not plan.is_adapter:
        adapter = with_lora(memory, model)
        options.append(("--use_peft", adapter.of(tokens), "LoRA of rank 16"))
        packed = with_4_bits(adapter, model)
        options.append(("--use_peft --load_in_4bit", packed.of(tokens), "QLoRA"))
    elif not plan.is_quantised:
        options.append(("--load_in_4bit", with_4_bits(memory, model).of(tokens), "QLoRA"))
    width = max((len(name) for name, *_ in options), default=0)
    lines = [f"  {name:<{width}}  {_gib(size)}  ({note})" for name, size, note in options]
    return ["with, in place of that memory:", *lines] if lines else []


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size < 100 * GIB else f"{size / GIB:,.0f} GiB"


def duration(seconds: float) -> str:
    """Return a time for people.

    Examples:
        >>> [duration(s) for s in (3.21, 75, 3599.8, 4000, 200_000)]
        ['3.2 s', '1 min 15 s', '1 h 0 min', '1 h 7 min', '2 d 8 h']
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    if seconds < 3599.5:
        lower, unit, size, length = "s", "min", 60, 1
    elif seconds < 86370:
        lower, unit, size, length = "min", "h", 60, 60
    else:
        lower, unit, size, length = "h", "d", 24, 3600
    whole = round(seconds / length)
    return f"{whole // size} {unit} {whole % size} {lower}"


def _seconds_of_process() -> float:
    """Return how long this process has run."""
    import psutil

    return float(time.time() - psutil.Process().create_time())
