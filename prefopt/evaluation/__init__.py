"""How good a policy is: preference accuracy, win rate, sequence KL, and the reward frontier."""

from prefopt.evaluation.frontier import FrontierPoint, reward_frontier
from prefopt.evaluation.intervals import (
    Estimate,
    bootstrap_interval,
    mean_interval,
    preference_accuracy,
    wilson_interval,
    win_rate,
)
from prefopt.evaluation.rewards import PairLogps, PairRewards, implicit_rewards
from prefopt.evaluation.sequences import (
    TokenBatch,
    completion_logps,
    pad_sequences,
    per_token_logps,
    sample_completions,
    sequence_kl,
    token_logps,
)

__all__ = [
    "Estimate",
    "FrontierPoint",
    "PairLogps",
    "PairRewards",
    "TokenBatch",
    "bootstrap_interval",
    "completion_logps",
    "implicit_rewards",
    "mean_interval",
    "pad_sequences",
    "per_token_logps",
    "preference_accuracy",
    "reward_frontier",
    "sample_completions",
    "sequence_kl",
    "token_logps",
    "wilson_interval",
    "win_rate",
]
