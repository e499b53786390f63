"""Losses from files: found, named, and refused with what is wrong."""

import pytest

from prefopt import PreferenceConfig
from prefopt.losses import get_loss
from prefopt.losses.files import loss_of_file
from prefopt.objective import parse_objective

OWN = '''
"""My losses."""

from torch.nn.functional import logsigmoid

from prefopt.losses import LossOutput, register_loss


def mine_loss(chosen_logps, rejected_logps, *, scale: float = 1.0):
    """Mine.

    Source: nowhere. Departures from it: none.
    """
    margin = scale * (chosen_logps - rejected_logps)
    return LossOutput(-logsigmoid(margin), chosen_logps.detach(), rejected_logps.detach())


@register_loss("named_otherwise")
def registered(chosen_logps, rejected_logps):
    """Registered."""
    return LossOutput(rejected_logps - chosen_logps, chosen_logps, rejected_logps)


def not_a_loss(numbers):
    return numbers
'''

pytestmark = pytest.mark.usefixtures("scratch_registry")


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


def test_a_function_of_a_file_is_a_loss_by_its_own_name(own, monkeypatch):
    monkeypatch.chdir(own.parent)
    objective = parse_objective("0.5*own.py:mine_loss + sft", options={"scale": 2.0})
    assert objective.name == "0.5*mine + sft"
    assert objective.terms[0].hyperparameters == {"scale": 2.0}
    assert not objective.needs_reference
    assert get_loss("mine") is objective.terms[0].loss
    assert loss_of_file(f"{own}:mine_loss") is objective.terms[0].loss


def test_a_function_that_is_registered_keeps_its_name(own):
    assert loss_of_file(f"{own}:registered").name == "named_otherwise"


def test_a_configuration_takes_it(own):
    config = PreferenceConfig(
        "out", loss_type=f"{own}:mine_loss", loss_kwargs={"scale": 3.0}, report_to="none"
    )
    assert config.objective.terms[0].loss.source == "nowhere"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.py:mine", "there is no file .*missing.py"),
        ("own.py:other", "has no function 'other'; it has mine_loss, registered, not_a_loss"),
        ("own.py:not_a_loss", "numbers"),
        ("broken.py:mine", "cannot be run: ZeroDivisionError"),
        ("taken.py:dpo_loss", "loss name 'dpo' is taken"),
    ],
)
def test_what_is_wrong_is_said(own, monkeypatch, name, message):
    monkeypatch.chdir(own.parent)
    (own.parent / "broken.py").write_text("1 / 0\n")
    (own.parent / "taken.py").write_text(OWN.replace("mine_loss", "dpo_loss"))
    with pytest.raises(ValueError, match=message):
        parse_objective(name)
