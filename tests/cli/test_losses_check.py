"""``prefopt losses check`` says of each loss of a package whether it holds the contract."""

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from prefopt.cli import losses_check
from prefopt.losses import registry

LOSS = '''
from prefopt.losses import LossOutput, register_loss

@register_loss("{name}")
def {name}_loss(chosen_logps, rejected_logps):
    """Return a loss.

    Source: this test. Departures from it: none.

    Args:
        chosen_logps: Log-prob of the chosen completion.
        rejected_logps: Log-prob of the rejected completion.

    Returns:
        Losses.
    """
    return LossOutput({formula})
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Make a package importable that registers a loss per formula, gone after the test."""
    monkeypatch.setattr(registry, "_LOSSES", dict(registry._LOSSES))
    monkeypatch.setattr(registry, "_NAMES", dict(registry._NAMES))
    monkeypatch.syspath_prepend(tmp_path)
    made = []

    def make(name, **formulas):
        made.append(name)
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"from {name} import inside\n")
        (tmp_path / name / "inside.py").write_text(
            "".join(LOSS.format(name=k, formula=v) for k, v in formulas.items())
        )

    yield make
    for name in [name for name in sys.modules if name.split(".")[0] in made]:
        del sys.modules[name]


def test_check_passes_over_the_losses_of_a_package_and_no_others(prefopt, package):
    package("good_package", fine_one="rejected_logps - chosen_logps")
    result = prefopt("losses", "check", "good_package")
    assert result.code == 0
    assert "1 of 1 hold all" in result.out
    assert "│fine_one │ good_package.inside │ holds" in result.out
    assert "the guide lacks family= in register_loss, 'Use it when:' in the docstring" in result.out
    assert "dpo" not in result.out


def test_check_says_what_is_wrong_with_which_loss(prefopt, package):
    package(
        "mixed_package",
        fine_two="rejected_logps - chosen_logps",
        meaned="(rejected_logps - chosen_logps).mean()",
    )
    result = prefopt("losses", "check", "mixed_package")
    assert result.code == 1
    assert "1 of 2 hold all" in result.out
    row = next(line for line in result.out.splitlines() if line.startswith("│meaned"))
    assert "broken: losses are one per example with gradient" in row
    assert "losses: shape (), expected (5,)" in row


def test_check_takes_names_and_aliases_of_losses_and_tells_no_hyperparameter_off(prefopt, caplog):
    result = prefopt("losses", "check", "sigmoid", "simpo")
    assert result.code == 0
    assert "2 of 2 hold all" in result.out
    assert "lacks" not in result.out
    assert not caplog.messages


def test_check_of_an_entry_point_is_of_its_module(prefopt, package, monkeypatch):
    package("pointed_package", fine_three="rejected_logps - chosen_logps")
    point = EntryPoint("pointer", "pointed_package.inside", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(losses_check, "entry_points", lambda group, name: [point])
    result = prefopt("losses", "check", "pointer")
    assert (result.code, "fine_three" in result.out) == (0, True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_package", "cannot import 'no_such_package': ModuleNotFoundError"),
        ("broken_package", "cannot import 'broken_package': ZeroDivisionError: division by zero"),
        ("json", "'json' registers no loss: decorate a function"),
    ],
)
def test_check_of_what_has_no_losses_is_a_mistake_of_the_user(prefopt, package, name, message):
    package("broken_package")
    (Path(sys.path[0]) / "broken_package" / "inside.py").write_text("1 / 0")
    result = prefopt("losses", "check", name)
    assert result.code == 2
    assert message in result.err
