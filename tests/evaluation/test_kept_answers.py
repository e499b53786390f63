"""Answers are written once, and again where anything that decides them is another."""

import json

import pytest

from prefopt.evaluation.kept_answers import kept_answers

IDS = [[3, 4], [5]]


@pytest.fixture
def ask(tmp_path):
    """Return the answers, and how often they have been written."""
    written = []

    def do(folder=tmp_path, model="m", ids=IDS, **settings):
        def write():
            written.append(settings)
            return [f"answer {number}" for number in range(len(ids))]

        return kept_answers(folder, model, ids, {"seed": 0} | settings, write), len(written)

    return do


def test_the_same_is_written_once(ask):
    assert ask() == (["answer 0", "answer 1"], 1)
    assert ask() == (["answer 0", "answer 1"], 1)


def test_what_decides_answers_tells_them_apart(ask, monkeypatch):
    ask()
    assert ask(seed=1)[1] == 2
    assert ask(model="other")[1] == 3
    assert ask(ids=[[3, 4], [6]])[1] == 4
    assert ask(ids=[[3], [4, 5]])[1] == 5
    monkeypatch.setattr("prefopt.versions.version", lambda package: "0")
    assert ask()[1] == 6


def test_nothing_is_kept_where_there_is_no_place_or_no_name(ask):
    for lacks in ({"folder": None}, {"model": None}):
        first, second = ask(**lacks)[1], ask(**lacks)[1]
        assert second == first + 1


def test_a_broken_file_is_written_anew(ask, tmp_path):
    ask()
    (path,) = (tmp_path / "answers").iterdir()
    for broken in ("", "[", "[1, 2]", '["one"]', "{}"):
        path.write_text(broken)
        before = ask(seed=9)[1]
        assert ask() == (["answer 0", "answer 1"], before + 1)
        assert json.loads(path.read_text()) == ["answer 0", "answer 1"]


def test_a_folder_that_cannot_be_written_is_no_error(ask, tmp_path):
    (tmp_path / "file").write_text("")
    assert ask(folder=tmp_path / "file")[0] == ["answer 0", "answer 1"]
