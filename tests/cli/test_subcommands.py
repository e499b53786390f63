"""A command that has commands."""

import pytest


@pytest.mark.parametrize(
    ("command", "has"), [("cache", ["fill", "info", "prune"]), ("data", ["report", "prepare"])]
)
def test_without_a_command_it_lists_them(prefopt, command, has):
    result = prefopt(command)
    assert (result.code, result.out) == (2, "")
    assert all(f"\n    {name} " in result.err for name in has)


def test_a_wrong_command_names_the_nearest_and_all(prefopt):
    result = prefopt("cache", "fil")
    assert result.code == 2
    assert "unknown command of prefopt cache 'fil'; did you mean 'fill'? There are: f" in result.err


def test_no_option_is_suggested_twice(prefopt):
    err = prefopt("cache", "info", "--cach", "x").err
    assert "unrecognized arguments: --cach" in err
    assert "ambiguous" not in err
