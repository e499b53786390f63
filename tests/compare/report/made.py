"""A comparison as a real one looks: a toy world, eleven methods, three seeds, one failure.

Its numbers are made up; what matters is that they have the shapes and the oddities of real ones.
"""

import math
import random

from prefopt.compare import (
    Comparison,
    Curve,
    Diagnosis,
    MethodResult,
    PairedTest,
    RunRecord,
    Sample,
    WinRate,
)
from prefopt.evaluation import Estimate, FrontierPoint, mean_interval, wilson_interval

PAIRS, SEEDS, STEPS = 500, (0, 1, 2), 120
# Name, loss, options, accuracy, reward, KL, tokens, chosen and rejected log-ratio.
LOSSES = (
    ("dpo beta=0.1", "dpo", {"beta": 0.1}, 0.748, 1.31, 6.1, 31.0, -2.1, -9.8),
    ("dpo beta=0.3", "dpo", {"beta": 0.3}, 0.742, 1.05, 2.6, 28.5, 0.4, -4.0),
    ("ipo beta=0.1", "ipo", {"beta": 0.1}, 0.745, 1.22, 4.4, 29.0, 0.9, -5.2),
    ("ipo beta=0.3", "ipo", {"beta": 0.3}, 0.731, 0.81, 1.5, 27.2, 0.6, -2.0),
    ("kto beta=0.1", "kto", {"beta": 0.1}, 0.702, 0.98, 3.8, 27.9, 1.8, -3.0),
    ("slic", "slic", {}, 0.716, 0.66, 1.1, 26.8, 0.3, -1.4),
    ("orpo", "orpo", {}, 0.688, 0.72, 2.9, 26.1, 2.9, 0.8),
    ("discopop", "discopop", {}, 0.739, 1.17, 5.0, 33.8, -0.7, -7.7),
)
BASELINES = (
    ("start", "start", {}, None, 0.31, 0.0, 26.5, 0.0, 0.0),
    ("sft on chosen", "sft", {}, 0.612, 0.52, 0.9, 25.9, 2.2, 1.0),
    ("best of 4", "best-of-n", {"n": 4}, None, 0.93, 0.64, 27.5, None, None),
)
NOUNS = ("film", "lamp", "novel", "coffee", "jacket", "bicycle", "concert", "sandwich")
GOOD = ("warm", "bright", "clever", "sturdy", "gentle", "generous")
BAD = ("dull", "fragile", "noisy", "bitter", "slow")


def made_comparison(seed: int = 0) -> Comparison:
    """Return a whole comparison, the same for the same seed."""
    draw = random.Random(seed)
    methods = tuple(
        _method(draw, *row, is_baseline=row in BASELINES) for row in (*BASELINES, *LOSSES)
    )
    names = [it.name for it in methods]
    return Comparison(
        title="Which loss for toy reviews? Six losses, two betas, three seeds",
        created="2026-03-14T15:09:26",
        command="prefopt compare --model toy --dataset toy --losses 'dpo, ipo, kto, slic, orpo, "
        "discopop' --betas 0.1,0.3 --seeds 3 --output_dir toy_comparison",
        spec={
            "model": "toy",
            "dataset": {"name": "toy", "rows": 4000, "held_out": PAIRS},
            "losses": ["dpo", "ipo", "kto", "slic", "orpo", "discopop"],
            "betas": [0.1, 0.3],
            "seeds": 3,
        },
        versions={"prefopt": "0.1.0", "torch": "2.11.0", "transformers": "5.3.0", "CPU": "2 cores"},
        verdict="dpo beta=0.1 reaches the highest reward (1.31, 95% interval 1.24 to 1.38); ipo "
        "beta=0.1 is not distinguishable from it (difference 0.09, corrected p = 0.21). In "
        "held-out accuracy dpo, ipo and discopop are alike; kto is 4.6 points worse "
        "(2.1 to 7.1, corrected p = 0.004), and always taking the longer answer would score 61.4%.",
        methods=methods,
        data_baselines={
            "longer": wilson_interval(307, PAIRS),
            "shorter": wilson_interval(193, PAIRS),
            "start": wilson_interval(281, PAIRS),
            "chosen_reward": Estimate(0.71, 0.64, 0.78, PAIRS),
            "rejected_reward": Estimate(-0.42, -0.49, -0.35, PAIRS),
        },
        tests=tuple(_tests(methods)),
        frontier=tuple(
            FrontierPoint(10 / (it + 1), 0.31 + 0.62 * math.sqrt(kl), kl, 400.0 - 8 * it)
            for it in range(40)
            if (kl := (it / 39) ** 1.5 * 7) >= 0
        ),
        curves=tuple(_curves(draw)),
        win_rates=tuple(_win_rates(draw, methods)),
        diagnoses=tuple(_diagnoses(names)),
        samples=tuple(_samples(draw, names)),
        runs=tuple(_runs()),
    )


def _method(
    draw, name, loss, options, accuracy, reward, kl, tokens, chosen, rejected, *, is_baseline
):
    metrics = {
        "reward": _mean(draw, reward, 0.8, 400),
        "kl": _mean(draw, kl, 0.3 * kl, 400) if kl else Estimate(0.0, 0.0, 0.0, 400),
        "completion_tokens": _mean(draw, tokens, 8.0, 400),
        "distinct_2": Estimate(0.42, 0.40, 0.44, 400),
        "truncated": wilson_interval(round(max(0.0, tokens - 26) * 3), 400),
    }
    if accuracy is not None:
        metrics |= {
            "accuracy": wilson_interval(round(accuracy * PAIRS), PAIRS),
            "log_ratio_accuracy": wilson_interval(round(accuracy * PAIRS) - 3, PAIRS),
            "balanced_accuracy": wilson_interval(round((accuracy - 0.04) * 386), 386),
            "margin_length_correlation": _mean(draw, (tokens - 26) / 20, 1.0, PAIRS),
            "start_agreement": wilson_interval(round(0.6 * PAIRS), PAIRS),
        }
    if chosen is not None:
        metrics |= {
            "margin": _mean(draw, chosen - rejected, 4.0, PAIRS),
            "chosen_log_ratio": _mean(draw, chosen, 3.0, PAIRS),
            "rejected_log_ratio": _mean(draw, rejected, 3.0, PAIRS),
        }
    seeds = {
        "reward": tuple(reward + draw.gauss(0, 0.06) for _ in SEEDS),
        "kl": tuple(max(0.0, kl * (1 + draw.gauss(0, 0.08))) for _ in SEEDS),
    }
    return MethodResult(name, loss, options, is_baseline, metrics, {} if is_baseline else seeds)


def _mean(draw, value, spread, size):
    import torch

    values = torch.tensor([draw.gauss(0, spread) for _ in range(size)], dtype=torch.float64)
    return mean_interval(values - values.mean() + value)


def _tests(methods):
    known = [it for it in methods if "accuracy" in it.metrics]
    for place, first in enumerate(known):
        for second in known[place + 1 :]:
            gap = first.metrics["accuracy"].value - second.metrics["accuracy"].value
            p = math.erfc(abs(gap) / 0.014 / math.sqrt(2))
            difference = Estimate(gap, gap - 0.035, gap + 0.035, PAIRS)
            yield PairedTest(first.name, second.name, "accuracy", difference, p, min(1.0, p * 6))


def _curves(draw):
    for name, _, _, accuracy, _, _, _, chosen, rejected in LOSSES:
        for seed in SEEDS:
            if (name, seed) == ("orpo", 2):
                continue
            steps = tuple(range(1, STEPS + 1))
            grown = [1 - math.exp(-step / 35) for step in steps]
            noise = draw.gauss(0, 0.02)
            targets = {
                "loss": (0.693, 0.52 + noise, 0.03),
                "eval_loss": (0.693, 0.56 + noise, 0.004),
                "rewards/accuracies": (0.5, accuracy + 0.06, 0.05),
                "rewards/margins": (0.0, 0.1 * (chosen - rejected), 0.05),
                "logps/chosen": (-48.0, -48.0 + chosen, 0.6),
                "logps/rejected": (-50.0, -50.0 + rejected, 0.6),
                "grad_norm": (3.0, 1.0, 0.4),
            }
            for metric, (start, end, spread) in targets.items():
                values = tuple(start + (end - start) * it + draw.gauss(0, spread) for it in grown)
                yield Curve(name, seed, metric, steps, values)


def _win_rates(draw, methods):
    for method in methods:
        if method.name == "best of 4":
            continue
        for against, shift in (("chosen", -0.12), ("start", 0.0)):
            if (method.name, against) == ("start", "start"):
                continue
            for temperature in (0.0, 0.25, 0.7, 1.0):
                share = 0.5 + shift + 0.26 * (method.metrics["reward"].value - 0.31)
                share += 0.06 * (0.7 - temperature) + draw.gauss(0, 0.01)
                rate = wilson_interval(round(share * 200), 200)
                equal = wilson_interval(round((share - 0.03) * 200), 200)
                yield WinRate(method.name, against, temperature, rate, equal)


def _diagnoses(names):
    for name in names[3:]:
        displaced, longer = name in ("dpo beta=0.1", "discopop"), name == "discopop"
        yield Diagnosis(
            name,
            "likelihood displacement",
            displaced,
            "The chosen answers became less probable than at the start: log-ratio −2.1 nats "
            "(−2.4 to −1.8), while the margin grew to 7.7."
            if displaced
            else "The chosen answers did not become less probable (log-ratio at least −0.1 nats).",
        )
        yield Diagnosis(
            name,
            "length bias",
            longer,
            "Answers grew from 26.5 to 33.8 tokens, and the margin follows length (r = 0.39)."
            if longer
            else "Answers are as long as at the start, within 20%.",
        )
        yield Diagnosis(
            name, "over-optimisation", False, "The reward grew as long as the margin did."
        )


def _samples(draw, names):
    for place in range(24):
        noun = NOUNS[place % len(NOUNS)]
        prompt = f"Review {place + 1}: the {noun} from the shop on the corner"
        yield Sample(
            prompt, "chosen", f"was {draw.choice(GOOD)} and worth its price.", None, 1.4, 9
        )
        for name in names:
            for temperature in (0.0, 1.0):
                words = [draw.choice(GOOD if draw.random() < 0.7 else BAD) for _ in range(3)]
                text = f"was {words[0]}, {words[1]} and {words[2]}; I would take the {noun} again"
                text += ", and again" * draw.choice((0, 0, 0, 12))
                reward = sum(1 if it in GOOD else -1 for it in words) * 0.6
                yield Sample(
                    prompt,
                    name,
                    text + ".",
                    temperature,
                    reward,
                    len(text.split()),
                    len(text) > 120,
                )


def _runs():
    for name, *_ in (BASELINES[1], *LOSSES):
        for seed in SEEDS:
            folder = f"{name.replace(' ', '-').replace('=', '')}-{seed}-{hash_of(name, seed)}"
            command = f"python -m prefopt train --config toy_comparison/runs/{folder}/train.yaml"
            if (name, seed) == ("orpo", 2):
                error = "torch.OutOfMemoryError: tried to allocate 1.2 GiB, 0.9 GiB are free"
                yield RunRecord(folder, name, seed, "failed", command, None, None, error)
            else:
                yield RunRecord(folder, name, seed, "done", command, 71.5 + seed, 412_000)


def hash_of(name: str, seed: int) -> str:
    """Return eight hexadecimal digits."""
    return f"{random.Random(f'{name}{seed}').getrandbits(32):08x}"
