"""The benchmark of recurrent layers measures both layouts on the same texts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "recurrent.py"


@pytest.mark.slow
def test_both_layouts_are_measured_and_written(tmp_path):
    command = [sys.executable, str(SCRIPT), "--quick", "--out", str(tmp_path), "--allow-dirty"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "recurrent.json").read_text())["measured"]
    assert [one["completions"] for one in found] == [2, 8] * 3
    for one in found:
        count = one["completions"]
        # Nothing is predicted from the last token of a completion.
        assert one["positions"] == {"padded": count * 119, "shared_prefix": 96 + count * 23}
        assert all(len(seconds) == 1 for seconds in one["seconds"].values())
    table = (tmp_path / "recurrent.md").read_text()
    assert len(table.splitlines()) == 2 + 6
