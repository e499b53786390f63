"""Whatever launches training, it is training in one process: same losses, same weights."""

import pytest
import torch

from prefopt.training.throughput import is_of_machine
from tests.launches.cells import ALL_CELLS, REFUSALS, STEPS
from tests.launches.engines import ALONE, ALONE_LORA, ENGINES
from tests.launches.rows import weights

CELLS_OF_ROWS = [
    pytest.param(engine, name, id=f"{engine}, {name}")
    for engine in ENGINES.values()
    for name in engine.cells
]


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "name"), CELLS_OF_ROWS)
def test_a_launch_trains_as_one_process_does(rows, engine, name):
    cell, alone = ALL_CELLS[name], ALONE_LORA if engine.lora else ALONE
    found, place = rows.cell(engine, name)
    assert "refused" not in found
    wanted, place_alone = rows.cell(alone, name)
    assert found["world"] == engine.processes
    assert found["sharded"] == (engine.is_sharded is not None)
    assert len(found["losses"]) == STEPS
    if not cell.other:
        assert found["losses"][0] == pytest.approx(cell.first_loss, abs=1e-5)
    assert found["losses"] == pytest.approx(wanted["losses"], abs=3e-2 if cell.rounded else 1e-5)
    mine, theirs = weights(place), weights(place_alone)
    assert mine.keys() - theirs.keys() <= {"lm_head.weight"}  # tied, and gathered twice
    far = 0.06 * wanted["moved"] if cell.rounded else 1e-5
    for part, weight in theirs.items():
        torch.testing.assert_close(mine[part], weight, rtol=0, atol=far)
    if cell.rounded:
        return
    tolerance = {"rel": 1e-4, "abs": 1e-5}
    for metric, value in wanted["eval"].items():
        if not is_of_machine(metric):
            assert found["eval"][metric] == pytest.approx(value, **tolerance), metric
    for own, other in zip(found["rewards"], wanted["rewards"], strict=True):
        assert own == pytest.approx(other, **tolerance)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("alone", "name"), [(alone, name) for alone in (ALONE, ALONE_LORA) for name in alone.cells]
)
def test_what_is_compared_has_been_trained(rows, alone, name):
    found, _ = rows.cell(alone, name)
    assert found["moved"] > 1e-3
    assert abs(found["losses"][-1] - found["losses"][0]) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "name"),
    [(engine, name) for engine in ENGINES.values() for name in engine.refusals],
    ids=str,
)
def test_what_would_be_wrong_is_refused_in_a_sentence(rows, engine, name):
    found, _ = rows.cell(engine, name)
    assert REFUSALS[name] in found["refused"]
