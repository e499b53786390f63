"""Errors about input become one message of the user's mistake; others stay as they are."""

import pytest

from prefopt.cli.errors import UserError, user_errors


@pytest.mark.parametrize("error", [ValueError("bad"), FileNotFoundError("bad"), ImportError("bad")])
def test_errors_about_input_become_user_errors(error):
    with pytest.raises(UserError, match="bad"), user_errors():
        raise error


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyError("bug"), BrokenPipeError()])
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)), user_errors():
        raise error


def test_a_missing_extra_says_how_to_install_it():
    with pytest.raises(UserError, match=r"pip install 'prefopt\[all\]'"), user_errors():
        raise ModuleNotFoundError("No module named 'trl'", name="trl")


def test_an_error_without_a_message_is_told_by_its_name():
    with pytest.raises(UserError, match=r"^FileNotFoundError$"), user_errors():
        raise FileNotFoundError


@pytest.mark.parametrize(
    ("name", "known", "message"),
    [
        (
            "trian",
            ["train", "losses"],
            "unknown command 'trian'; did you mean 'train'? There are: train, losses",
        ),
        ("xyz", ["train", "losses"], "unknown command 'xyz'; There are: train, losses"),
        (
            "lossa",
            [f"loss{n}" for n in range(21)],
            "unknown command 'lossa'; did you mean 'loss9' or 'loss8' or 'loss7'?",
        ),
        ("xyz", [f"loss{n}" for n in range(21)], "unknown command 'xyz'"),
    ],
)
def test_an_unknown_name_comes_with_the_nearest_and_a_short_list(name, known, message):
    assert str(UserError.unknown("command", name, known)) == message
