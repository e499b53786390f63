"""A forward pass is replaced for a while, and never for longer."""

import pytest
from torch import nn

from prefopt.engine.own_forward import forward_once, forward_replaced


class Model(nn.Module):
    def forward(self):
        return "own"


@pytest.fixture(params=["of the class", "on the instance"])
def model(request):
    made = Model()
    if request.param == "on the instance":
        made.forward = lambda: "own"
    return made


def test_it_is_another_inside_and_its_own_after(model):
    before = dict(vars(model))
    with forward_replaced(model, lambda: "other"):
        assert [model(), model()] == ["other", "other"]
    assert model() == "own"
    assert vars(model) == before


def test_it_is_another_once_and_can_call_its_own(model):
    before = dict(vars(model))
    with forward_once(model, lambda: f"around {model()}"):
        assert [model(), model()] == ["around own", "own"]
    assert vars(model) == before


@pytest.mark.parametrize("replaced", [forward_replaced, forward_once])
def test_an_error_sets_it_back(model, replaced):
    with pytest.raises(ZeroDivisionError), replaced(model, lambda: 1 / 0):
        model()
    assert model() == "own"
