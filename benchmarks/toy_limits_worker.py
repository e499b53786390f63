"""The runs of ``toy_limits.py``: preferences, training, and what a policy reached.

A *recipe* says how a policy is trained from the start of a world.
"""

import copy
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from toy_limits_world import RESAMPLES, Size, World, digest, write_whole
from transformers import PrinterCallback

from prefopt import PreferenceConfig, PreferenceTrainer
from prefopt.evaluation import (
    completion_logps,
    frontier_at,
    gain_share,
    mean_interval,
    preference_accuracy,
    sequence_kl,
)
from prefopt.toy import (
    HELD_OUT_NAMES,
    NAMES,
    parse_completion,
    preference_probability,
    prompts,
    sample_completion,
    true_reward,
)

Row = dict[str, Any]
Triple = tuple[str, str, str]  # prompt and two completions, in no order

KNOWN_NAMES = tuple(name for name in NAMES if name not in HELD_OUT_NAMES)
ACCURACY_PAIRS = 500
MIN_EFFECTIVE_SAMPLES = 25  # of the start, behind the best reward
TRAINING: dict[str, Any] = {
    "learning_rate": 8e-4,
    "lr_scheduler_type": "linear",
    "weight_decay": 0.0,
    "per_device_train_batch_size": 64,
    "num_train_epochs": 1,
    # So tiny a model gains nothing from sharing six words of prompt.
    "layout": "padded",
    "use_cpu": True,
    "disable_tqdm": True,
    "save_strategy": "no",
    "logging_strategy": "no",
    "report_to": "none",
}


@dataclass(frozen=True)
class Recipe:
    """How a policy is trained.

    Attributes:
        loss: The loss, or a sum of losses.
        options: Fields of ``PreferenceConfig``.
        pairs: Training pairs.
        source: What completions are drawn from: ``grammar``; ``start``; ``policy`` as it is at
            the beginning of each round; or ``optimum``, of pairs one from the start and one from
            the optimal policy at beta 1.
        rounds: Parts that the pairs are drawn in.
        labels: ``sampled`` once from Bradley and Terry's probability; that ``probability`` itself;
            or ``better``, the higher reward always.
        flips: Share of the labels that is turned round afterwards.
        names: Names that training prompts are about: ``known`` leaves out those that are
            evaluated, ``all`` does not.
        hidden_size: Width of the model.
        shape: What rows are: ``pairs``; ``halves``, one completion of each pair with its label; or
            ``texts``, completions of the source to be imitated.
        lora_rank: Train LoRA matrices of this rank instead of all weights; 0 for all weights.
    """

    loss: str = "dpo"
    options: Mapping[str, Any] = field(default_factory=dict)
    pairs: int = 6400
    source: str = "grammar"
    rounds: int = 1
    labels: str = "sampled"
    flips: float = 0.0
    names: str = "known"
    hidden_size: int = 64
    shape: str = "pairs"
    lora_rank: int = 0


# Data ---------------------------------------------------------------------------------------------


def draw_rows(world: World, recipe: Recipe, count: int, policy: Any, seed: int) -> list[Row]:
    """Return training rows of a recipe.

    Args:
        world: Gives the start.
        recipe: Says what kind of rows.
        count: Number of pairs behind them.
        policy: What completions are drawn from, unless from the grammar.
        seed: Of everything random.
    """
    rng = random.Random(f"limits {seed}")
    asked_of = prompts(KNOWN_NAMES if recipe.names == "known" else NAMES)
    if recipe.shape == "texts":
        asked = rng.choices(asked_of, k=count)
        texts = draw_texts(world, recipe.source, asked, policy, rng)
        both = zip(asked, texts, strict=True)
        return [{"prompt": prompt, "completion": text, "label": True} for prompt, text in both]
    sources = ("start" if recipe.source == "optimum" else recipe.source, recipe.source)
    triples: list[Triple] = []
    while len(triples) < count:  # equal completions are no pair
        asked = rng.choices(asked_of, k=count - len(triples))
        first, second = (draw_texts(world, source, asked, policy, rng) for source in sources)
        drawn = zip(asked, first, second, strict=True)
        triples += [triple for triple in drawn if triple[1] != triple[2]]
    rows = [judged(triple, recipe, rng) for triple in triples]
    return [half(row, rng) for row in rows] if recipe.shape == "halves" else rows


def draw_texts(
    world: World, source: str, asked: Sequence[str], policy: Any, rng: random.Random
) -> list[str]:
    """Return a completion of each prompt, from a source of ``Recipe``."""
    if source == "grammar":
        return [sample_completion(prompt, rng) for prompt in asked]
    if source == "optimum":
        return draw_optimum(world, asked, rng)
    return world.decode(world.sample(policy, asked, rng.randrange(2**31)))


def draw_optimum(world: World, asked: Sequence[str], rng: random.Random) -> list[str]:
    """Return completions of the optimal policy at beta 1.

    Samples of the start, twice as many as are asked for, drawn again with weights exp(reward).
    """
    texts: dict[str, list[str]] = {}
    for prompt, count in sorted(Counter(asked).items()):
        drawn = world.sample(world.start, [prompt] * 2 * count, rng.randrange(2**31))
        pool = world.decode(drawn)
        weights = torch.tensor([true_reward(text) for text in pool]).softmax(0)
        texts[prompt] = rng.choices(pool, weights.tolist(), k=count)
    return [texts[prompt].pop() for prompt in asked]


def judged(triple: Triple, recipe: Recipe, rng: random.Random) -> Row:
    """Return a row of two completions with the recipe's kind of label."""
    prompt, first, second = triple
    probability = preference_probability(true_reward(first), true_reward(second))
    row = {"prompt": prompt, "chosen": first, "rejected": second}
    if recipe.labels == "probability":
        return row | {"preference_probability": probability}
    wins = probability >= 0.5 if recipe.labels == "better" else rng.random() < probability
    if wins == (rng.random() < recipe.flips):
        row |= {"chosen": second, "rejected": first}
    return row


def half(row: Row, rng: random.Random) -> Row:
    """Return one completion of a pair, either with the same probability, with its label."""
    label = rng.random() < 0.5
    completion = row["chosen" if label else "rejected"]
    return {"prompt": row["prompt"], "completion": completion, "label": label}


# Training and measuring ---------------------------------------------------------------------------


def train(world: World, recipe: Recipe, folder: Path) -> tuple[Any, list[Row]]:
    """Return the policy that a recipe makes of a world's start, and the last rows it saw."""
    policy: Any = copy.deepcopy(world.start)
    count = max(1, round(recipe.pairs * world.size.scale) // recipe.rounds)
    rows: list[Row] = []
    for number in range(recipe.rounds):
        seed = 1000 * world.seed + number
        source = policy if recipe.source == "policy" else world.start
        rows = draw_rows(world, recipe, count, source.eval(), seed)
        policy = train_on(policy, rows, world, recipe, folder)
    return policy.eval(), rows


def train_on(policy: Any, rows: list[Row], world: World, recipe: Recipe, folder: Path) -> Any:
    """Train a policy on rows, against the world's start."""
    from peft import LoraConfig

    options = {**TRAINING, **recipe.options}
    steps = len(rows) / options["per_device_train_batch_size"] * options["num_train_epochs"]
    with tempfile.TemporaryDirectory() as output:
        config = PreferenceConfig(
            output_dir=output,
            loss_type=recipe.loss,
            seed=world.seed,
            reference_cache_dir=str(folder / "reference"),
            warmup_steps=min(10, int(steps / 4)),
            **options,
        )
        other = recipe.rounds > 1 and config.objective.needs_reference
        trainer = PreferenceTrainer(
            policy,
            args=config,
            ref_model=copy.deepcopy(world.start) if other else None,
            train_dataset=Dataset.from_list(rows),
            processing_class=world.tokenizer,
            peft_config=LoraConfig(r=recipe.lora_rank, lora_alpha=2 * recipe.lora_rank)
            if recipe.lora_rank
            else None,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return trainer.model


def measure(world: World, policy: Any, recipe: Recipe, rows: list[Row]) -> dict[str, Any]:
    """Return what a policy reached on the held-out prompts, each number with its 95% interval."""
    count = world.size.policy_samples
    asked = [prompt for prompt in world.prompts for _ in range(count)]
    completions = world.sample(policy, asked, seed=world.seed + 5)
    texts = world.decode(completions)
    rewards = torch.tensor([true_reward(text) for text in texts]).view(-1, count)
    kls = sequence_kl(policy, world.start, world.encode(asked), completions).view(-1, count)
    grammatical = [parse_completion(*pair) is not None for pair in zip(asked, texts, strict=True)]
    found = {
        "reward": mean_interval(rewards),
        "kl": mean_interval(kls),
        "grammatical": sum(grammatical) / len(texts),
        "start_reward": world.rewards.mean().item(),
        "start_temperatures": world.temperatures,
        "temperatures": world.by_temperature(policy),
        "accuracy": accuracy(world, policy, held_out_pairs(world)),
        **beside_the_best(world, rewards, kls),
    }
    if recipe.shape == "pairs" and recipe.labels != "probability":
        found["train_accuracy"] = accuracy(world, policy, rows[:ACCURACY_PAIRS])
    return found


def beside_the_best(world: World, rewards: torch.Tensor, kls: torch.Tensor) -> dict[str, Any]:
    """Return the share of the best gain, and the best reward at the KL; None where it is too far.

    Args:
        world: Gives samples of the start.
        rewards: Of samples of the policy; (held-out prompts, samples), points.
        kls: From the same samples; nats.
    """
    try:
        best = frontier_at(world.rewards, kls.mean().item())
    except ValueError:  # no weights of the samples reach this KL
        return {"share": None, "best_reward": None}
    if best.effective_samples < MIN_EFFECTIVE_SAMPLES:
        return {"share": None, "best_reward": None}
    share = gain_share(world.rewards, rewards, kls, resamples=RESAMPLES)
    return {"share": share, "best_reward": best.reward, "best_beta": best.beta}


def held_out_pairs(world: World) -> list[Row]:
    """Return pairs about held-out names, the higher true reward chosen."""
    recipe = Recipe(labels="better")
    rng = random.Random(f"held out {world.seed}")
    asked = rng.choices(world.prompts, k=ACCURACY_PAIRS)
    both = [[sample_completion(prompt, rng) for prompt in asked] for _ in range(2)]
    triples = zip(asked, *both, strict=True)
    return [judged(triple, recipe, rng) for triple in triples if triple[1] != triple[2]]


def accuracy(world: World, policy: Any, rows: list[Row]) -> float:
    """Return the share of pairs whose chosen completion has the higher log-ratio."""
    asked = world.encode([row["prompt"] for row in rows])
    ratios = []
    for side in ("chosen", "rejected"):
        texts = world.encode([row[side] for row in rows])
        answers = [[*ids, world.tokenizer.eos_token_id] for ids in texts]
        both = [completion_logps(model, asked, answers) for model in (policy, world.start)]
        ratios.append(both[0] - both[1])
    return preference_accuracy(*ratios).value


def run(recipe: Recipe, seed: int, size: Size, folder: Path) -> dict[str, Any]:
    """Return the measurements of a recipe from one start; from the folder where it was done."""
    path = run_path(recipe, seed, size, folder)
    if path.exists():
        done: dict[str, Any] = json.loads(path.read_text())
        return done
    begin = time.process_time()
    world = World(seed, recipe.hidden_size, size, folder)
    policy, rows = train(world, recipe, folder)
    found = measure(world, policy, recipe, rows)
    found |= {"seed": seed, "cpu_seconds": round(time.process_time() - begin, 1)}
    write_whole(path, lambda part: part.write_text(json.dumps(found)))
    return found


def run_path(recipe: Recipe, seed: int, size: Size, folder: Path) -> Path:
    """Return where a run is kept, done or not."""
    return folder / "runs" / f"{digest(asdict(recipe), seed, asdict(size))}.json"
