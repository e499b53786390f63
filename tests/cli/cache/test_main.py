"""The options of ``prefopt cache``, and which command they lead to."""

import argparse

import pytest

from prefopt.cli import cache
from prefopt.cli.cache import maintain, runs


@pytest.mark.parametrize(
    ("argv", "home"),
    [
        (["fill"], "runs.fill"),
        (["fill", "--model", "m"], "runs.fill"),
        (["verify"], "maintain.verify"),
        (["verify", "--cache-dir", "c"], "maintain.verify"),
        (["verify", "--model=m"], "runs.verify"),
        (["verify", "--config", "run.yaml"], "runs.verify"),
        (["import", "file"], "maintain.import"),
    ],
)
def test_only_what_names_a_model_makes_a_trainer(monkeypatch, argv, home):
    called = []
    for name in ("fill", "verify"):
        monkeypatch.setattr(runs, name, lambda _, name=name: called.append(f"runs.{name}"))
    for name in maintain.COMMANDS:
        command = lambda _, name=name: called.append(f"maintain.{name}")  # noqa: E731
        monkeypatch.setitem(maintain.COMMANDS, name, command)
    cache.main(argv)
    assert called == [home]


def test_every_command_of_the_parser_can_be_run():
    (commands,) = (
        action
        for action in cache.make_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    assert set(commands.choices) == {*maintain.COMMANDS, "fill"}


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("1500", 1500), ("2G", 2 * 10**9), ("1.5 MiB", 3 << 19), ("3kB", 3000)],
)
def test_sizes_are_read_with_their_units(text, size):
    assert cache._size(text) == size


@pytest.mark.parametrize("text", ["-1", "soon", "nan"])
def test_what_is_no_number_of_days_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="not a number of days"):
        cache._days(text)
