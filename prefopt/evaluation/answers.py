"""What a policy answers to held-out prompts: drawn, counted, rewarded, and its KL estimated."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from prefopt.evaluation.generation import generate
from prefopt.evaluation.intervals import Estimate, bootstrap_interval
from prefopt.evaluation.judges import PointJudge
from prefopt.evaluation.prompts import Prompt
from prefopt.evaluation.sampling import Generation
from prefopt.evaluation.scoring import PolicyScorer
from prefopt.evaluation.statistics import cluster_interval
from prefopt.evaluation.text import distinct_ngrams

__all__ = [
    "AnswerEvaluation",
    "AskedPrompt",
    "SampledAnswer",
    "SamplingPlan",
    "evaluate_answers",
]


@dataclass(frozen=True)
class SamplingPlan:
    """What a policy is asked, and how its answers are drawn.

    Attributes:
        temperatures: Of the samples; 0 takes the most likely token each time. What is measured of
            answers is measured at temperature 1, the policy's own distribution.
        samples_per_prompt: Answers to each prompt, at each temperature but 0.
        max_prompts: Most prompts, drawn by the seed; None for all, 0 for none.
        max_new_tokens: Most tokens of an answer.
        batch_size: Answers that are written together.
        seed: Of the prompts and of the answers.

    Raises:
        ValueError: If a setting is out of its range.
    """

    temperatures: tuple[float, ...] = (1.0,)
    samples_per_prompt: int = 1
    max_prompts: int | None = 100
    max_new_tokens: int = 256
    batch_size: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the settings."""
        if not all(0 <= one < math.inf for one in self.temperatures):
            raise ValueError(f"temperatures must be at least 0, got {list(self.temperatures)}")
        if len(set(self.temperatures)) < len(self.temperatures):
            raise ValueError(f"a temperature is given twice: {list(self.temperatures)}")
        least = {"samples_per_prompt": 1, "max_new_tokens": 1, "batch_size": 1, "max_prompts": 0}
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise ValueError(f"{name} must be at least {smallest}, got {value}")

    @property
    def asks(self) -> bool:
        """Whether anything is asked."""
        return self.max_prompts != 0 and bool(self.temperatures)


class AskedPrompt(NamedTuple):
    """A prompt that a policy is asked.

    Attributes:
        row: Number of the first row of the data with this prompt.
        prompt: As the data have it.
        text: As people read it.
        prompt_ids: Its token ids.
        chosen: The data's own best answer, as text; None if the row has none.
        chosen_tokens: Its length, 0 without one.
    """

    row: int
    prompt: Prompt
    text: str
    prompt_ids: Sequence[int]
    chosen: str | None = None
    chosen_tokens: int = 0


class SampledAnswer(NamedTuple):
    """An answer to a prompt.

    Attributes:
        row: Number of the first row of the data with this prompt.
        prompt: What was asked, as text.
        completion: The answer.
        temperature: Of the sample; None for the data's own answer.
        reward: Of the answer; None where answers are not rewarded.
        tokens: Its length, the token that ends it included.
        truncated: Whether it was cut at ``max_new_tokens``.
        method: ``chosen`` for the data's own answer; None for the policy's.
    """

    row: int
    prompt: str
    completion: str
    temperature: float | None
    reward: float | None
    tokens: int
    truncated: bool
    method: str | None = None


@dataclass
class AnswerEvaluation:
    """What a policy answered.

    Attributes:
        metrics: Of answers at temperature 1, with intervals over prompts, whose number is their
            ``size``: ``kl`` (nats a completion), ``completion_tokens``, ``truncated``,
            ``distinct_1``, ``distinct_2``, and where answers are rewarded ``reward`` and
            ``best_of_n_reward``.
        samples: The data's own answers, and all of the policy's, temperature by temperature,
            prompt by prompt.
        data_baselines: ``chosen_reward``, of the data's own answers to the same prompts, where
            answers are rewarded.
        notes: What could not be measured, and why.
    """

    metrics: dict[str, Estimate] = field(default_factory=dict)
    data_baselines: dict[str, Estimate] = field(default_factory=dict)
    samples: list[SampledAnswer] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class _Drawn(NamedTuple):
    """Answers at one temperature.

    Attributes:
        prompts: The number of the prompt of each; (N,).
        generations: The answers.
        rewards: Of each; None where answers are not rewarded.
    """

    prompts: list[int]
    generations: list[Generation]
    rewards: list[float] | None


def evaluate_answers(
    scorer: PolicyScorer,
    asked: Sequence[AskedPrompt],
    plan: SamplingPlan,
    reward: PointJudge | None = None,
) -> AnswerEvaluation:
    """Have a policy answer prompts at each temperature, and measure the answers.

    Args:
        scorer: The policy, and the reference if there is one.
        asked: The prompts, each once.
        plan: How answers are drawn; its ``max_prompts`` is ignored.
        reward: Scores answers.

    Raises:
        ValueError: If the reward is not a finite number for each answer, or a prompt leaves the
            model's window no room for an answer.
    """
    found = AnswerEvaluation(samples=_of_data(asked, reward))
    rewards = [one.reward for one in found.samples if one.reward is not None]
    if len(rewards) > 1:
        found.data_baselines["chosen_reward"] = bootstrap_interval(torch.tensor(rewards))
    for temperature in plan.temperatures:
        drawn = _drawn(scorer, asked, plan, temperature, reward)
        found.samples += _samples(asked, drawn, temperature)
        if temperature == 1:
            _measure(found, scorer, asked, drawn)
    if 1 not in plan.temperatures:
        found.notes.append("kl, reward and lengths of answers: these need samples at temperature 1")
    return found


def _drawn(
    scorer: PolicyScorer,
    asked: Sequence[AskedPrompt],
    plan: SamplingPlan,
    temperature: float,
    reward: PointJudge | None,
) -> _Drawn:
    count = plan.samples_per_prompt if temperature else 1
    generations = generate(
        scorer.model,
        scorer.tokenizer,
        [list(one.prompt_ids) for one in asked],
        temperature=temperature,
        max_new_tokens=plan.max_new_tokens,
        samples=count,
        seed=plan.seed,
        batch_size=plan.batch_size,
    )
    prompts = [number for number in range(len(asked)) for _ in range(count)]
    rewards = None
    if reward is not None:
        given = [asked[number].prompt for number in prompts]
        rewards = reward.scores(given, [made.text for made in generations])
    return _Drawn(prompts, generations, rewards)


def _of_data(asked: Sequence[AskedPrompt], reward: PointJudge | None) -> list[SampledAnswer]:
    """Return the data's own answers, to be read beside those of the policy."""
    its = [(one, one.chosen) for one in asked if one.chosen is not None]
    rewards: Sequence[float | None] = [None] * len(its)
    if reward is not None and its:
        rewards = reward.scores([one.prompt for one, _ in its], [text for _, text in its])
    return [
        SampledAnswer(one.row, one.text, text, None, its_reward, one.chosen_tokens, False, "chosen")
        for (one, text), its_reward in zip(its, rewards, strict=True)
    ]


def _samples(
    asked: Sequence[AskedPrompt], drawn: _Drawn, temperature: float
) -> list[SampledAnswer]:
    nothing: list[float | None] = [None] * len(drawn.prompts)
    rewards = nothing if drawn.rewards is None else drawn.rewards
    return [
        SampledAnswer(
            asked[number].row,
            asked[number].text,
            made.text,
            temperature,
            reward,
            made.tokens,
            made.truncated,
        )
        for number, made, reward in zip(drawn.prompts, drawn.generations, rewards, strict=True)
    ]


def _measure(
    found: AnswerEvaluation, scorer: PolicyScorer, asked: Sequence[AskedPrompt], drawn: _Drawn
) -> None:
    """Add what is measured of answers at temperature 1."""
    if len(asked) < 2:
        found.notes.append("answers: an interval needs those to at least 2 prompts")
        return
    prompts = torch.tensor(drawn.prompts)
    columns = {
        "completion_tokens": [made.tokens for made in drawn.generations],
        "truncated": [made.truncated for made in drawn.generations],
    }
    if drawn.rewards is not None:
        columns["reward"] = drawn.rewards
    for name, values in columns.items():
        found.metrics[name] = cluster_interval(torch.tensor(values).double(), prompts)
    _measure_variety(found, drawn, len(asked))
    samples = len(prompts) // len(asked)
    if drawn.rewards is not None and samples > 1:
        best = torch.tensor(drawn.rewards, dtype=torch.float64).view(-1, samples).amax(1)
        found.metrics["best_of_n_reward"] = cluster_interval(best, torch.arange(len(best)))
    if not scorer.has_reference:
        found.notes.append("kl: it needs a reference")
        return
    kl = scorer.divergences(
        [asked[number].prompt_ids for number in drawn.prompts],
        [made.token_ids for made in drawn.generations],
    )
    found.metrics["kl"] = cluster_interval(kl.double(), prompts)


def _measure_variety(found: AnswerEvaluation, drawn: _Drawn, prompts: int) -> None:
    """Add how many words, and pairs of words, are distinct in the first answer to each prompt."""
    samples = len(drawn.generations) // prompts
    texts = [made.text for made in drawn.generations[::samples]]
    for name, n in (("distinct_1", 1), ("distinct_2", 2)):
        estimate = distinct_ngrams(texts, n)
        if all(map(math.isfinite, estimate)):
            found.metrics[name] = estimate
        else:
            found.notes.append(f"{name}: answers are too short")
