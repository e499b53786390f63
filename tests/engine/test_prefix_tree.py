"""The prefix tree holds every text, and shares what is worth it."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from prefopt.engine.prefix_tree import common_prefix_length, root


def ids(*tokens):
    return np.array(tokens, dtype=np.int64)


def text_of(node):
    return [int(token) for step in node.path() for token in step.tokens]


def test_texts_share_what_they_have_in_common():
    tree = root()
    one = tree.add(ids(1, 2, 3, 4), least_shared=2)
    other = tree.add(ids(1, 2, 3, 5), least_shared=2)
    assert [step.tokens.tolist() for step in one.path()] == [[1, 2, 3], [4]]
    assert [step.tokens.tolist() for step in other.path()] == [[1, 2, 3], [5]]
    assert one.path()[0] is other.path()[0]


def test_less_than_the_least_is_not_shared():
    tree = root()
    tree.add(ids(1, 2, 3, 4), least_shared=4)
    tree.add(ids(1, 2, 3, 5), least_shared=4)
    assert [child.tokens.tolist() for child in tree.children] == [[1, 2, 3, 4], [1, 2, 3, 5]]


def test_a_text_that_is_there_adds_nothing():
    tree = root()
    first = tree.add(ids(1, 2, 3), least_shared=1)
    assert tree.add(ids(1, 2, 3), least_shared=1) is first
    beginning = tree.add(ids(1, 2), least_shared=1)
    assert text_of(beginning) == [1, 2]
    assert text_of(first) == [1, 2, 3]
    assert first.depth == 2


def test_a_node_keeps_its_place_when_it_is_cut():
    tree = root()
    end = tree.add(ids(1, 2, 3, 4), least_shared=1)
    upper = end.split(3, least_shared=1)
    assert (upper.depth, upper.end, end.depth, end.end) == (0, 3, 3, 4)
    assert tree.children == [upper]
    assert upper.children == [end]
    assert tree.add(ids(1, 2, 3, 4), least_shared=1) is end


texts = st.lists(st.integers(0, 2), max_size=8).map(lambda tokens: ids(*tokens))


@given(st.lists(texts, min_size=1, max_size=8), st.integers(1, 4))
def test_every_text_can_be_read_from_its_end(batch, least_shared):
    tree = root()
    ends = [tree.add(text, least_shared) for text in batch]
    assert [text_of(end) for end in ends] == [text.tolist() for text in batch]
    nodes = list(tree.walk())[1:]
    assert all(len(node.tokens) for node in nodes)
    assert all(node.depth == node.parent.end for node in nodes)
    assert sum(len(node.tokens) for node in nodes) <= sum(map(len, batch))


def test_common_prefix_of_texts_of_different_length():
    assert common_prefix_length([ids(1, 2, 3), ids(1, 2), ids(1, 2, 3, 4)]) == 2
    assert common_prefix_length([ids(1, 2), ids(3)]) == 0
