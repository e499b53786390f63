"""The toy world: a small language of reviews whose true reward is known, and a model of it."""

from prefopt.toy.data import sample_pairs, sample_texts, sample_unpaired
from prefopt.toy.grammar import (
    HELD_OUT_NAMES,
    NAMES,
    grammar_logp,
    make_prompt,
    parse_completion,
    prompts,
    sample_completion,
)
from prefopt.toy.model import build_model, build_tokenizer, fit_model
from prefopt.toy.reward import preference_probability, sentiment_values, true_reward

__all__ = [
    "HELD_OUT_NAMES",
    "NAMES",
    "build_model",
    "build_tokenizer",
    "fit_model",
    "grammar_logp",
    "make_prompt",
    "parse_completion",
    "preference_probability",
    "prompts",
    "sample_completion",
    "sample_pairs",
    "sample_texts",
    "sample_unpaired",
    "sentiment_values",
    "true_reward",
]
