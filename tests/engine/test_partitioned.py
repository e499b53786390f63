"""Weights that are kept in parts; scores with real ones are tested in training/test_zero.py."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from prefopt.engine.partitioned import (
    is_engine,
    is_partitioned,
    own_part,
    parts_replaced,
    whole,
    whole_shape,
    whole_where_used,
)


def partitioned(values):
    """Return a stand-in for a weight as DeepSpeed keeps it: two values here, two elsewhere."""
    weight = nn.Parameter(torch.empty(0))
    weight.ds_id, weight.ds_shape = 0, torch.Size([4])
    weight.ds_tensor = torch.tensor(values)
    weight.ds_tensor.status = SimpleNamespace(name="AVAILABLE")
    weight.ds_status = SimpleNamespace(name="AVAILABLE")
    weight.put_away = 0

    def partition(param_list):
        for it in param_list:
            it.ds_status = SimpleNamespace(name="NOT_AVAILABLE")
            it.put_away += 1

    weight.partition = partition
    return weight


def test_a_plain_model_is_left_alone():
    layer = nn.Linear(2, 3)
    assert not is_partitioned(layer)
    assert whole_shape(layer.weight) == (3, 2)
    assert own_part(layer.weight) is layer.weight
    with whole(layer.parameters()), whole_where_used(layer):
        assert not layer._forward_hooks
        assert not layer._forward_pre_hooks


def test_a_partitioned_weight_has_the_shape_of_the_whole():
    weight = partitioned([1.0, 2.0])
    layer = nn.Module()
    layer.weight = weight
    assert is_partitioned(layer)
    assert whole_shape(weight) == (4,)
    assert own_part(weight) is weight.ds_tensor


def test_other_parts_are_gathered_in_place_of_the_own_and_then_the_own_again():
    weight, other = partitioned([1.0, 2.0]), torch.tensor([3.0, 4.0])
    own = weight.ds_tensor.data_ptr()
    with parts_replaced([(weight, other)]):
        assert weight.put_away == 1  # what had been gathered of the own parts
        assert own_part(weight).tolist() == [3.0, 4.0]
        weight.ds_status = SimpleNamespace(name="AVAILABLE")  # gathered
    assert weight.put_away == 2
    assert weight.ds_tensor.data_ptr() == own
    assert own_part(weight).tolist() == [1.0, 2.0]


def test_a_part_that_is_on_a_disk_is_not_taken_for_an_empty_one():
    weight = partitioned([1.0, 2.0])
    weight.ds_tensor.status = SimpleNamespace(name="NOT_AVAILABLE")
    with pytest.raises(ValueError, match="which DeepSpeed keeps on a disk"):
        own_part(weight)


def test_the_engine_of_deepspeed_is_known_by_its_module():
    engine = type("DeepSpeedEngine", (nn.Module,), {"__module__": "deepspeed.runtime.engine"})
    assert is_engine(engine())
    assert is_engine(type("Mine", (engine,), {})())
    assert not is_engine(nn.Linear(1, 1))
    assert not is_engine(None)
