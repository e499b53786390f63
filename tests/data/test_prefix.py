from hypothesis import given
from hypothesis import strategies as st

from prefopt.data.prefix import shared_length

tokens = st.lists(st.integers(0, 2), max_size=12)


@given(tokens, tokens)
def test_the_shared_beginning_is_shared_and_the_longest(first, second):
    length = shared_length(first, second)
    assert first[:length] == second[:length]
    assert first[: length + 1] != second[: length + 1] or length == min(len(first), len(second))
