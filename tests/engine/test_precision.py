"""Dtypes of computation: never less than float32 for sums, autocast's for products."""

import pytest
import torch

from prefopt.engine.precision import at_least_float32, computing_dtype

WIDENED = {
    torch.bfloat16: torch.float32,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
}


@pytest.mark.parametrize("dtype", WIDENED)
def test_at_least_float32_widens_and_never_narrows(dtype):
    tensor = torch.tensor([1.5, -2.0], dtype=dtype)
    widened = at_least_float32(tensor)
    assert widened.dtype == WIDENED[dtype]
    assert widened.tolist() == [1.5, -2.0]


@pytest.mark.parametrize("dtype", WIDENED)
def test_without_autocast_products_have_the_dtype_of_the_tensor(dtype):
    assert computing_dtype(torch.ones(1, dtype=dtype)) == dtype


def test_autocast_decides_for_all_but_float64_as_it_does_in_torch():
    with torch.autocast("cpu", torch.bfloat16):
        for dtype in (torch.float32, torch.float64):
            tensor = torch.ones(2, 2, dtype=dtype)
            assert computing_dtype(tensor) == (tensor @ tensor).dtype
        assert computing_dtype(torch.ones(1, dtype=torch.float16)) == torch.bfloat16
    assert computing_dtype(torch.ones(1)) == torch.float32
