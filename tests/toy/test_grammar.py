"""The toy language: repeatable, parsed back, and with the probabilities it claims."""

import math
import random
from collections import Counter

import pytest

from prefopt.toy.data import sample_texts
from prefopt.toy.grammar import (
    ASPECTS,
    NAMES,
    grammar_logp,
    make_prompt,
    parse_completion,
    prompts,
    sample_completion,
    vocabulary,
)

FILM = make_prompt("film", "Foxglove")


def test_the_same_seed_gives_the_same_texts_and_another_gives_others():
    assert sample_texts(50, seed=3) == sample_texts(50, seed=3)
    assert sample_texts(50, seed=3) != sample_texts(50, seed=4)


def test_a_text_of_seed_0_stays_what_it_was():
    # Written down when the language was made: data saved by one version fits the next.
    assert sample_texts(1)[0] == {
        "prompt": "review of the meal Greywing :",
        "completion": " i found the bread very good .",
    }


def test_every_sample_parses_back_with_its_aspects_once():
    for row in sample_texts(500, seed=1):
        clauses = parse_completion(row["prompt"], row["completion"])
        assert clauses is not None
        aspects = [clause.aspect for clause in clauses]
        assert len(set(aspects)) == len(aspects)
        assert set(aspects) <= set(ASPECTS[row["prompt"].split()[3]])


@pytest.mark.parametrize(
    "completion",
    [
        "",
        " the plot was good",  # no full stop
        " the bed was good .",  # not of a film
        " the plot was good , and the plot was bad .",  # twice
        " the plot was good , and .",
        " the plot was good and i loved the music .",  # no comma
        " the plot was very not good .",
        " i found the plot not good .",
        " i did not loved the plot .",
        " the plot was good . .",
        " i liked the plot . i liked the acting . i liked the music . i liked the ending .",  # four
    ],
)
def test_what_the_grammar_cannot_make_has_no_parse_and_no_probability(completion):
    assert parse_completion(FILM, completion) is None
    assert grammar_logp(FILM, completion) == -math.inf


def test_a_prompt_of_another_language_is_an_error():
    with pytest.raises(ValueError, match="no prompt of the toy language"):
        sample_completion("review of the car Foxglove :", random.Random(0))


def test_the_probability_is_the_product_of_the_derivation():
    # One clause (0.25), one of four aspects, "was" (0.5), not negated (0.8), "very" (0.2),
    # one of eight adjectives.
    one = 0.25 * (1 / 4) * 0.5 * 0.8 * 0.2 / 8
    assert grammar_logp(FILM, " the plot was very good .") == pytest.approx(math.log(one))
    # Two clauses (0.45): a verb (0.2, one of four), ", while" (0.2), then one of the three aspects
    # left, "did not" (0.1, one of two).
    two = 0.45 * (1 / 4) * (0.2 / 4) * 0.2 * (1 / 3) * (0.1 / 2)
    text = " i loved the music , while i did not like the plot ."
    assert grammar_logp(FILM, text) == pytest.approx(math.log(two))


def test_sampled_frequencies_match_the_probabilities():
    rng = random.Random(0)
    count = 20_000
    seen = Counter(sample_completion(FILM, rng) for _ in range(count))
    for text, times in seen.most_common(12):
        probability = math.exp(grammar_logp(FILM, text))
        spread = math.sqrt(probability * (1 - probability) / count)
        assert abs(times / count - probability) < 4.5 * spread


def test_all_words_of_texts_and_prompts_are_in_the_vocabulary():
    words = {
        word for row in sample_texts(2000) for word in (row["prompt"] + row["completion"]).split()
    }
    assert words <= set(vocabulary())
    assert len(set(vocabulary())) == len(vocabulary())


def test_there_is_a_prompt_for_every_kind_and_name():
    assert len(set(prompts())) == len(ASPECTS) * len(NAMES)
