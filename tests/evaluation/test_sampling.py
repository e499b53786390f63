"""Settings of sampling have ranges; the rest is tested where it is used."""

import pytest

from prefopt.evaluation.sampling import Sampling


def test_the_ends_of_the_ranges_are_taken():
    Sampling(temperature=0, max_new_tokens=1, samples=1, seed=0, top_p=1, top_k=0).check()


@pytest.mark.parametrize(
    "changes", [{"temperature": float("inf")}, {"top_p": 1.1}, {"top_k": -1}, {"samples": 0}]
)
def test_what_lies_outside_is_an_error(changes):
    (name,) = changes
    with pytest.raises(ValueError, match=name):
        Sampling(**changes).check()
