"""The template for a new loss in CONTRIBUTING.md: it holds the contract, and its test passes."""

import re
import sys
import textwrap
import types

import pytest

from prefopt.losses import get_loss
from prefopt.losses.contract import broken_checks
from prefopt.losses.registry import unregister_loss
from tests.conftest import ROOT


def blocks():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    return [textwrap.dedent(one) for one in re.findall(r" +```python\n(.*?)```", text, re.DOTALL)]


@pytest.fixture
def square(monkeypatch):
    """The loss of the template, where step 1 puts it."""
    module = types.ModuleType("prefopt.losses.square")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(blocks()[0], module.__dict__)
    yield get_loss("square")
    unregister_loss("square")


def test_the_loss_holds_the_contract(square):
    assert broken_checks(square) == {}
    assert square.needs_reference
    assert square.hyperparameters == {"beta": 0.1}


def test_its_tests_pass(square, request):
    namespace = {}
    exec(blocks()[1], namespace)
    tests = {name: test for name, test in namespace.items() if name.startswith("test_")}
    assert len(tests) == 4
    for test in tests.values():
        names = test.__code__.co_varnames[: test.__code__.co_argcount]
        test(**{name: request.getfixturevalue(name) for name in names})
