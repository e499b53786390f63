"""The toy world's true reward, and the probabilities of preferences and labels.

With ``v_1 .. v_k`` the values of a text's k sentiment words and n its number of words (a full
stop and a comma count as words),

    r(y) = (v_1 + ... + v_k) / k - 0.05 n            (points; the mean of no values is 0)

where a value is the word's weight (superb 4 ... awful -4, loved 3 ... hated -3), times 0.5 after
"slightly" or 1.5 after "very", times -0.5 after "not". The mean makes a longer text neither
better nor worse, apart from the known small cost of 0.05 a word. The reward is defined on any
text, also outside the grammar.

Preferences follow Bradley and Terry, P(a preferred to b) = sigmoid(r(a) - r(b)); a label is
True with probability sigmoid(r(y) - threshold). One point is thus one nat of
log-odds: the reward that DPO estimates is this one.
"""

import math

from prefopt.toy.grammar import DEGREES, NEGATION, SENTIMENT

__all__ = ["COST_PER_WORD", "preference_probability", "sentiment_values", "true_reward"]

COST_PER_WORD = 0.05


def sentiment_values(text: str) -> list[float]:
    """Return the value of each sentiment word of a text, in order, in points.

    >>> sentiment_values("the plot was not very good , while i loved the music .")
    [-1.5, 3.0]
    """
    words = text.split()
    values = []
    for position, word in enumerate(words):
        if word not in SENTIMENT:
            continue
        value = SENTIMENT[word]
        before = position - 1
        if before >= 0 and words[before] in DEGREES:
            value *= DEGREES[words[before]]
            before -= 1
        if before >= 0 and words[before] == "not":
            value *= NEGATION
        values.append(value)
    return values


def true_reward(completion: str) -> float:
    """Return the reward of a completion, in points (the module gives the equation).

    >>> round(true_reward(" i loved the music ."), 6)  # 3 - 5 * 0.05
    2.75
    """
    values = sentiment_values(completion)
    mean = sum(values) / len(values) if values else 0.0
    return mean - COST_PER_WORD * len(completion.split())


def preference_probability(reward: float, other_reward: float) -> float:
    """Return the Bradley-Terry probability that the first of two is preferred.

    Args:
        reward: Reward of the first completion, in points.
        other_reward: Reward of the second, in points.

    Returns:
        ``sigmoid(reward - other_reward)``.

    >>> preference_probability(1.0, 1.0)
    0.5
    """
    return 0.5 * (1.0 + math.tanh(0.5 * (reward - other_reward)))
