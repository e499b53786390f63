import re

import pytest

from prefopt.losses import LossOutput, get_loss, list_losses, register_loss
from prefopt.training.papers import bibtex_of


def test_an_entry_names_title_first_author_year_and_number():
    assert bibtex_of(get_loss("dpo")).splitlines() == [
        "@misc{rafailov2023_2305_18290,",
        "  title = {Direct Preference Optimization: "
        "Your Language Model is Secretly a Reward Model},",
        "  author = {Rafailov, Rafael and others},",
        "  year = {2023},",
        "  eprint = {2305.18290},",
        "  archivePrefix = {arXiv},",
        "  url = {https://arxiv.org/abs/2305.18290},",
        "}",
    ]


@pytest.mark.parametrize("name", [loss.name for loss in list_losses()])
def test_each_paper_of_a_loss_has_a_title_and_braces_that_match(name):
    loss = get_loss(name)
    entry = bibtex_of(loss)
    if "arXiv" not in loss.source:
        assert entry is None
        return
    assert re.search(r"title = \{.+\},", entry), f"add the paper of {name} to training/papers.py"
    assert entry.count("{") == entry.count("}")


def test_the_paper_of_a_loss_from_elsewhere_needs_no_title(scratch_registry):
    @register_loss("theirs", family="margin")
    def theirs(chosen_logps, rejected_logps):
        """Theirs.

        Source: Doe et al. 2031, arXiv:3101.00001, Eq. 1. Departures from it: none.
        """
        return LossOutput(rejected_logps - chosen_logps, chosen_logps, rejected_logps)

    entry = bibtex_of(get_loss("theirs"))
    assert "title" not in entry
    assert "author = {Doe and others}" in entry
