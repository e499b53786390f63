"""A copy around the same weights has modules, modes and gradients of its own."""

import torch
from torch import nn

from prefopt.engine.weight_sharing import copy_sharing_weights


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))


def test_weights_and_buffers_stand_in_memory_once():
    original = model()
    copied = copy_sharing_weights(original)
    for mine, shared in zip(original.parameters(), copied.parameters(), strict=True):
        assert shared.data_ptr() == mine.data_ptr()
        assert shared is not mine
    assert copied[1].running_mean is original[1].running_mean


def test_modes_gradients_and_modules_are_apart():
    original = model().train()
    copied = copy_sharing_weights(original).eval()
    assert original[2].training
    assert not any(weight.requires_grad for weight in copied.parameters())
    assert all(weight.requires_grad for weight in original.parameters())
    copied[0] = nn.Identity()
    assert isinstance(original[0], nn.Linear)


def test_a_step_of_the_original_reaches_the_copy_unless_trained_weights_are_copied():
    original = model()
    original[0].bias.requires_grad_(False)
    shared, apart = copy_sharing_weights(original), copy_sharing_weights(original, True)
    before = original[0].weight.detach().clone()
    with torch.no_grad():
        original[0].weight += 1
    assert torch.equal(shared[0].weight, before + 1)
    assert torch.equal(apart[0].weight, before)
    assert apart[0].bias.data_ptr() == original[0].bias.data_ptr()  # not trained


def test_tied_weights_stay_tied():
    original = nn.ModuleList([nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)])
    original[1].weight = original[0].weight
    copied = copy_sharing_weights(original, copy_trained=True)
    assert copied[1].weight is copied[0].weight
