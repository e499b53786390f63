"""``prefopt.losses`` exports every loss function, each by one line."""

import ast
from pathlib import Path

import pytest

from prefopt import losses
from prefopt.losses import get_loss, list_losses
from prefopt.losses.registry import registered_losses
from tests.losses.test_template import blocks

FOLDER = Path(losses.__file__).parent


def registered_in(source: str) -> list[str]:
    """Return the functions of a module that a decorator ``register_loss(...)`` registers."""
    return [
        node.name
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef)
        and any(
            isinstance(one, ast.Call) and getattr(one.func, "id", "") == "register_loss"
            for one in node.decorator_list
        )
    ]


def test_registered_functions_are_found_in_a_source():
    assert registered_in(blocks()[0]) == ["square_loss"]
    assert registered_in("def plain_loss(): pass") == []


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_every_loss_function_of_a_file_is_exported(path):
    missing = {*registered_in(path.read_text())} - {*losses.__all__}
    assert not missing, f"add to prefopt/losses/__init__.py: {missing}"


def test_an_exported_name_is_the_function_of_its_loss():
    assert losses.dpo_loss is get_loss("dpo").function
    assert losses.geometric_dpo_loss is get_loss("geometric_dpo").function
    for loss in list_losses():
        if loss.built_in:
            assert getattr(losses, loss.function.__name__) is loss.function
            assert losses.__all__.count(loss.function.__name__) == 1


def test_registered_losses_are_by_name_and_need_no_other_package():
    names = [loss.name for loss in registered_losses()]
    assert names == sorted(names)
    assert {loss.name for loss in list_losses() if loss.built_in} <= {*names}
