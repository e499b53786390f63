"""A bar is shown in a terminal, and where it is asked for."""

import sys

import pytest

from prefopt.evaluation.progress import progress_bar


@pytest.mark.parametrize(
    ("shown", "terminal", "seen"),
    [(None, False, False), (None, True, True), (True, False, True), (False, True, False)],
)
def test_where_it_is_shown(capsys, monkeypatch, shown, terminal, seen):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with progress_bar("Answers", 3, shown) as advance:
        advance(2)
        advance(1)
    assert ("3/3" in capsys.readouterr().err) == seen
