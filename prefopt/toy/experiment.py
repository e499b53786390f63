"""What is toy about the toy experiment: its start, its data, and what its true reward measures.

``prefopt.compare`` trains the methods. Reference policy and reward are both known here, so what no
real data set can show is measured beside it: the true reward of a policy's samples along training,
its KL from the reference, and the best reward of any policy at that KL.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from prefopt.evaluation import (
    Estimate,
    FrontierPoint,
    PairLogps,
    implicit_rewards,
    mean_interval,
    preference_accuracy,
    reward_frontier,
    sample_completions,
    sequence_kl,
    token_logps,
)
from prefopt.objective import Objective, parse_objective
from prefopt.toy.data import Row, sample_pairs, sample_unpaired
from prefopt.toy.grammar import HELD_OUT_NAMES, NAMES, parse_completion, prompts
from prefopt.toy.model import build_model, build_tokenizer, fit_model
from prefopt.toy.reward import preference_probability, true_reward

__all__ = [
    "METHODS",
    "Experiment",
    "ExperimentSize",
    "Measurement",
    "Method",
    "MethodRun",
    "PolicyEvaluator",
]

# A pair to try, before anything is trained, whether a loss defines rewards.
ONE = torch.ones(1)
A_PAIR = PairLogps(-ONE, -ONE, ONE.long(), ONE.long(), -torch.ones(2))
MAX_NEW_TOKENS = 32  # the longest text of the grammar has 23 words
FRONTIER_BETAS = tuple(
    tenths / 10
    for tenths in (80, 60, 50, 40, 35, 30, 26, 23, 20, 18, 16, 14, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3)
)
TRAINING = {
    "learning_rate": 5e-4,
    "lr_scheduler_type": "linear",
    "weight_decay": 0.0,
    # So tiny a model gains nothing from sharing six words of prompt.
    "layout": "padded",
}


@dataclass(frozen=True)
class Method:
    """How the experiment trains with one loss.

    Attributes:
        loss_type: A loss, or a sum such as ``dpo + 0.2*sft``.
        options: Fields of ``PreferenceConfig``.
    """

    loss_type: str
    options: dict[str, Any] = field(default_factory=dict)


METHODS = {
    method.loss_type: method
    for method in (
        Method("dpo", {"learning_rate": 8e-4, "beta": 0.3}),
        Method("ipo", {"learning_rate": 8e-4, "beta": 0.05, "loss_kwargs": {"normalize": "sum"}}),
        Method("kto", {"learning_rate": 8e-4, "beta": 0.3}),
        Method("orpo", {"learning_rate": 1e-3, "loss_kwargs": {"lambda_": 5.0}}),
        Method("slic", {"learning_rate": 8e-4, "loss_kwargs": {"delta": 4.0, "lambda_": 1.0}}),
        Method("hinge", {"learning_rate": 8e-4, "beta": 0.5}),
        Method("discopop", {"learning_rate": 1.2e-3, "beta": 0.3}),
    )
}
"""Settings found on seed 0; a loss that is not here gets its defaults."""


@dataclass(frozen=True)
class ExperimentSize:
    """Size of an experiment; the defaults take about two minutes on two cores.

    Attributes:
        fit_steps: Optimiser steps that fit the start to the language.
        pairs: Training pairs.
        held_out_pairs: Pairs about names that training never sees.
        steps: Optimiser steps of each method.
        batch_size: Pairs per step.
        checkpoints: Measurements after the start, evenly over the steps.
        samples_per_prompt: Samples behind each of them, for each of the held-out prompts.
        frontier_samples: Samples of the start behind the frontier, for each of the prompts.
        min_effective_samples: Where the frontier ends.
    """

    fit_steps: int = 400
    pairs: int = 6400
    held_out_pairs: int = 500
    steps: int = 100
    batch_size: int = 64
    checkpoints: int = 6
    samples_per_prompt: int = 96
    frontier_samples: int = 2048
    min_effective_samples: float = 25.0


class SampleSummary(NamedTuple):
    """What the samples of a policy show: the last three fields of ``Measurement``."""

    reward: Estimate
    kl: Estimate
    grammatical: float


@dataclass(frozen=True)
class Measurement:
    """A policy at one moment of its training.

    Attributes:
        step: Optimiser steps so far.
        accuracy: Share of held-out pairs whose chosen completion has the higher implicit reward.
        margin: Mean log-ratio of chosen minus rejected held-out completions, in nats.
        reward: True reward of the policy's samples, in points.
        kl: KL(policy || reference) of whole completions, in nats.
        grammatical: Share of the samples that are texts of the grammar.
    """

    step: int
    accuracy: Estimate
    margin: float
    reward: Estimate
    kl: Estimate
    grammatical: float


@dataclass(frozen=True)
class MethodRun:
    """The training of one method.

    Attributes:
        name: The loss.
        path: Measurements from the start to the end of training.
        seconds: What training took, the start of its process included.
        samples: A completion of each held-out prompt by the trained policy.
    """

    name: str
    path: list[Measurement]
    seconds: float
    samples: list[Row]


class PolicyEvaluator:
    """Measures policies against the reference they started from.

    Args:
        reference: The start; kept, and not changed.
        tokenizer: Of all policies.
        pairs: Held-out pairs, from ``sample_pairs``.
        seed: Of all samples.
    """

    def __init__(
        self,
        reference: LlamaForCausalLM,
        tokenizer: PreTrainedTokenizerFast,
        pairs: list[Row],
        *,
        seed: int = 0,
    ) -> None:
        self.reference = reference.eval()
        self.tokenizer = tokenizer
        self.seed = seed
        self.prompts = prompts(HELD_OUT_NAMES)
        self._pair_prompts = self._encode([row["prompt"] for row in pairs])
        eos = tokenizer.eos_token_id
        self._chosen = [[*ids, eos] for ids in self._encode([row["chosen"] for row in pairs])]
        self._rejected = [[*ids, eos] for ids in self._encode([row["rejected"] for row in pairs])]
        self._reference_logps = self._pair_logps(reference)
        self._reference_summaries: dict[int, SampleSummary] = {}
        # The labels are noisy, so the true reward itself does not order all pairs as they do.
        self.best_accuracy = sum(
            preference_probability(abs(row["reward_chosen"] - row["reward_rejected"]), 0.0)
            for row in pairs
        ) / len(pairs)

    def measure(
        self, policy: Any, objective: Objective, *, step: int = 0, samples_per_prompt: int = 96
    ) -> Measurement:
        """Return a policy's measurement; the objective defines the implicit rewards."""
        training = policy.training
        policy.eval()
        logps, reference = self._pair_logps(policy), self._reference_logps
        rewards = implicit_rewards(objective, logps, reference)
        margins = (logps.chosen - reference.chosen) - (logps.rejected - reference.rejected)
        if policy is not self.reference:
            summary = self._summarise(policy, samples_per_prompt, self.seed + step)
        else:  # every method starts here: sample it once
            if samples_per_prompt not in self._reference_summaries:
                self._reference_summaries[samples_per_prompt] = self._summarise(
                    policy, samples_per_prompt, self.seed + step
                )
            summary = self._reference_summaries[samples_per_prompt]
        policy.train(training)
        return Measurement(
            step=step,
            accuracy=preference_accuracy(rewards.chosen, rewards.rejected),
            margin=margins.mean().item(),
            **summary._asdict(),
        )

    def frontier(
        self,
        samples_per_prompt: int = 2048,
        *,
        min_effective_samples: float = 25.0,
        on_samples: Callable[[int], None] | None = None,
    ) -> list[FrontierPoint]:
        """Return the best reachable reward by KL, from samples of the reference for each prompt."""
        rewards: list[list[float]] = []
        for index, prompt in enumerate(self.prompts):
            completions = sample_completions(
                self.reference,
                self._encode([prompt] * samples_per_prompt),
                max_new_tokens=MAX_NEW_TOKENS,
                eos_token_id=self.tokenizer.eos_token_id,
                batch_size=2048,
                seed=self.seed + 7919 * (index + 1),
            )
            rewards.append([true_reward(text) for text in self._decode(completions)])
            if on_samples is not None:
                on_samples(samples_per_prompt)
        return reward_frontier(
            torch.tensor(rewards), FRONTIER_BETAS, min_effective_samples=min_effective_samples
        )

    def sample(self, policy: Any, count: int = 1) -> list[Row]:
        """Return samples of a policy, so many for each held-out prompt, with true rewards."""
        asked, completions = self._sample(policy.eval(), count, self.seed)
        return [
            {"prompt": prompt, "completion": text, "reward": true_reward(text)}
            for prompt, text in zip(asked, self._decode(completions), strict=True)
        ]

    def _summarise(self, policy: Any, count: int, seed: int) -> SampleSummary:
        asked, completions = self._sample(policy, count, seed)
        texts = self._decode(completions)
        parses = map(parse_completion, asked, texts)
        return SampleSummary(
            reward=mean_interval(torch.tensor([true_reward(text) for text in texts])),
            kl=mean_interval(sequence_kl(policy, self.reference, self._encode(asked), completions)),
            grammatical=sum(parse is not None for parse in parses) / len(texts),
        )

    def _sample(self, policy: Any, count: int, seed: int) -> tuple[list[str], list[list[int]]]:
        asked = [prompt for prompt in self.prompts for _ in range(count)]
        completions = sample_completions(
            policy,
            self._encode(asked),
            max_new_tokens=MAX_NEW_TOKENS,
            eos_token_id=self.tokenizer.eos_token_id,
            batch_size=1024,
            seed=seed,
        )
        return asked, completions

    def _pair_logps(self, model: Any) -> PairLogps:
        chosen = token_logps(model, self._pair_prompts, self._chosen)
        rejected = token_logps(model, self._pair_prompts, self._rejected)
        return PairLogps(
            torch.stack([tokens.sum() for tokens in chosen]),
            torch.stack([tokens.sum() for tokens in rejected]),
            torch.tensor([len(tokens) for tokens in chosen]),
            torch.tensor([len(tokens) for tokens in rejected]),
            torch.cat([*chosen, *rejected]),
        )

    def _encode(self, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(texts)["input_ids"]
        return ids

    def _decode(self, completions: list[list[int]]) -> list[str]:
        return [" " + t for t in self.tokenizer.batch_decode(completions, skip_special_tokens=True)]


class Experiment:
    """Fits a start, and trains methods from it.

    Args:
        losses: Losses to train with, by name or as sums.
        seed: Of data, weights and samples.
        size: Its size; None for the defaults.

    Attributes:
        train_pairs: What the methods learn from.
        held_out_pairs: What they are evaluated on, about other names.
        evaluator: Measures policies; made by ``fit``.

    Raises:
        ValueError: If a loss is unknown, or defines no rewards on pairs.
    """

    def __init__(
        self, losses: Sequence[str], *, seed: int = 0, size: ExperimentSize | None = None
    ) -> None:
        self.size = size or ExperimentSize()
        self.seed = seed
        self.methods = [METHODS.get(name, Method(name)) for name in losses]
        for method in self.methods:
            try:
                implicit_rewards(parse_objective(method.loss_type), A_PAIR, A_PAIR)
            except ValueError as error:
                raise ValueError(
                    f"{method.loss_type!r} has no held-out accuracy, since {error}: name another "
                    "loss on pairs, unpaired rows or rankings, such as 'dpo'"
                ) from None
        known = [name for name in NAMES if name not in HELD_OUT_NAMES]
        self.train_pairs = sample_pairs(self.size.pairs, seed=seed, names=known)
        self.held_out_pairs = sample_pairs(
            self.size.held_out_pairs, seed=seed + 1, names=HELD_OUT_NAMES
        )
        self.tokenizer = build_tokenizer()
        self.start = build_model(self.tokenizer, seed=seed)

    def fit(self, on_step: Callable[[float], None] | None = None) -> None:
        """Fit the start to the language; ``on_step`` gets each loss, in nats per completion."""
        fit_model(
            self.start, self.tokenizer, steps=self.size.fit_steps, seed=self.seed, on_step=on_step
        )
        self.evaluator = PolicyEvaluator(
            self.start, self.tokenizer, self.held_out_pairs, seed=self.seed
        )

    def save(self, folder: Path) -> None:
        """Write ``start/``, ``pairs.jsonl``, ``held_out.jsonl`` and ``unpaired.jsonl``."""
        self.start.save_pretrained(folder / "start")
        self.tokenizer.save_pretrained(folder / "start")
        unpaired = sample_unpaired(self.size.pairs, seed=self.seed)
        for name, rows in (
            ("pairs", self.train_pairs),
            ("held_out", self.held_out_pairs),
            ("unpaired", unpaired),
        ):
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")

    @property
    def run_options(self) -> dict[str, Any]:
        """Options of ``prefopt train`` for all methods; checkpoints are what is measured later."""
        size = self.size
        return {
            **TRAINING,
            "max_steps": size.steps,
            "per_device_train_batch_size": size.batch_size,
            # A trial of few steps has no room for the whole warm-up.
            "warmup_steps": min(10, size.steps // 2),
            "use_cpu": True,
            "save_steps": max(1, round(size.steps / size.checkpoints)),
            "save_total_limit": None,
            "save_only_model": False,
        }

    def measure(self, method: Method, folder: Path, seconds: float) -> MethodRun:
        """Measure a trained method along its training, by its checkpoints.

        Args:
            method: What was trained.
            folder: Its model, with checkpoints; the last one is the model.
            seconds: What training took.
        """
        objective = parse_objective(method.loss_type, options=_hyperparameters(method.options))
        steps = sorted(
            (int(path.name.rpartition("-")[2]), path)
            for path in folder.glob("checkpoint-*")
            if re.fullmatch(r"checkpoint-\d+", path.name)
        )
        path = [self._measured(self.start, objective, 0)]
        policy: Any = self.start
        for step, checkpoint in steps:
            policy = LlamaForCausalLM.from_pretrained(checkpoint)
            path.append(self._measured(policy, objective, step))
        return MethodRun(method.loss_type, path, seconds, self.evaluator.sample(policy))

    def _measured(self, policy: Any, objective: Objective, step: int) -> Measurement:
        # The table shows the first and the last: they get four times the samples.
        scale = 4 if step in (0, self.size.steps) else 1
        count = scale * self.size.samples_per_prompt
        return self.evaluator.measure(policy, objective, step=step, samples_per_prompt=count)


def _hyperparameters(options: dict[str, Any]) -> dict[str, Any]:
    """Return those of a method's options that are of its loss."""
    named = {name: options[name] for name in ("beta", "label_smoothing") if name in options}
    return {**named, **options.get("loss_kwargs", {})}
