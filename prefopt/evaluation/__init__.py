"""How good a policy is: preference accuracy, win rate, sequence KL, and the reward frontier.

Functions on plain numbers do not import transformers; what loads or runs a model is imported when
first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from prefopt.evaluation.diagnostics import (
    Diagnostic,
    PairSummary,
    diagnose,
    summary_of_pairs,
)
from prefopt.evaluation.frontier import (
    FrontierPoint,
    best_reward,
    frontier_at,
    gain_share,
    reward_frontier,
)
from prefopt.evaluation.intervals import (
    Estimate,
    bootstrap_interval,
    mean_interval,
    preference_accuracy,
    wilson_interval,
    win_rate,
)
from prefopt.evaluation.rewards import PairLogps, PairRewards, implicit_rewards
from prefopt.evaluation.sampling import Generation
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
from prefopt.evaluation.text import TextStatistics, distinct_ngrams, text_statistics
from prefopt.evaluation.win_rates import (
    JudgedWinRate,
    length_controlled_win_rate,
    win_rate_of_judgements,
)

if TYPE_CHECKING:
    from prefopt.evaluation.generation import generate

_HOMES = {
    "generate": "prefopt.evaluation.generation",
}

__all__ = [
    "Diagnostic",
    "Estimate",
    "FrontierPoint",
    "Generation",
    "JudgedWinRate",
    "LengthBaselines",
    "PairLogps",
    "PairRewards",
    "PairSummary",
    "TextStatistics",
    "TokenBatch",
    "agreement",
    "best_reward",
    "bootstrap_interval",
    "cluster_interval",
    "completion_logps",
    "correct_pairs",
    "correlation",
    "diagnose",
    "distinct_ngrams",
    "frontier_at",
    "gain_share",
    "generate",
    "holm",
    "implicit_rewards",
    "length_balanced",
    "length_baselines",
    "length_controlled_win_rate",
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
    "summary_of_pairs",
    "text_statistics",
    "token_logps",
    "wilson_interval",
    "win_rate",
    "win_rate_of_judgements",
]


def __getattr__(name: str) -> Any:
    """Import a public name from the module it lives in, once."""
    if name not in _HOMES:
        raise AttributeError(f"module 'prefopt.evaluation' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
