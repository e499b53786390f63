"""Wrong input of every kind is refused in plain words, or counted: never lost, never a riddle."""

import sys
from collections import Counter

import pytest

from tests.bad_input import commands, files, ids, options, rows, runs
from tests.bad_input.case import Case, check

TABLES = {
    "rows": rows.CASES,
    "ids and messages": ids.CASES,
    "files": files.CASES,
    "options": options.CASES,
    "runs": runs.CASES,
    "commands": commands.CASES,
}
CASES = [(table, case) for table, cases in TABLES.items() for case in cases]


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path_factory):
    """Keep what `datasets` caches out of the user's folder."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=f"{table}: {case.name}") for table, case in CASES]
)
def test_wrong_input_is_refused_in_plain_words_or_counted(case: Case, tmp_path):
    check(case, tmp_path)


def test_the_cases_differ():
    names = Counter((table, case.name) for table, case in CASES)
    assert [name for name, count in names.items() if count > 1] == []


def test_there_are_many_cases_of_each_kind(capsys):
    counts = {table: len(cases) for table, cases in TABLES.items()}
    with capsys.disabled():
        said = ", ".join(f"{count} of {table}" for table, count in counts.items())
        sys.stdout.write(f"\nwrong input: {said}\n")
    assert min(counts.values()) >= 40
    assert sum(counts.values()) >= 600
