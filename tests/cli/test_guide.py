"""The guide knows every loss, names only losses that exist, and is printed by ``--why``."""

import re

import pytest

from prefopt.cli.guide import ADVICE, FAMILIES, SITUATIONS
from prefopt.losses import get_loss, list_losses
from prefopt.objective import parse_objective

KIND_OF_DATA = {"pairs": "paired", "thumbs": "unpaired", "rankings": "ranked"}


def test_every_loss_of_prefopt_has_advice_and_a_family():
    built_in = {
        loss.name for loss in list_losses() if loss.function.__module__.startswith("prefopt.")
    }
    assert {*ADVICE} == built_in
    assert {item.family for item in ADVICE.values()} == {family.name for family in FAMILIES}


def test_families_go_with_the_kind_and_the_reference():
    kinds = {"unpaired": "unpaired", "ranked": "ranked", "term": "preferred"}
    for name, item in ADVICE.items():
        assert get_loss(name).data_kind == kinds.get(item.family, "paired"), name
        if item.family in ("no_reference", "margin", "anchored", "data"):
            assert get_loss(name).needs_reference == (item.family != "no_reference"), name


def test_batch_family_is_pooled():
    assert all(get_loss(name).pooled for name, item in ADVICE.items() if item.family == "batch")


@pytest.mark.parametrize("item", SITUATIONS, ids=lambda item: item.wish)
def test_a_situation_names_losses_for_its_data(item):
    for expression in item.losses:
        kinds = {term.loss.data_kind for term in parse_objective(expression).terms}
        wanted = KIND_OF_DATA.get(re.match(r"\w+", item.data)[0])
        assert wanted is None or kinds <= {wanted, "preferred"}, expression


def test_advice_mentions_losses_that_exist():
    texts = [text for item in ADVICE.values() for text in (item.use, item.avoid)]
    texts += [item.why for item in SITUATIONS]
    options = {name for loss in list_losses() for name in loss.hyperparameters}
    for code in re.findall(r"`([^`]+)`", " ".join(texts)):
        name = re.match(r"\w+", code)[0]
        if name not in options:
            assert parse_objective(code), code


def test_why_prints_every_situation_and_what_to_try(prefopt):
    result = prefopt("losses", "--why")
    assert result.code == 0
    assert all(expression in result.out for item in SITUATIONS for expression in item.losses)
    assert result.out.count("├") == len(SITUATIONS) - 1


def test_why_with_a_name_or_alias_prints_its_situations_and_advice(prefopt):
    result = prefopt("losses", "--why", "sigmoid_norm")
    assert "answers become longer" in result.out
    assert "a first run" not in result.out
    assert "ln_dpo: use it when lengths differ much" in result.out


def test_a_loss_in_full_says_when_to_use_it(prefopt):
    result = prefopt("losses", "apo_down")
    assert "use it when the policy already writes better" in result.out
    assert "not when" in result.out
