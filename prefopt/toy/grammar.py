"""The toy language: short reviews from a probabilistic grammar, with exact probabilities.

A prompt names what is reviewed, a completion is one to three clauses::

    review of the film Foxglove :  the plot was not very good , while i loved the music .

    review    -> clause { joint clause } "."                    1, 2 or 3 clauses
    clause    -> "the" aspect "was" ["not"] [degree] adjective
               | "i" "found" "the" aspect [degree] adjective
               | "i" verb "the" aspect
               | "i" "did" "not" ("love" | "like") "the" aspect
    joint     -> ", and" | ", while" | "."

A review names each aspect at most once, and only aspects of its kind of thing. Every text has one
derivation, so its probability is a product that :func:`grammar_logp` writes down. The words and
the weights are our own.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

__all__ = [
    "ADJECTIVES",
    "ASPECTS",
    "DEGREES",
    "HELD_OUT_NAMES",
    "NAMES",
    "NEGATION",
    "SENTIMENT",
    "VERBS",
    "Clause",
    "grammar_logp",
    "make_prompt",
    "parse_completion",
    "prompts",
    "sample_completion",
    "vocabulary",
]

Choice = TypeVar("Choice")

ASPECTS = {
    "film": ("plot", "acting", "music", "ending"),
    "book": ("story", "hero", "style", "cover"),
    "meal": ("soup", "bread", "sauce", "dessert"),
    "hotel": ("room", "bed", "view", "breakfast"),
}
NAMES = (
    "Aldermoor",
    "Brightwater",
    "Cinder",
    "Dunlin",
    "Elmstead",
    "Foxglove",
    "Greywing",
    "Hollow",
)
HELD_OUT_NAMES = NAMES[-2:]
ADJECTIVES = {
    "superb": 4.0,
    "lovely": 3.0,
    "good": 2.0,
    "decent": 1.0,
    "plain": -1.0,
    "weak": -2.0,
    "bad": -3.0,
    "awful": -4.0,
}
VERBS = {"loved": 3.0, "liked": 2.0, "disliked": -2.0, "hated": -3.0}
NEGATED_VERBS = {"love": 3.0, "like": 2.0}
SENTIMENT = {**ADJECTIVES, **VERBS, **NEGATED_VERBS}
DEGREES = {"slightly": 0.5, "very": 1.5}
NEGATION = -0.5

CLAUSE_COUNTS = {1: 0.25, 2: 0.45, 3: 0.30}
FORMS = {"was": 0.5, "found": 0.2, "verb": 0.2, "did not": 0.1}
NOT_RATE = 0.2
DEGREE_RATES = {"": 0.6, "slightly": 0.2, "very": 0.2}
JOINTS = {", and": 0.4, ", while": 0.2, ".": 0.4}


@dataclass(frozen=True)
class Clause:
    """One clause: what it speaks of and how it judges it.

    Attributes:
        form: A key of ``FORMS``.
        aspect: The part that is judged, such as ``"plot"``.
        word: The word that carries the sentiment, a key of ``SENTIMENT``.
        degree: A key of ``DEGREES``, or an empty string.
        negated: Whether "not" stands before the degree and the word.
    """

    form: str
    aspect: str
    word: str
    degree: str = ""
    negated: bool = False

    @property
    def value(self) -> float:
        """Sentiment: weight of the word x degree x negation, in points.

        >>> Clause("was", "plot", "good", degree="very", negated=True).value
        -1.5
        """
        factor = NEGATION if self.negated else 1.0
        return factor * DEGREES.get(self.degree, 1.0) * SENTIMENT[self.word]

    @property
    def words(self) -> list[str]:
        """The clause as words."""
        modifiers = ["not"] * self.negated + [self.degree] * bool(self.degree)
        if self.form == "was":
            return ["the", self.aspect, "was", *modifiers, self.word]
        if self.form == "found":
            return ["i", "found", "the", self.aspect, *modifiers, self.word]
        if self.form == "verb":
            return ["i", self.word, "the", self.aspect]
        return ["i", "did", "not", self.word, "the", self.aspect]

    @property
    def logp(self) -> float:
        """Log-probability of this clause given its aspect, in nats."""
        logp = math.log(FORMS[self.form])
        if self.form == "verb":
            return logp - math.log(len(VERBS))
        if self.form == "did not":
            return logp - math.log(len(NEGATED_VERBS))
        if self.form == "was":
            logp += math.log(NOT_RATE if self.negated else 1 - NOT_RATE)
        return logp + math.log(DEGREE_RATES[self.degree]) - math.log(len(ADJECTIVES))


def make_prompt(kind: str, name: str) -> str:
    """Return the prompt that asks for a review of ``name``, a thing of this kind.

    >>> make_prompt("film", "Foxglove")
    'review of the film Foxglove :'
    """
    return f"review of the {kind} {name} :"


def prompts(names: Sequence[str] = NAMES) -> list[str]:
    """Return every prompt about these names, all kinds of things."""
    return [make_prompt(kind, name) for kind in ASPECTS for name in names]


def vocabulary() -> list[str]:
    """Return every word of the language once, in a fixed order."""
    fixed = ["review", "of", "the", ":", ".", ",", "and", "while"]
    aspects = [aspect for kind in ASPECTS.values() for aspect in kind]
    fixed += ["i", "was", "found", "did", "not"]
    words = [*fixed, *ASPECTS, *NAMES, *aspects, *DEGREES, *SENTIMENT]
    return list(dict.fromkeys(words))


def sample_completion(prompt: str, rng: random.Random) -> str:
    """Draw a completion of the prompt from the grammar.

    Args:
        prompt: One of :func:`prompts`.
        rng: Source of randomness; the same state gives the same text.

    Returns:
        The completion, with the leading space that separates it from the prompt.

    Raises:
        ValueError: If the prompt is not one of the language's.
    """
    count = _draw(CLAUSE_COUNTS, rng)
    clauses = [_draw_clause(a, rng) for a in rng.sample(_aspects_of(prompt), count)]
    words = list(clauses[0].words)
    for clause in clauses[1:]:
        words += [*_draw(JOINTS, rng).split(), *clause.words]
    return " ".join(["", *words, "."])


def parse_completion(prompt: str, completion: str) -> list[Clause] | None:
    """Return the clauses of a completion, or None if the grammar cannot have made it.

    >>> parse_completion("review of the film Foxglove :", " i loved the music .")
    [Clause(form='verb', aspect='music', word='loved', degree='', negated=False)]
    """
    parsed = _parse(prompt, completion)
    return None if parsed is None else parsed[0]


def grammar_logp(prompt: str, completion: str) -> float:
    """Return the exact log-probability of a completion given its prompt.

    Args:
        prompt: One of :func:`prompts`.
        completion: A text, as :func:`sample_completion` returns it.

    Returns:
        Nats; minus infinity for a text outside the language.
    """
    parsed = _parse(prompt, completion)
    if parsed is None:
        return -math.inf
    clauses, joints = parsed
    logp = math.log(CLAUSE_COUNTS[len(clauses)])
    logp += sum(math.log(JOINTS[joint]) for joint in joints)
    # The n-th aspect is one of those not yet spoken of.
    choices = len(_aspects_of(prompt))
    return logp + sum(c.logp - math.log(choices - n) for n, c in enumerate(clauses))


def _aspects_of(prompt: str) -> list[str]:
    words = prompt.split()
    if len(words) != 6 or words[3] not in ASPECTS or prompt != make_prompt(words[3], words[4]):
        example = make_prompt("film", NAMES[0])
        raise ValueError(f"{prompt!r} is no prompt of the toy language, such as {example!r}")
    return list(ASPECTS[words[3]])


def _parse(prompt: str, completion: str) -> tuple[list[Clause], list[str]] | None:
    """Return the clauses and the joints between them, or None outside the language."""
    remaining = _aspects_of(prompt)
    words = completion.split()
    clauses: list[Clause] = []
    joints: list[str] = []
    while True:
        clause = _read_clause(words)
        if clause is None or clause.aspect not in remaining:
            return None
        remaining.remove(clause.aspect)
        clauses.append(clause)
        words = words[len(clause.words) :]
        if words == ["."]:
            return (clauses, joints) if len(clauses) in CLAUSE_COUNTS else None
        joint = " ".join(words[:1] if words[:1] == ["."] else words[:2])
        if joint not in JOINTS:
            return None
        joints.append(joint)
        words = words[len(joint.split()) :]


def _draw_clause(aspect: str, rng: random.Random) -> Clause:
    form = _draw(FORMS, rng)
    if form == "verb":
        return Clause(form, aspect, rng.choice(list(VERBS)))
    if form == "did not":
        return Clause(form, aspect, rng.choice(list(NEGATED_VERBS)), negated=True)
    negated = form == "was" and rng.random() < NOT_RATE
    degree = _draw(DEGREE_RATES, rng)
    return Clause(form, aspect, rng.choice(list(ADJECTIVES)), degree, negated)


def _draw(rates: Mapping[Choice, float], rng: random.Random) -> Choice:
    return rng.choices(list(rates), list(rates.values()))[0]


def _read_clause(words: list[str]) -> Clause | None:
    """Return the clause that these words start with, or None."""
    match words:
        case ["i", "did", "not", word, "the", aspect, *_] if word in NEGATED_VERBS:
            return Clause("did not", aspect, word, negated=True)
        case ["i", "found", "the", aspect, *rest]:
            form, negated = "found", False
        case ["i", word, "the", aspect, *_] if word in VERBS:
            return Clause("verb", aspect, word)
        case ["the", aspect, "was", "not", *rest]:
            form, negated = "was", True
        case ["the", aspect, "was", *rest]:
            form, negated = "was", False
        case _:
            return None
    degree = rest[0] if rest and rest[0] in DEGREES else ""
    rest = rest[1:] if degree else rest
    if not rest or rest[0] not in ADJECTIVES:
        return None
    return Clause(form, aspect, rest[0], degree, negated)
