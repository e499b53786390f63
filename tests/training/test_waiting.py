"""Processes that wait for each other, however long it takes."""

import pytest

from prefopt.training.waiting import first_of_node, meet
from tests.conftest import ROOT
from tests.processes import run_script


def test_one_process_waits_for_nobody():
    meet()
    with first_of_node(False):
        pass


@pytest.mark.slow
def test_no_process_is_ended_while_another_prepares_or_scores(tmp_path):
    """Both take twice as long as a collective of these processes may."""
    done = run_script(str(ROOT / "tests/training/run_waiting.py"), str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "done0").is_file()
    assert (tmp_path / "done1").is_file()
