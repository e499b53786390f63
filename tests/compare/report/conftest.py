"""A report that was made once, and a browser to open it in."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from prefopt.compare.report import write_report
from prefopt.compare.report.page import Page, make_page
from prefopt.compare.report.vega import Chart
from tests.compare.report.browser import Browser
from tests.compare.report.made import made_comparison


@pytest.fixture(scope="session")
def comparison():
    """A whole comparison."""
    return made_comparison()


@pytest.fixture(scope="session")
def made(comparison) -> Page:
    """Its page and charts."""
    return make_page(comparison)


@pytest.fixture(scope="session")
def charts(made) -> list[Chart]:
    """Its charts."""
    return made.charts


@pytest.fixture(scope="session")
def html_file(made, tmp_path_factory) -> Path:
    """Its page as a file."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(made.html, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def written(comparison, tmp_path_factory) -> Path:
    """The folder of the whole report of a part of it: each picture takes a while to draw."""
    folder = tmp_path_factory.mktemp("report") / "made" / "anew"
    some = tuple(it for it in comparison.curves if it.metric == "loss")
    write_report(replace(comparison, curves=some, win_rates=()), folder)
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    """Chromium with an empty profile."""
    with Browser(tmp_path_factory.mktemp("profile")) as chromium:
        yield chromium
