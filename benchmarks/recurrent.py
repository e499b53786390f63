"""What the shared-prefix row saves models with recurrent layers, beside padded rows.

    python benchmarks/recurrent.py [--quick]

Small random hybrids of three families score one prompt of 1024 tokens with 2 and with 8 completions
of 256, forward and backward, without an optimiser. Both layouts are measured in one process, in
turns. On a CPU the time is that of the processor, of one thread, so that what else the machine does
counts little. Results go to ``benchmarks/results/recurrent.*``.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
import transformers
from record import RESULTS, environment, results_folder

LAYOUTS = ("padded", "shared_prefix")
COMPLETIONS = (2, 8)

_COMMON = {
    "vocab_size": 2048,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
_LAYERS = ["linear_attention", "linear_attention", "full_attention"]

# Two recurrent layers and one that attends, with heads of 64.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen3.5 (gated delta rule)": (
        "Qwen3_5TextConfig",
        {
            "head_dim": 64,
            "layer_types": _LAYERS,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 64,
            "linear_value_head_dim": 64,
        },
    ),
    "Granite-4 hybrid (Mamba2)": (
        "GraniteMoeHybridConfig",
        {
            "layer_types": _LAYERS,
            "num_local_experts": 0,
            "shared_intermediate_size": 256,
            "mamba_n_heads": 4,
            "mamba_d_head": 64,
            "mamba_d_state": 64,
        },
    ),
    "LFM2 (short convolutions)": (
        "Lfm2Config",
        {"layer_types": ["conv", "conv", "full_attention"], "block_ff_dim": 256},
    ),
}


def make_model(name: str, device: str, seed: int) -> Any:
    """Return a random model of a family."""
    config, fields = MODELS[name]
    torch.manual_seed(seed)
    made = getattr(transformers, config)(**_COMMON | fields)
    return transformers.AutoModelForCausalLM.from_config(made).to(device)


def passes(model: Any, completions: int, sizes: tuple[int, int], seed: int) -> dict[str, Any]:
    """Return for each layout a function that scores the texts, and the positions it computes."""
    from prefopt.engine import Example, Scorer, build_layout

    generator = np.random.default_rng(seed)
    prompt, *ends = (
        generator.integers(3, 2048, size) for size in (sizes[0], *[sizes[1]] * completions)
    )
    example = Example(prompt, ends)
    found: dict[str, Any] = {}
    for layout in LAYOUTS:
        scorer = Scorer(model, layout)
        batch = scorer.to_device(build_layout([example], layout))

        def score(scorer: Any = scorer, batch: Any = batch) -> torch.Tensor:
            return scorer.score(batch).logps

        found[layout] = score, batch.input_ids.numel()
    return found


def timed(score: Callable[[], torch.Tensor], model: Any) -> tuple[float, torch.Tensor]:
    """Return the seconds of a pass forward and backward, and its log-probs."""
    model.zero_grad(set_to_none=True)
    cuda = model.device.type == "cuda"
    clock = time.perf_counter if cuda else time.process_time
    if cuda:
        torch.cuda.synchronize()
    start = clock()
    logps = score()
    logps.sum().backward()
    if cuda:
        torch.cuda.synchronize()
    return clock() - start, logps.detach()


def measure(name: str, completions: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return what was measured of a family with a number of completions.

    Raises:
        SystemExit: If the layouts do not give the same log-probs.
    """
    model = make_model(name, options.device, options.seed)
    sides = passes(model, completions, (options.prompt, options.completion), options.seed)
    seconds: dict[str, list[float]] = {layout: [] for layout in LAYOUTS}
    logps = {layout: timed(score, model)[1] for layout, (score, _) in sides.items()}
    difference = float((logps["padded"] - logps["shared_prefix"]).abs().max())
    if difference > 1e-6 * float(logps["padded"].abs().max()) + 1e-3:
        raise SystemExit(f"{name}: the layouts differ by {difference} nats")
    for turn in range(options.repeats):
        for layout in LAYOUTS[:: 1 if turn % 2 else -1]:
            seconds[layout].append(timed(sides[layout][0], model)[0])
    return {
        "model": name,
        "completions": completions,
        "positions": {layout: positions for layout, (_, positions) in sides.items()},
        "seconds": seconds,
        "largest_difference_nats": difference,
    }


def table(found: list[dict[str, Any]]) -> str:
    """Return a Markdown table of all measurements."""
    lines = [
        "| model | completions | padded, s | shared prefix, s | times as fast | fewer tokens |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in found:
        columns = [_median(one["seconds"][layout]) for layout in LAYOUTS]
        padded, shared = (statistics.median(one["seconds"][layout]) for layout in LAYOUTS)
        fewer = one["positions"]["padded"] / one["positions"]["shared_prefix"]
        numbers = [*columns, f"{padded / shared:.2f}", f"{fewer:.2f}"]
        lines.append(f"| {one['model']} | {one['completions']} | {' | '.join(numbers)} |")
    return "\n".join(lines) + "\n"


def _median(values: list[float]) -> str:
    low, high = np.percentile(values, [20, 80])
    return f"{statistics.median(values):.2f} [{low:.2f}, {high:.2f}]"


def parse() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="short texts, once")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=results_folder, default=RESULTS)
    parser.add_argument("--allow-dirty", action="store_true")
    options = parser.parse_args()
    options.prompt, options.completion = (96, 24) if options.quick else (1024, 256)
    options.repeats = 1 if options.quick else options.repeats
    return options


def main() -> None:
    """Measure, and write the results after each model."""
    options = parse()
    torch.set_num_threads(1)
    record = environment(
        seed=options.seed, dtype="float32", threads=1, allow_dirty=options.allow_dirty
    )
    record |= {"prompt": options.prompt, "completion": options.completion}
    found = []
    for name in MODELS:
        for completions in COMPLETIONS:
            found.append(measure(name, completions, options))
            record["measured"] = found
            (options.out / "recurrent.json").write_text(json.dumps(record, indent=2) + "\n")
            (options.out / "recurrent.md").write_text(table(found))
            print(table(found[-1:]).splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
