"""The help of ``prefopt train``."""

import argparse
import re
from collections import Counter
from dataclasses import fields

import pytest

from prefopt.cli import UserError, help, train
from prefopt.cli.help import GROUPS, HelpFormatter, help_text


@pytest.fixture(scope="module")
def parser():
    return train.make_parser()


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def named(text: str) -> list[str]:
    """Options that stand at the beginning of an entry, every spelling."""
    entries = re.findall(r"^  (--\w[\w-]*(?:, --[\w-]+)*)", text, re.MULTILINE)
    return [name for entry in entries for name in entry.split(", ")]


def test_short_help_is_short_in_groups_and_has_what_every_run_needs(parser):
    text = help_text(parser)
    assert text.count("\n") < 150
    assert 35 <= len(named(text)) <= 50
    headings = re.findall(r"^(\w[\w ]*):$", text, re.MULTILINE)
    assert headings == [group.title for group in GROUPS]
    wanted = {"--model", "--dataset", "--loss_type", "--beta", "--learning_rate", "--lora_r"}
    assert wanted | {"--output_dir", "--max_length", "--load_in_4bit"} <= set(named(text))


def test_no_help_line_is_wider_than_the_terminal_but_for_the_introduction(parser):
    _, options = help_text(parser).split("\nmodel:")
    assert max(map(len, options.splitlines())) <= 80


def test_all_options_are_in_the_whole_help_once(parser):
    listed = Counter(named(help_text(parser, "all")))
    assert set(listed.values()) == {1}
    kinds = (train.DataArguments, train_config(), model_arguments())
    expected = {f"--{item.name}" for kind in kinds for item in fields(kind) if item.init}
    assert expected - set(listed) == {"--model_name_or_path"}  # told of --model


def train_config() -> type:
    from prefopt.config import PreferenceConfig

    return PreferenceConfig


def model_arguments() -> type:
    from trl import ModelConfig

    return ModelConfig


def test_every_option_of_a_group_exists(parser):
    taken = {name for action in parser._actions for name in action.option_strings}
    named_in_groups = [name for group in GROUPS for name in (*group.common, *group.others)]
    assert not {name for name, times in Counter(named_in_groups).items() if times > 1}
    assert {name for name in named_in_groups if f"--{name}" not in taken} == set()
    assert set(help._TEXTS) <= {name for group in GROUPS for name in group.common}


def test_every_option_of_our_own_is_in_a_group(parser):
    from transformers import TrainingArguments

    theirs = {item.name for item in fields(TrainingArguments)}
    ours = {item.name for kind in (train.DataArguments, train_config()) for item in fields(kind)}
    grouped = {name for group in GROUPS for name in (*group.common, *group.others)}
    assert ours - theirs - grouped == set()


def test_a_group_shows_all_its_options_whole(parser):
    text = help_text(parser, "loss")
    assert {"--beta", "--ld_alpha", "--f_divergence_type"} <= set(named(text))
    assert "`prefopt losses` lists them" in text
    assert "--learning_rate" not in text


def test_an_option_shows_what_it_may_be(parser):
    text = help_text(parser, "--lr-scheduler-type")
    assert named(text) == ["--lr_scheduler_type"]
    assert "cosine_with_restarts" in text


def test_an_unknown_topic_names_the_nearest_and_the_groups(parser):
    with pytest.raises(
        UserError, match=r"no group or option 'lorra'; did you mean lora.*Groups: m"
    ):
        help_text(parser, "lorra")


@pytest.mark.parametrize(
    ("words", "has"),
    [
        (["-h"], "prefopt train --help GROUP"),
        (["--help", "lora"], "--use_dora"),
        (["--help-all"], "--ddp_backend"),
    ],
)
def test_the_command_prints_it(prefopt, words, has):
    result = prefopt("train", *words)
    assert (result.code, result.err) == (0, "")
    assert has in result.out


def test_cache_fill_has_the_same_help_under_its_own_name(prefopt):
    text = prefopt("cache", "fill", "--help").out
    assert text.startswith("usage: prefopt cache fill")
    assert "prefopt cache fill --help GROUP" in text


def test_a_formatter_shows_one_spelling_and_the_defaults_that_say_something():
    parser = argparse.ArgumentParser(formatter_class=HelpFormatter)
    parser.add_argument("--lora_r", "--lora-r", type=int, default=16, help="Rank.")
    parser.add_argument("--name", help="Of it.")
    text = parser.format_help()
    assert "--lora_r N" in text
    assert "--lora-r" not in text.split("options:")[1]
    assert "Rank. (default: 16)" in text
    assert "Of it.\n" in text
