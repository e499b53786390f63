"""Versions of what is installed."""

from importlib import metadata

import prefopt
from prefopt.versions import versions


def test_versions_need_no_metadata_of_ours_and_leave_out_what_is_missing(monkeypatch):
    """A source folder on the path is not installed, and extras may be missing."""

    def missing(name):
        if name in ("prefopt", "peft"):
            raise metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr("prefopt.versions.version", missing)
    found = versions("prefopt", "peft", "torch")
    assert found == {"prefopt": prefopt.__version__, "torch": "1"}
