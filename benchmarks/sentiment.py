"""Does preference optimisation raise a known reward of a real model? Controlled sentiment.

    python benchmarks/sentiment.py --folder /tmp/sentiment [--seeds 3] [--device cuda] [--jobs 2]

The first experiment of the DPO paper (Rafailov et al. 2023, arXiv:2305.18290, section 6.1) with
what is at hand: SmolLM2-135M-Instruct (``smollm2.py``), fine-tuned on movie snippets, continues
their first words; a reward fitted to human ratings (``sentiment_reward.py``) says which of two
continuations is the better. From that start each loss is trained with LoRA at several strengths,
and measured on beginnings that nobody trained on: reward of its continuations against their KL
from the start, and held-out accuracy beside what length alone would get. Departures: ratings of
movie snippets for IMDb's labels, a model of 135M parameters for GPT-2 large, LoRA for full
fine-tuning, two disjoint pairs of four continuations for all six.

Ended at any moment, the same command goes on. The table, the numbers and the picture go to
``benchmarks/results/sentiment.{md,json,png}``; the whole report stays in the folder.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import sentiment_data
import sentiment_reward
import smollm2
from datasets import Dataset
from sentiment_data import MAX_NEW_TOKENS, Sizes
from smollm2 import Setting

from prefopt.compare import Comparison, MethodResult, compare

# Each loss at two strengths: how much reward it buys for a nat is what its beta sets.
METHODS: list[dict[str, Any]] = [
    *(
        {"loss_type": loss, "beta": beta}
        for loss in ("dpo", "kto", "discopop", "hinge")
        for beta in (0.05, 0.3)
    ),
    *(
        {"loss_type": "ipo", "beta": beta, "loss_kwargs": {"normalize": "sum"}}
        for beta in (0.02, 0.1)
    ),
    *({"loss_type": "slic", "loss_kwargs": {"delta": delta}} for delta in (1.0, 4.0)),
    *({"loss_type": "orpo", "loss_kwargs": {"lambda_": weight}} for weight in (1.0, 5.0)),
    *({"loss_type": "simpo", "beta": beta} for beta in (2.0, 5.0)),
    # At the start every pair lies where DiscoPOP's slope has the wrong sign: does noise help?
    {"loss_type": "discopop", "beta": 0.05, "lora_dropout": 0.1, "disable_dropout": False},
    {"loss_type": "discopop", "beta": 1.0},
]
OPTIONS: dict[str, Any] = {
    "use_peft": True,
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_target_modules": "all-linear",
    "learning_rate": 3e-4,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0.1,
    "per_device_train_batch_size": 8,
    "num_train_epochs": 1,
}


def main() -> None:
    """Make what is missing, compare, and write the results."""
    parser = smollm2.parser(__doc__.splitlines()[0], "sentiment", sizes=6)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--methods", type=json.loads, default=METHODS, help="as a JSON list")
    parser.add_argument("--options", type=json.loads, default={}, help="of training, as JSON")
    asked = parser.parse_args()
    setting = smollm2.set_up(asked)
    sizes = Sizes(*asked.sizes) if asked.sizes else Sizes()
    error, pairs = prepare(asked.folder, setting, sizes)
    found = compare(
        str(asked.folder / "start"),
        Dataset.from_list(pairs["train"]),
        asked.folder / "comparison",
        methods=asked.methods,
        seeds=asked.seeds,
        eval_dataset=Dataset.from_list(pairs["held_out"]),
        validation=0,
        options={**OPTIONS, **setting.options, **asked.options},
        resources=setting.resources,
        evaluation={
            "reward": f"{Path(sentiment_reward.__file__)}:reward",
            "samples_per_prompt": 2,
            "max_prompts": 160,
            "max_new_tokens": MAX_NEW_TOKENS,
            "batch_size": 64,
        },
        title="Controlled sentiment with SmolLM2-135M",
        command="python benchmarks/sentiment.py",
    )
    dealt = {name: len(rows) for name, rows in pairs.items()}
    write(asked.results, found, {"environment": setting.about, "reward": error, "pairs": dealt})
    shutil.copy(asked.folder / "comparison" / "frontier.png", asked.results.with_suffix(".png"))


def prepare(
    folder: Path, setting: Setting, sizes: Sizes
) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """Make the reward, the start and the pairs where they are missing.

    Returns:
        The reward's error on rows that it has not seen; pairs of both parts.
    """
    rows = sentiment_data.parts(sizes)
    os.environ["SENTIMENT_REWARD"] = str(folder / "reward")
    error = _once(
        folder / "reward" / "reward.json",
        lambda: sentiment_reward.fit(
            folder / "reward", setting.model, rows["fitted"], rows["chosen_on"], rows["shown"]
        ),
    )
    if not (folder / "start" / "config.json").exists():
        sentiment_data.make_start(folder / "start", setting.model, rows["fitted"], setting.options)
    pairs = {
        part: _once(
            folder / f"{part}.json",
            lambda part=part, seed=seed: sentiment_data.make_pairs(
                folder / "start", rows[part], sizes.samples, sentiment_reward.reward, seed
            ),
        )
        for seed, part in enumerate(("train", "held_out"))
    }
    return error, pairs


def _once(file: Path, make: Callable[[], Any]) -> Any:
    """Return what a file holds; where it is missing, what is made now, and written there."""
    if not file.exists():
        made = make()
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(made, indent=1))
        partial.rename(file)
    return json.loads(file.read_text())


def write(results: Path, found: Comparison, about: dict[str, Any]) -> None:
    """Write table and numbers."""
    numbers = {
        **about,
        "verdict": found.verdict,
        "data_baselines": {name: list(its) for name, its in found.data_baselines.items()},
        "methods": {
            method.name: {name: list(its) for name, its in method.metrics.items()}
            for method in found.methods
        },
        "samples": _beside(found),
        "runs": [[run.name, run.state, run.seconds, run.tokens, run.error] for run in found.runs],
    }
    results.with_suffix(".json").write_text(json.dumps(numbers, indent=1) + "\n")
    results.with_suffix(".md").write_text(_table(found, about))


def _beside(found: Comparison, prompts: int = 4) -> list[list[Any]]:
    """Return one answer of each method to some prompts."""
    asked = list(dict.fromkeys(sample.prompt for sample in found.samples))[:prompts]
    first: dict[tuple[str, str], list[Any]] = {}
    for sample in found.samples:
        if sample.prompt in asked:
            row = [sample.prompt, sample.method, sample.completion, sample.reward]
            first.setdefault((sample.prompt, sample.method), row)
    return list(first.values())


def _table(found: Comparison, about: dict[str, Any]) -> str:
    reward, machine = about["reward"], about["environment"]
    lines = [
        f"Controlled sentiment, {about['pairs']['train']} pairs, commit {machine['commit'][:7]}, "
        f"{machine['date']}, {machine['device']}. The reward's error on {reward['rows'][2]} unseen "
        f"snippets: {reward['rmse']:.2f} (their ratings spread by "
        f"{reward['spread_of_ratings']:.2f}), correlation {reward['correlation']:.2f}, the sign "
        f"right in {100 * reward['sign']:.0f}%. In brackets: 95% intervals.",
        "",
        found.verdict,
        "",
        "| method | reward | KL, nats | held-out accuracy, % | at equal lengths, % | tokens |",
        "|---|---|---|---|---|---|",
    ]
    columns = (("reward", 1, 2), ("kl", 1, 2), ("accuracy", 100, 1), ("balanced_accuracy", 100, 1))
    for method in found.methods:
        cells = [_cell(method, *column) for column in (*columns, ("completion_tokens", 1, 1))]
        lines.append(" | ".join(["| " + method.name, *cells]) + " |")
    rules = [
        f"{name} {100 * its.value:.1f}%"
        for name, its in found.data_baselines.items()
        if not name.endswith("reward")
    ]
    lines += ["", f"Accuracy without training: {', '.join(rules)}.", ""]
    return "\n".join([*lines, *_beside_text(_beside(found)), "", *_published_table()])


def _beside_text(rows: list[list[Any]]) -> list[str]:
    """Return answers, those to one prompt together."""
    lines = []
    for prompt in dict.fromkeys(row[0] for row in rows):
        lines += ["", f"> {prompt} ...", ""]
        lines += [_answer(*rest) for asked, *rest in rows if asked == prompt]
    return lines


def _answer(method: str, text: str, reward: float | None) -> str:
    scored = "" if reward is None else f" ({reward:.1f})"
    return f"- **{method}**{scored}: {' '.join(text.split())}"


def _published_table() -> list[str]:
    table = sentiment_data.published()
    betas = sorted({beta for points in table.values() for beta, *_ in points})
    lines = [
        "Published, on IMDb with GPT-2 (DiscoPOP, arXiv:2406.08414): reward, which is a "
        "probability, and KL, which is a mean over tokens.",
        "",
        "| beta | " + " | ".join(table) + " |",
        "|---|" + "---|" * len(table),
    ]
    for beta in betas:
        found = [{b: its for b, *its in points}.get(beta) for points in table.values()]
        cells = ["" if its is None else f"{its[0]:.3f}, {its[1]:.3f}" for its in found]
        lines.append(f"| {beta:g} | {' | '.join(cells)} |")
    return [*lines, ""]


def _cell(method: MethodResult, name: str, factor: float, digits: int) -> str:
    if name not in method.metrics:
        return ""
    value, low, high = (factor * number for number in method.metrics[name][:3])
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


if __name__ == "__main__":
    main()
