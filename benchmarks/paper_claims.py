"""Claims of papers that need no language model: a bandit, and the shape of two losses.

- IPO (Azar et al. 2023, arXiv:2310.12036): three arms with deterministic preferences. DPO ends at a
  deterministic policy whatever its regularisation, IPO stays near the reference as tau grows.
- DPO (Rafailov et al. 2023, arXiv:2305.18290): its gradient weighs an example by the sigmoid of
  the reversed reward margin.
- DiscoPOP (Lu et al. 2024, arXiv:2406.08414): it is not convex, and around a margin of 0 its slope
  has the wrong sign at beta 0.05 and tau 0.05.

    python benchmarks/paper_claims.py        # half a minute of one core
"""

import argparse
import json
import math
from pathlib import Path
from typing import NamedTuple

import record
import torch
from torch import Tensor

from prefopt.losses import get_loss

ARMS = ("best", "middle", "worst")
PAIRS = torch.tensor([[0, 1], [1, 2], [0, 2]])  # the better arm of each first: a total order
STRENGTHS = (0.1, 0.5, 1.0)  # beta of DPO, tau of IPO
BATCH = 9
LEARNING_RATE = 0.01
COLOURS = ("#1b6ca8", "#c2951b", "#d1603d")


class Bandit(NamedTuple):
    """Policies along training, from a uniform reference.

    Attributes:
        steps: Steps done; (T,).
        probabilities: Of the arms, mean, lowest and highest of the seeds; (T, 3 arms), each.
    """

    steps: list[int]
    mean: Tensor
    low: Tensor
    high: Tensor


def train_bandit(
    name: str, strength: float, steps: int, seeds: int = 10, every: int = 50
) -> Bandit:
    """Train softmax policies over the arms, a batch of pairs drawn anew at each step.

    Args:
        name: ``dpo`` or ``ipo``.
        strength: Its beta, the paper's tau.
        steps: Steps of Adam.
        seeds: Policies, each with its own draws.
        every: Steps between two records.
    """
    generator = torch.Generator().manual_seed(0)
    scores = torch.zeros(seeds, len(ARMS), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([scores], lr=LEARNING_RATE)
    done, records = [0], [scores.detach().softmax(-1)]
    for step in range(1, steps + 1):
        pairs = PAIRS[torch.randint(len(PAIRS), (seeds, BATCH), generator=generator)]
        optimiser.zero_grad()
        # A sum over seeds of means over pairs: each policy is trained as if alone.
        bandit_losses(name, strength, scores, pairs).mean(1).sum().backward()
        optimiser.step()
        if step % every == 0:
            done.append(step)
            records.append(scores.detach().softmax(-1))
    along = torch.stack(records)
    return Bandit(done, along.mean(1), along.amin(1), along.amax(1))


def bandit_losses(name: str, strength: float, scores: Tensor, pairs: Tensor) -> Tensor:
    """Return the loss of pairs of arms under policies; (seeds, pairs).

    Args:
        name: The loss.
        strength: Its beta.
        scores: Of the arms; (seeds, arms).
        pairs: The better and the worse arm; (seeds, pairs, 2).
    """
    logps = scores.log_softmax(-1)
    chosen, rejected = (logps.gather(1, pairs[..., side]).flatten() for side in (0, 1))
    uniform = torch.full_like(chosen, -math.log(len(ARMS)))
    values = {
        "chosen_logps": chosen,
        "rejected_logps": rejected,
        "ref_chosen_logps": uniform,
        "ref_rejected_logps": uniform,
        "chosen_lengths": torch.ones_like(chosen),
        "rejected_lengths": torch.ones_like(chosen),
    }
    loss = get_loss(name)
    options = {"beta": strength} | ({"normalize": "sum"} if name == "ipo" else {})
    return loss(**{key: values[key] for key in loss.inputs}, **options).losses.view(pairs.shape[:2])


def ipo_limit(tau: float) -> Tensor:
    """Return the policy at IPO's minimum; (arms,).

    The three gaps aim at 1/(2 tau), but the gap of best and worst is the sum of the others: least
    squares makes these 1/(3 tau).
    """
    gap = 1 / (3 * tau)
    return torch.tensor([2 * gap, gap, 0.0], dtype=torch.float64).softmax(0)


class Shape(NamedTuple):
    """A loss and its slope over the reward margin; (N,), each."""

    margins: Tensor
    losses: Tensor
    slopes: Tensor


def shape(name: str, margins: Tensor, **options: float) -> Shape:
    """Return a loss of pairs and its slope over the reward margin, options off their defaults."""
    loss = get_loss(name)
    beta = options.get("beta", loss.hyperparameters["beta"])
    margins = margins.clone().requires_grad_()
    zero = torch.zeros_like(margins)
    losses = loss(
        chosen_logps=margins / beta,
        rejected_logps=zero,
        ref_chosen_logps=zero,
        ref_rejected_logps=zero,
        **options,
    ).losses
    (slopes,) = torch.autograd.grad(losses.sum(), margins)
    return Shape(margins.detach(), losses.detach(), slopes)


def sign_changes(curve: Shape) -> list[float]:
    """Return the margins where a slope changes its sign."""
    places = torch.nonzero(curve.slopes[1:].sign() != curve.slopes[:-1].sign()).flatten()
    return curve.margins[places].tolist()


def draw_bandit(runs: dict[tuple[str, float], Bandit], path: Path) -> None:
    """Draw the policies along training: a row per loss, a column per strength."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 5.4), dpi=150, layout="constrained")
    axes = figure.subplots(2, len(STRENGTHS), sharex=True, sharey=True)
    for (name, strength), run in runs.items():
        axis = axes[("dpo", "ipo").index(name), STRENGTHS.index(strength)]
        for arm, colour in enumerate(COLOURS):
            axis.plot(run.steps, run.mean[:, arm], color=colour, label=ARMS[arm])
            axis.fill_between(
                run.steps, run.low[:, arm], run.high[:, arm], color=colour, alpha=0.2, linewidth=0
            )
            if name == "ipo":
                axis.axhline(ipo_limit(strength)[arm], color=colour, linestyle=":", linewidth=1.2)
        axis.axhline(1 / 3, color="#888888", linestyle="--", linewidth=1)
        axis.set_title(f"{name.upper()}, {'beta' if name == 'dpo' else 'tau'} = {strength}")
        axis.set_ylim(-0.02, 1.02)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel("probability of the arm")
    for axis in axes[1]:
        axis.set_xlabel("steps")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    handles += [
        axes[0, 0].plot([], [], color="#888888", linestyle="--", linewidth=1)[0],
        axes[0, 0].plot([], [], color="#555555", linestyle=":", linewidth=1.2)[0],
    ]
    labels += ["reference", "minimum of IPO, in closed form"]
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(path, metadata={"Software": None})


def draw_shapes(discopop: Shape, dpo: Shape, path: Path) -> None:
    """Draw DiscoPOP with the part where its slope has the wrong sign, and the weights of DPO."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.4), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    turns = sign_changes(discopop)
    left.plot(discopop.margins, discopop.losses, color=COLOURS[0], label="DiscoPOP")
    left.axvspan(*turns, color=COLOURS[2], alpha=0.2, linewidth=0, label="margin is pushed down")
    left.set_title("DiscoPOP at beta 0.05, tau 0.05")
    left.set_ylabel("loss")
    right.plot(dpo.margins, -dpo.slopes, color=COLOURS[0], linewidth=3, label="measured")
    right.plot(
        dpo.margins, torch.sigmoid(-dpo.margins), "--", color="black", label="sigmoid(−margin)"
    )
    right.set_title("Weight of an example in DPO's gradient")
    right.set_ylabel("weight, in units of beta")
    for axis in (left, right):
        axis.set_xlabel("reward margin")
        axis.legend(frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Software": None})


def main() -> None:
    """Train the bandits, draw both figures, and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=record.results_folder, default=record.RESULTS)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--allow-dirty", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    circumstances = record.environment(
        seed=0, dtype="float64", threads=1, allow_dirty=options.allow_dirty
    )
    runs = {
        (name, strength): train_bandit(name, strength, options.steps)
        for name in ("dpo", "ipo")
        for strength in STRENGTHS
    }
    discopop = shape("discopop", torch.linspace(-0.5, 0.5, 1001, dtype=torch.float64))
    dpo = shape("dpo", torch.linspace(-6, 6, 241, dtype=torch.float64))
    draw_bandit(runs, options.out / "ipo_bandit.png")
    draw_shapes(discopop, dpo, options.out / "paper_claims.png")
    numbers = {
        "environment": circumstances,
        "steps": options.steps,
        "final_policies": {
            f"{name} {strength}": [round(value, 5) for value in run.mean[-1].tolist()]
            for (name, strength), run in runs.items()
        },
        "ipo_minima": {
            str(strength): [round(value, 5) for value in ipo_limit(strength).tolist()]
            for strength in STRENGTHS
        },
        "discopop_margins_where_the_slope_changes_sign": sign_changes(discopop),
        "dpo_largest_difference_of_weight_and_sigmoid": float(
            (dpo.slopes + torch.sigmoid(-dpo.margins)).abs().max()
        ),
    }
    (options.out / "paper_claims.json").write_text(json.dumps(numbers, indent=2) + "\n")
    print(json.dumps({key: numbers[key] for key in list(numbers)[2:]}, indent=2))


if __name__ == "__main__":
    main()
