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
from prefopt.evaluation.statistics import (
    LengthBaselines,
    agreement,
    cluster_interval,
    correct_pairs,
    correlation,
    holm,
    length_balanced,
    length_baselines,
    mcnemar_test,
    paired_difference,
    paired_test,
    sign_flip_test,
)

__all__ = [
    "Estimate",
    "FrontierPoint",
    "LengthBaselines",
    "PairLogps",
    "PairRewards",
    "TokenBatch",
    "agreement",
    "bootstrap_interval",
    "cluster_interval",
    "completion_logps",
    "correct_pairs",
    "correlation",
    "holm",
    "implicit_rewards",
    "length_balanced",
    "length_baselines",
    "mcnemar_test",
    "mean_interval",
    "pad_sequences",
    "paired_difference",
    "paired_test",
    "per_token_logps",
    "preference_accuracy",
    "reward_frontier",
    "sample_completions",
    "sequence_kl",
    "sign_flip_test",
    "token_logps",
    "wilson_interval",
    "win_rate",
]
