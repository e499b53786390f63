"""A trace of some steps is written where it was said to be."""

import json

import pytest

from tests.models import tiny_rows
from tests.runs import trainer


@pytest.mark.parametrize(("max_steps", "steps"), [(4, 1), (2, 2), (1, 3)])
def test_the_trace_holds_the_steps_that_were_asked_for(tmp_path, capfd, max_steps, steps):
    run = trainer(tmp_path, tiny_rows(16), max_steps=max_steps, profile_steps=steps)
    run.train()
    file = tmp_path / "profile_process0.json"
    said = capfd.readouterr().err
    assert f"the trace of {steps} steps is in {file}" in said
    assert "profiler_st" not in said
    names = [event["name"] for event in json.loads(file.read_text())["traceEvents"]]
    taken = [name for name in names if name.startswith("Optimizer.step")]
    assert len(taken) == min(steps, max_steps)


def test_no_steps_are_no_trace(tmp_path):
    trainer(tmp_path, tiny_rows(8), max_steps=1).train()
    assert not list(tmp_path.glob("profile*"))
