from dataclasses import dataclass

import pytest
import torch

from prefopt.records import TensorRecord


@dataclass(frozen=True)
class Inner(TensorRecord):
    values: torch.Tensor
    name: str = "inner"


@dataclass(frozen=True)
class Outer(TensorRecord):
    values: torch.Tensor
    inner: Inner
    several: tuple[Inner, ...]
    by_name: dict
    missing: torch.Tensor | None = None
    plain: tuple[int, ...] = (1, 2)


def outer():
    one = torch.ones(2)
    return Outer(one, Inner(one), (Inner(one), Inner(one)), {"a": one, "b": Inner(one), "c": 3})


def test_every_tensor_moves_however_deep_and_the_rest_stays():
    moved = outer().to("meta")
    tensors = [
        moved.values,
        moved.inner.values,
        *(inner.values for inner in moved.several),
        moved.by_name["a"],
        moved.by_name["b"].values,
    ]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert (moved.missing, moved.plain, moved.by_name["c"]) == (None, (1, 2), 3)
    assert moved.inner.name == "inner"


def test_a_record_is_not_changed_in_place():
    record = outer()
    doubled = record.map(lambda tensor: 2 * tensor)
    assert doubled.several[1].values.tolist() == [2, 2]
    assert record.several[1].values.tolist() == [1, 1]


def test_accelerate_moves_a_record_in_what_a_collator_returns():
    from accelerate.utils import send_to_device

    moved = send_to_device({"batches": [outer()]}, torch.device("meta"))
    assert moved["batches"][0].inner.values.device.type == "meta"


@pytest.mark.gpu
def test_torch_pins_a_record():
    assert outer().pin_memory().inner.values.is_pinned()
