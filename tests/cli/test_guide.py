"""The guide knows every loss, names only losses that exist, and is printed by ``--why``."""

import re

import pytest

from prefopt.cli.guide import FAMILIES, SITUATIONS, losses_by_family
from prefopt.losses import Loss, list_losses
from prefopt.objective import parse_objective

KIND_OF_DATA = {"pairs": "paired", "unpaired": "unpaired", "rankings": "ranked"}


BUILT_IN = [loss for loss in list_losses() if loss.built_in]


def loss_of(family: str) -> Loss:
    def made_up_loss(chosen_logps):
        """Made up."""

    return Loss(family or "none", made_up_loss, family=family)


def test_every_loss_of_prefopt_is_shown_once_in_a_family_of_the_guide():
    groups = losses_by_family(BUILT_IN)
    assert [family for family, _ in groups] == list(FAMILIES)
    assert sorted(loss.name for _, losses in groups for loss in losses) == [
        x.name for x in BUILT_IN
    ]


def test_a_family_unknown_to_the_guide_comes_after_the_others_and_no_family_last():
    made = [loss_of(name) for name in ("", "far_away", "batch", "data")]
    groups = losses_by_family(made)
    assert [(family.name, [loss.name for loss in losses]) for family, losses in groups] == [
        ("data", ["data"]),
        ("batch", ["batch"]),
        ("far_away", ["far_away"]),
        ("other", ["none"]),
    ]
    assert [family.title for family, _ in groups[2:]] == ["Far away", "Other losses"]


def test_families_go_with_the_kind_and_the_reference():
    kinds = {"unpaired": "unpaired", "ranked": "ranked", "term": "preferred"}
    for loss in BUILT_IN:
        assert loss.data_kind == kinds.get(loss.family, "paired"), loss.name
        if loss.family in ("no_reference", "margin", "anchored", "data"):
            assert loss.needs_reference == (loss.family != "no_reference"), loss.name


def test_batch_family_is_batch_dependent():
    assert all(loss.batch_dependent for loss in BUILT_IN if loss.family == "batch")


@pytest.mark.parametrize("item", SITUATIONS, ids=lambda item: item.wish)
def test_a_situation_names_losses_for_its_data(item):
    for expression in item.losses:
        kinds = {term.loss.data_kind for term in parse_objective(expression).terms}
        wanted = KIND_OF_DATA.get(re.match(r"\w+", item.data)[0])
        assert wanted is None or kinds <= {wanted, "preferred"}, expression


def test_advice_mentions_losses_that_exist():
    texts = [text for loss in BUILT_IN for text in (loss.use_when, loss.not_when)]
    texts += [item.why for item in SITUATIONS]
    options = {name for loss in BUILT_IN for name in loss.hyperparameters}
    for code in re.findall(r"`([^`]+)`", " ".join(texts).replace("``", "`")):
        name = re.match(r"\w+", code)[0]
        if name not in options:
            assert parse_objective(code), code


def test_why_prints_every_situation_and_what_to_try(prefopt):
    result = prefopt("losses", "--why")
    assert result.code == 0
    assert all(expression in result.out for item in SITUATIONS for expression in item.losses)
    assert result.out.count("├") == len(SITUATIONS) - 1
    assert all(f"│{loss.name} " in result.out for loss in BUILT_IN)
    assert all(family.title in result.out for family in FAMILIES)


def test_why_with_a_name_or_alias_prints_its_situations_and_advice(prefopt):
    result = prefopt("losses", "--why", "sigmoid_norm")
    assert "answers grow longer" in result.out
    assert "a first run" not in result.out
    assert re.search(r"│ln_dpo │ lengths differ a lot", result.out)
    assert "│dpo " not in result.out


def test_a_loss_in_full_says_when_to_use_it(prefopt):
    result = prefopt("losses", "apo_down")
    assert "use it when  the policy already writes better" in result.out
    assert "not when     chosen completions should be imitated" in result.out
    assert "differs from none: the same in TRL and Liger\n" in result.out
