"""Denormals are zero while a CPU trains, in every thread, and are back afterwards."""

import pytest
import torch

from prefopt.engine.denormals import denormals_flushed


def nonzero_products():
    """Return how many of a million products of small numbers are not 0, by all threads."""
    small = torch.full((1000, 1000), 1e-20)
    return int(torch.count_nonzero(small @ small))


@pytest.fixture
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    assert nonzero_products() == 1_000_000  # the pool has started, and knows denormals
    yield
    torch.set_num_threads(threads)


def test_all_threads_flush_within_and_none_afterwards(two_threads):
    if not torch.set_flush_denormal(False):
        pytest.skip("this processor cannot flush denormals")
    with denormals_flushed():
        assert nonzero_products() == 0
    assert nonzero_products() == 1_000_000


def test_an_error_within_brings_denormals_back(two_threads):
    with pytest.raises(RuntimeError, match="stop"), denormals_flushed():
        raise RuntimeError("stop")
    assert nonzero_products() == 1_000_000
