"""How time and memory of a forward and backward pass grow: prompts, completions, words, tokens.

    python benchmarks/scaling.py [--quick] [--device cuda]

A small random model scores random texts and goes back through them, without an optimiser, so that
the engine alone is seen: prefopt's shared-prefix layout, its padded layout, and TRL's forward pass
with its fused LM head on padded rows (pairs only: TRL has no rankings). Each is a process of its
own; they take turns. Memory is the most a pass holds above what the process held before it,
gradients included. Results go to ``benchmarks/results/throughput_scaling.*``.
"""

import argparse
import ctypes
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from record import RESULTS, environment, results_folder
from rich.console import Console
from rich.progress import Progress
from throughput_worker import Channel, peak_mb, reset_peak
from transformers import AutoModelForCausalLM, LlamaConfig

SIDES = ("shared prefix", "padded", "TRL")
MODEL = {
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}
TRL_POSITIONS = 30_000  # more would take it most of a minute a pass
VOCABULARY = 8192
COMPLETION = 64

# What grows: the field, its values, those of --quick, and what stays as it is.
GROWING: dict[str, dict[str, Any]] = {
    # Of 1k to 32k tokens: an example has 192 + 2 * 64, less 2 that predict nothing.
    "examples": {
        "values": [3, 6, 13, 26, 51, 103],
        "quick": [1, 3],
        "fixed": {"completions": 2, "prompt": 192, "vocabulary": VOCABULARY},
    },
    "prompt": {
        "values": [64, 128, 256, 512, 1024, 2048, 4096],
        "quick": [64, 256],
        "fixed": {"examples": 2, "completions": 2, "vocabulary": VOCABULARY},
    },
    "completions": {
        "values": [1, 2, 4, 8],
        "quick": [2, 4],
        "fixed": {"examples": 2, "prompt": 1024, "vocabulary": VOCABULARY},
    },
    "vocabulary": {
        "values": [2048, 8192, 32768, 131072],
        "quick": [512, 2048],
        "fixed": {"examples": 4, "completions": 2, "prompt": 192},
    },
}

console = Console(stderr=True, width=None if sys.stderr.isatty() else 160)


# A side -------------------------------------------------------------------------------------------


def texts_of(point: dict[str, int], seed: int) -> list[tuple[Any, list[Any]]]:
    """Return random prompts with random completions, as token ids."""
    generator = np.random.default_rng(seed)

    def draw(length: int) -> Any:
        return generator.integers(2, point["vocabulary"], length)

    return [
        (draw(point["prompt"]), [draw(COMPLETION) for _ in range(point["completions"])])
        for _ in range(point["examples"])
    ]


def make_model(vocabulary: int, job: dict[str, Any]) -> Any:
    """Return the model that is passed through, with its output layer tied."""
    torch.manual_seed(job["seed"])
    config = LlamaConfig(
        vocab_size=vocabulary,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        **MODEL,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    return model.to(job["device"])


def prefopt_pass(model: Any, texts: Any, layout: str) -> tuple[Callable[[], Any], int]:
    """Return a function that scores with our engine, and how many positions it computes."""
    from prefopt.engine import Scorer, build_layout
    from prefopt.engine.layout import Example

    scorer = Scorer(model, layout)
    laid_out = build_layout([Example(*text) for text in texts], scorer.layout)
    batch = scorer.to_device(laid_out)
    return lambda: scorer.score(batch).logps, laid_out.input_ids.numel()


def trl_pass(model: Any, texts: Any) -> tuple[Callable[[], Any], int]:
    """Return a function that scores as TRL's DPOTrainer does, and how many positions it computes.

    The head gives what DPOTrainer asks of it for its metrics.
    """
    from trl.trainer.utils import add_fused_lm_head

    if not hasattr(model, "scored_by_trl"):
        add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
        model.scored_by_trl = True
    rows = [np.concatenate([prompt, own]) for prompt, completions in texts for own in completions]
    ids = torch.as_tensor(np.stack(rows)).to(model.device)
    labels = ids.clone()
    labels[:, : len(texts[0][0])] = -100
    mask = torch.ones_like(ids)

    def score() -> Any:
        output = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
        return output.log_probs.sum(1)

    return score, ids.numel()


def serve(job: dict[str, Any], channel: Channel) -> None:
    """Measure points, one after the other, as the parent asks."""
    torch.set_num_threads(job["threads"])
    models: dict[int, Any] = {}
    channel.send(ready=True)
    while True:
        point = channel.receive()["point"]
        vocabulary = point["vocabulary"]
        if vocabulary not in models:
            models = {vocabulary: make_model(vocabulary, job)}  # one at a time: memory is measured
        texts = texts_of(point, job["seed"])
        if job["side"] == "TRL":
            score, positions = trl_pass(models[vocabulary], texts)
        else:
            layout = {"shared prefix": "shared_prefix", "padded": "padded"}[job["side"]]
            score, positions = prefopt_pass(models[vocabulary], texts, layout)
        channel.send(positions=positions, **measure(score, models[vocabulary], job))


def measure(score: Callable[[], Any], model: Any, job: dict[str, Any]) -> dict[str, Any]:
    """Return seconds and memory of a pass forward and backward, and the sum of log-probs."""

    def synchronise() -> None:
        if job["device"] == "cuda":
            torch.cuda.synchronize()

    model.zero_grad(set_to_none=True)
    gc.collect()
    if job["device"] == "cpu":
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what passes before left behind
    reset_peak(job["device"])
    before = peak_mb(job["device"])
    synchronise()
    start = time.perf_counter()
    with torch.autocast(job["device"], torch.bfloat16, enabled=job["device"] == "cuda"):
        logps = score()
    logps.sum().backward()
    synchronise()
    seconds = time.perf_counter() - start
    memory = peak_mb(job["device"]) - before
    return {"seconds": seconds, "peak_mb": memory, "logps": float(logps.detach().double().sum())}


# The parent ---------------------------------------------------------------------------------------


def main() -> None:
    """Be a side, or measure all of them."""
    if len(sys.argv) == 2 and sys.argv[1].endswith(".json"):
        channel = Channel()
        serve(json.loads(Path(sys.argv[1]).read_text()), channel)
        return
    options = parse()
    precision = "bf16-autocast" if options.device == "cuda" else "float32"
    record = environment(
        seed=options.seed,
        dtype=precision,
        threads=options.threads,
        allow_dirty=options.allow_dirty,
    )
    record |= {"model": MODEL | {"completion": COMPLETION}, "repeats": options.repeats}
    run_all(options, lambda found: write(options.out, record, found))


def parse() -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two small points of each")
    parser.add_argument("--repeats", type=int, default=3, help="passes at each point")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=results_folder, default=RESULTS)
    parser.add_argument("--allow-dirty", action="store_true", help="measure changed files too")
    return parser.parse_args()


Found = dict[str, list[dict[str, Any]]]


def run_all(options: argparse.Namespace, save: Callable[[Found], None]) -> None:
    """Measure all sides at each point of each thing that grows; save after each thing."""
    from throughput import started

    job = {"device": options.device, "threads": options.threads, "seed": options.seed}
    found: Found = {}
    with ExitStack() as stack, Progress(console=console) as progress:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        workers = {}
        for side in SIDES:
            worker = started(job | {"side": side}, scratch, Path(__file__))
            workers[side] = stack.enter_context(worker)
        for worker in workers.values():
            worker.receive()
        for growing, plan in GROWING.items():
            values = plan["quick"] if options.quick else plan["values"]
            points = found[growing] = []
            for value in progress.track(values, description=growing):
                points.append(_measure_point(workers, plan["fixed"] | {growing: value}, options))
            save(found)


def _measure_point(
    workers: dict[str, Any], point: dict[str, int], options: argparse.Namespace
) -> dict[str, Any]:
    """Return the medians of all sides at a point; the first pass of each does not count."""
    replies: dict[str, list[dict[str, Any]]] = {}
    for _ in range(options.repeats + 1):
        for side, worker in workers.items():
            if side != "TRL" or _trl_can(point):
                replies.setdefault(side, []).append(worker.ask(point=point))
    sums = {side: counted[0]["logps"] for side, counted in replies.items()}
    precise = options.device == "cpu"
    if not np.allclose(
        list(sums.values()), next(iter(sums.values())), rtol=1e-5 if precise else 0.02
    ):
        raise SystemExit(f"the sides score differently at {point}: {sums}")
    return {
        "point": point,
        "sides": {
            side: {
                "positions": counted[0]["positions"],
                "seconds": _spread([reply["seconds"] for reply in counted[1:]]),
                "peak_mb": max(reply["peak_mb"] for reply in counted[1:]),
            }
            for side, counted in replies.items()
        },
    }


def _trl_can(point: dict[str, int]) -> bool:
    positions = 2 * point["examples"] * (point["prompt"] + COMPLETION)
    return point["completions"] == 2 and positions <= TRL_POSITIONS


def _spread(values: list[float]) -> dict[str, float]:
    low, middle, high = np.percentile(values, [20, 50, 80])
    return {"median": float(middle), "p20": float(low), "p80": float(high)}


# Results ------------------------------------------------------------------------------------------

TITLES = {
    "prompt": "tokens of the prompt (2 pairs)",
    "completions": "completions per prompt of 1024 tokens (2 prompts)",
    "vocabulary": "vocabulary, thousand tokens (4 pairs)",
    "examples": "thousand tokens a batch (shared prefix)",
}
STYLES = {
    "shared prefix": {"color": "#2a6f97", "marker": "o"},
    "padded": {"color": "#e09f3e", "marker": "s"},
    "TRL": {"color": "#9a8c98", "marker": "^"},
}


def growth(points: list[dict[str, Any]]) -> float:
    """Return p of time ~ tokens ** p, fitted to the shared-prefix passes; 1 is linear."""
    ours = [point["sides"]["shared prefix"] for point in points]
    tokens = np.log([side["positions"] for side in ours])
    seconds = np.log([side["seconds"]["median"] for side in ours])
    return float(np.polyfit(tokens, seconds, 1)[0])


def write(folder: Path, record: dict[str, Any], found: Found) -> None:
    """Write JSON, Markdown and a chart of what was measured so far."""
    exponent = growth(found["examples"])
    result = {"record": record, "growth_with_tokens": exponent, "found": found}
    file = folder / "throughput_scaling"
    file.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    text = _markdown(record, found, exponent)
    file.with_suffix(".md").write_text(text)
    if len(found) == len(GROWING):
        console.print(text, markup=False)
    draw(found, file.with_suffix(".png"))


def _markdown(record: dict[str, Any], found: Found, exponent: float) -> str:
    lines = ["| growing | value | " + " | ".join(f"{side}: s, MB" for side in SIDES) + " |"]
    lines.append("|---" * (2 + len(SIDES)) + "|")
    for growing, points in found.items():
        for point in points:
            cells = [growing, str(point["point"][growing])]
            for side in SIDES:
                have = point["sides"].get(side)
                seconds = f"{have['seconds']['median']:.3g}, {have['peak_mb']:.0f}" if have else ""
                cells.append(seconds)
            lines.append("| " + " | ".join(cells) + " |")
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    lines += [
        "",
        "Median seconds and peak memory above the process's own of a pass forward and backward. "
        f"With tokens a batch, time grows as tokens ** {exponent:.2f} (shared prefix).",
        "",
        f"Commit {record['commit'][:12]}, {record['date']}, {record['device']}, "
        f"{record['threads_per_process']} threads, {record['dtype']}, seed {record['seed']}. "
        f"{versions}.",
    ]
    return "\n".join(lines) + "\n"


def draw(found: Found, path: Path) -> None:
    """Draw time, above, and memory, below, against each thing that grows."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        2, len(found), figsize=(3.75 * len(found), 7), constrained_layout=True, squeeze=False
    )
    for (growing, points), column in zip(found.items(), axes.T, strict=True):
        for side, style in STYLES.items():
            have = [point for point in points if side in point["sides"]]
            if not have:
                continue
            sides = [point["sides"][side] for point in have]
            at = [point["point"][growing] for point in have]
            if growing == "vocabulary":
                at = [value / 1000 for value in at]
            if growing == "examples":
                at = [point["sides"]["shared prefix"]["positions"] / 1000 for point in have]
            seconds = np.array([[s["seconds"][k] for k in ("p20", "median", "p80")] for s in sides])
            column[0].plot(at, seconds[:, 1], label=side, **style)
            column[0].fill_between(
                at, seconds[:, 0], seconds[:, 2], alpha=0.2, color=style["color"]
            )
            column[1].plot(at, [s["peak_mb"] / 1000 for s in sides], **style)
        for axis, what in zip(
            column, ("seconds, forward and backward", "peak memory, GB"), strict=True
        ):
            axis.set_xlabel(TITLES[growing])
            axis.set_ylabel(what)
            axis.set_ylim(bottom=0)
            axis.set_xlim(left=0)
            axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
