"""Whatever is asked of a model inside the guard, afterwards all of it is as it was."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from prefopt.engine.guard import is_8bit, undisturbed


class Counting(nn.Module):
    """Its forward pass changes all that one can change."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("replaced", torch.zeros(3))
        self.longest, self.active, self.scales = 4, ["first"], {"first": 1.0}
        self.tried = torch.tensor(0)

    def forward(self, x):
        self.seen += 1
        self.replaced = torch.ones(5)
        self.longest = len(x)
        self.active.append("second")
        self.scales["first"] = 0.0
        self.tried = torch.tensor(7)
        self.met = True
        self.weight.requires_grad_(False)
        return x + random.random() + np.random.rand() + torch.rand(())


def state(module):
    plain = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    return str((plain, module.seen, module.replaced, module.weight.requires_grad))


def draws():
    return random.random(), np.random.rand(), torch.rand(3).tolist()


def test_attributes_buffers_and_requires_grad_come_back():
    module = Counting()
    before, seen = state(module), module.seen
    with undisturbed(module):
        module(torch.zeros(9))
        assert state(module) != before
    assert state(module) == before
    assert module.seen is seen


def test_random_numbers_go_on_as_if_nothing_had_been_asked():
    module = Counting()
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    wanted = draws()
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    with undisturbed(module):
        module(torch.zeros(9))
    assert draws() == wanted


def test_modes_come_back_as_they_were():
    model = nn.Sequential(nn.Dropout(), nn.Dropout()).train()
    model[1].eval()
    for training in (False, True):
        with undisturbed(model, training):
            assert all(module.training == training for module in model.modules())
        assert [module.training for module in model.modules()] == [True, True, False]


def test_all_comes_back_after_an_error_too():
    module = Counting().train()
    before = state(module)
    with pytest.raises(TypeError), undisturbed(module):
        module(None)  # which has no length; the buffers were changed before that shows
    assert state(module) == before
    assert module.training


def test_weights_are_trained_on_after_it():
    module = Counting()
    with undisturbed(module):
        module(torch.zeros(2))
    module.weight.sum().backward()
    assert module.weight.grad is not None


def test_statistics_of_a_batch_norm_in_training_mode_stay():
    norm = nn.BatchNorm1d(2)
    with undisturbed(norm, training=True):
        norm(torch.randn(4, 2))
    assert norm.num_batches_tracked == 0
    assert torch.equal(norm.running_mean, torch.zeros(2))


def test_eight_bit_layers_stay_in_the_mode_in_which_they_train():
    """In evaluation mode on a CPU they round their inputs, in training they do not."""

    class Linear8bitLt(nn.Linear):
        pass

    wrapper = type("Linear8bitLt", (nn.Module,), {"__module__": "peft.tuners.lora.bnb"})
    model = nn.Sequential(Linear8bitLt(2, 2), nn.Linear(2, 2), wrapper()).train()
    assert [is_8bit(layer) for layer in model] == [True, False, False]
    with undisturbed(model):
        assert [layer.training for layer in model] == [True, False, False]


def test_weights_that_a_model_rescales_from_mode_to_mode_stay_with_its_note_of_it():
    """As RWKV does in evaluation; its next pass in training scales them back."""

    class Rescaling(nn.Linear):
        rescaled = False

        def forward(self, x):
            if self.training == self.rescaled:
                with torch.no_grad():
                    self.weight.mul_(2.0 if self.training else 0.5)
                self.rescaled = not self.training
            return super().forward(x) * (1.0 if self.training else 2.0)

    layer, x = Rescaling(3, 3, bias=False).train(), torch.ones(3)
    wanted = layer(x).detach()
    with undisturbed(layer), torch.no_grad():
        torch.testing.assert_close(layer(x), wanted)
    assert layer.training
    torch.testing.assert_close(layer(x), wanted)


def test_parallel_wrappers_keep_what_they_noted():
    wrapper = type("Wrapped", (nn.Linear,), {"__module__": "torch.distributed.fsdp"})(2, 2)
    with undisturbed(wrapper):
        wrapper.is_root = True
    assert wrapper.is_root
    assert wrapper.training
