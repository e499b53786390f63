"""Processes that wait for each other, however long it takes."""

import os
import subprocess
import sys

import pytest

from prefopt.training.waiting import first_of_node, meet
from tests.conftest import ROOT


def test_one_process_waits_for_nobody():
    meet()
    with first_of_node(False):
        pass


@pytest.mark.slow
def test_no_process_is_ended_while_another_prepares_or_scores(tmp_path):
    """Both take twice as long as a collective of these processes may."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = str(ROOT / "tests/training/run_waiting.py")
    done = subprocess.run(
        [sys.executable, *launcher, script, str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "done0").is_file()
    assert (tmp_path / "done1").is_file()
