"""Six losses from one start on the same rows: a comparison to copy, change and run.

    python benchmarks/compare_losses.py                        # the toy world, in minutes
    python benchmarks/compare_losses.py --model M --dataset D  # a model and rows of yours

Ended at any moment, the same command goes on. It leaves a page, ``report.html``, and
``results.json``, in which all numbers are.
"""

import argparse
from pathlib import Path
from typing import Any

from prefopt.compare import Comparison, compare

LOSSES = "dpo, ipo, kto, slic, orpo, discopop"

# For the toy world; a model of yours wants a learning rate of its own, about 1e-6, or 1e-5 with
# LoRA (`"use_peft": True`).
TOY_OPTIONS = {
    "learning_rate": 8e-4,
    "max_steps": 100,
    "warmup_steps": 10,
    "per_device_train_batch_size": 64,
    "layout": "padded",
    "use_cpu": True,
}
TOY_EVALUATION = {
    "reward": "prefopt.toy.reward:true_reward",
    "samples_per_prompt": 32,
    "max_new_tokens": 32,
    "batch_size": 256,
}


def main() -> None:
    """Compare the losses."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder or Hub id; default: a toy model, fitted first")
    parser.add_argument("--dataset", help="file, folder or Hub id; default: pairs of the toy world")
    parser.add_argument("--output_dir", type=Path, default=Path("compare_losses_output"))
    parser.add_argument("--losses", default=LOSSES)
    parser.add_argument("--betas", type=float, nargs="*", default=[0.1, 0.3])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--baselines", default="", help="sft,reward_model,rl,rl_true,best_of_n")
    parser.add_argument("--search_trials", type=int, default=0)
    parser.add_argument("--learning_rate", type=float, default=1e-6)
    parser.add_argument("--dry_run", action="store_true", help="only print the runs")
    asked = parser.parse_args()
    if (asked.model is None) != (asked.dataset is None):
        parser.error("give --model and --dataset, or neither for the toy world")
    given = toy_world(asked.output_dir) if asked.model is None else of_user(asked)
    found = compare(
        output_dir=asked.output_dir,
        losses=asked.losses,
        betas=asked.betas,
        baselines=asked.baselines,
        seeds=asked.seeds,
        search_trials=asked.search_trials,
        dry_run=asked.dry_run,
        title="Six losses from one start",
        command="python benchmarks/compare_losses.py",
        **given,
    )
    if not asked.dry_run:
        print_gains(found)


def of_user(asked: argparse.Namespace) -> dict[str, Any]:
    """Return the start and the rows that were named."""
    options = {"learning_rate": asked.learning_rate}
    return {"model": asked.model, "dataset": asked.dataset, "options": options}


def toy_world(folder: Path) -> dict[str, Any]:
    """Return a toy start, its pairs, and the best reward at each distance from it."""
    from datasets import Dataset

    from prefopt.toy.experiment import Experiment, ExperimentSize

    experiment = Experiment([], size=ExperimentSize(pairs=6400, held_out_pairs=1000))
    experiment.fit()
    folder.mkdir(parents=True, exist_ok=True)
    experiment.save(folder)
    return {
        "model": str(folder / "start"),
        "dataset": Dataset.from_list(experiment.train_pairs),
        "eval_dataset": Dataset.from_list(experiment.held_out_pairs),
        "frontier": experiment.evaluator.frontier(),
        "options": TOY_OPTIONS,
        "evaluation": TOY_EVALUATION,
    }


def print_gains(found: Comparison) -> None:
    """Print how the reward of each method's samples differs from the start's, where it is known."""
    rewards = {one.name: one.metrics["reward"] for one in found.methods if "reward" in one.metrics}
    start = rewards.pop("start", None)
    if start is None:
        return
    for name, reward in sorted(rewards.items(), key=lambda item: -item[1].value):
        print(f"{name}: reward {reward.value - start.value:+.2f}, now {reward.value:.2f}")


if __name__ == "__main__":
    main()
