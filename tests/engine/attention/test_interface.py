"""The attention function that transformers calls, with a plan and without one."""

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from prefopt.engine.attention import (
    NAME,
    AttentionPlan,
    attend_by_segments,
    interface,
    planned_forward,
)
from prefopt.engine.attention.interface import prefopt_attention
from prefopt.engine.layout import Segment

SEGMENTS = (Segment(3), Segment(2, (0,)), Segment(2, (0,)))


class Layer(nn.Module):
    is_causal = True
    num_key_value_groups = 1


def tensors(dtype=torch.float32):
    torch.manual_seed(0)
    return [torch.randn(1, 2, 7, 4, dtype=dtype) for _ in range(3)]


def test_transformers_finds_it_under_its_name():
    assert AttentionInterface()[NAME] is prefopt_attention
    assert NAME in AttentionMaskInterface()


def test_without_a_plan_it_is_plain_causal_attention():
    query, key, value = tensors()
    output, weights = prefopt_attention(Layer(), query, key, value, None, scaling=0.3)
    wanted = scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.3)
    torch.testing.assert_close(output, wanted.transpose(1, 2))
    assert weights is None


def test_with_a_plan_the_backend_gets_the_options_of_the_layer():
    query, key, value = tensors()
    seen = []

    def attend(query, key, value, plan, options):
        seen.append(options)
        return attend_by_segments(query, key, value, plan, options)

    plan = AttentionPlan(SEGMENTS, attend)
    output, _ = prefopt_attention(
        Layer(), query, key, value, None, 0.3, prefopt_plan=plan, sliding_window=2, softcap=5.0
    )
    assert output.shape == (1, 7, 2, 4)
    assert (seen[0].scaling, seen[0].window, seen[0].softcap, seen[0].sinks) == (0.3, 2, 5.0, None)
    assert plan.calls == 1
    assert [layer.window for layer in plan.seen] == [2]


def test_a_branch_does_not_see_the_branch_before_it():
    query, key, value = tensors()
    plan = AttentionPlan(SEGMENTS, attend_by_segments)
    output, _ = prefopt_attention(Layer(), query, key, value, None, prefopt_plan=plan)
    alone = [0, 1, 2, 5, 6]
    wanted = scaled_dot_product_attention(
        query[:, :, alone], key[:, :, alone], value[:, :, alone], is_causal=True
    )
    torch.testing.assert_close(output[:, 5:], wanted.transpose(1, 2)[:, 3:])


def test_under_autocast_a_backend_gets_autocasts_dtype():
    dtypes = []

    def attend(query, key, value, plan, options):
        dtypes.append((query.dtype, key.dtype, value.dtype))
        return query

    with torch.autocast("cpu", torch.bfloat16):
        prefopt_attention(Layer(), *tensors(), None, prefopt_plan=AttentionPlan(SEGMENTS, attend))
    assert dtypes == [(torch.bfloat16,) * 3]


def test_a_position_bias_cannot_share_prefixes():
    plan = AttentionPlan(SEGMENTS, attend_by_segments)
    with pytest.raises(NotImplementedError, match="position bias"):
        prefopt_attention(
            Layer(), *tensors(), None, prefopt_plan=plan, position_bias=torch.zeros(1)
        )


def test_models_build_no_mask_within_a_planned_forward_and_do_again_afterwards(monkeypatch):
    monkeypatch.setattr(interface, "eager_mask", lambda *args, **kwargs: (args, kwargs))
    make = AttentionMaskInterface()[NAME]
    assert make(1, kv_length=3) == ((1,), {"kv_length": 3})
    with planned_forward():
        assert make(1, kv_length=3) is None
        with planned_forward():
            assert make(1, kv_length=3) is None
        assert make(1, kv_length=3) is None
    assert make(1, kv_length=3) is not None
