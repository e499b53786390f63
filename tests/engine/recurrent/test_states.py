"""The stand-in for transformers' caches: what it returns, and what it keeps."""

import pytest
import torch

from prefopt.engine.recurrent.states import MixerStates, StateCache, joined


def states(count, start=0.0):
    conv = start + torch.arange(count * 4, dtype=torch.float32).view(count, 2, 2)
    return MixerStates(conv, conv[..., :1] * 10)


def test_inputs_of_texts_are_returned_as_they_are_and_the_last_kept():
    cache = StateCache(None, None)
    inputs = torch.randn(3, 2, 5)
    assert torch.equal(cache.update_conv_state(inputs, 0, conv_kernel_size=3), inputs)
    assert torch.equal(cache.ends.conv, inputs[..., 3:])
    assert cache.get_conv_state(0) is None
    assert not cache.has_previous_state(0)


def test_inputs_follow_those_before_them():
    before = states(3)
    cache = StateCache(before, None)
    inputs = torch.randn(3, 2, 1)
    joint = cache.update_conv_state(inputs, 0, conv_kernel_size=3)
    assert torch.equal(joint, torch.cat([before.conv, inputs], -1))
    assert torch.equal(cache.ends.conv, joint[..., 1:])
    assert cache.get_recurrent_state(0) is before.recurrent
    assert cache.layers[7].recurrent_states[0] is before.recurrent  # as transformers 5.17 reads it


def test_texts_shorter_than_the_kernel_are_preceded_by_zeros():
    cache = StateCache(None, None)
    inputs = torch.randn(1, 2, 1)
    cache.update_conv_state(inputs, 0, conv_kernel_size=4)
    assert torch.equal(cache.ends.conv, torch.cat([torch.zeros(1, 2, 2), inputs], -1))


def test_what_fills_rows_up_is_no_input():
    mask = torch.tensor([[False, True, True]])
    cache = StateCache(None, mask)
    joint = cache.update_conv_state(torch.ones(1, 2, 3), 0, conv_kernel_size=4)
    assert joint.tolist() == [[[0, 1, 1]] * 2]


def test_states_are_neither_copied_nor_detached():
    cache = StateCache(None, None)
    inputs = torch.randn(2, 2, 5, requires_grad=True)
    cache.update_conv_state(inputs, 0, conv_kernel_size=2)
    cache.update_recurrent_state(inputs.sum(-1), 0)
    (cache.ends.conv.sum() + cache.ends.recurrent.sum()).backward()
    wanted = torch.ones(2, 2, 5)
    wanted[..., -1] = 2
    assert torch.equal(inputs.grad, wanted)
    assert not cache.ends.detached().conv.requires_grad


def test_a_mixer_that_keeps_its_states_to_itself_is_noticed():
    with pytest.raises(NotImplementedError, match="keeps its states"):
        _ = StateCache(None, None).ends


def test_states_are_joined_and_chosen_by_number():
    both = joined(joined(None, states(2)), states(1, 100.0))
    chosen = both.of(torch.tensor([2, 0]))
    assert chosen.conv[:, 0, 0].tolist() == [100, 0]
    assert chosen.recurrent[:, 0, 0].tolist() == [1000, 0]
    assert joined(MixerStates(both.conv, None), MixerStates(both.conv, None)).recurrent is None
