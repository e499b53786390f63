"""A report that was written once, and a browser that has it open."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from prefopt.compare.report import write_report
from prefopt.compare.report.charts import Chart, all_charts
from tests.compare.report.browser import Browser
from tests.compare.report.made import made_comparison


@pytest.fixture(scope="session")
def comparison():
    """A whole comparison."""
    return made_comparison()


@pytest.fixture(scope="session")
def charts(comparison) -> list[Chart]:
    """Its charts."""
    return all_charts(comparison)


@pytest.fixture(scope="session")
def written(comparison, tmp_path_factory) -> Path:
    """The folder of its report."""
    folder = tmp_path_factory.mktemp("report") / "made" / "anew"
    write_report(comparison, folder)
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    """Chromium with an empty profile."""
    with Browser(tmp_path_factory.mktemp("profile")) as chromium:
        yield chromium
