import pytest

from prefopt.data import DataError, check_kind, detect_kind


@pytest.mark.parametrize(
    ("data", "losses"),
    [
        ({"paired"}, {"paired"}),
        ({"ranked"}, {"paired"}),
        ({"paired", "ranked"}, {"paired"}),
        ({"unpaired"}, {"unpaired"}),
        ({"paired"}, {"unpaired"}),
        ({"paired", "unpaired"}, {"unpaired"}),
        ({"ranked"}, {"ranked"}),
        ({"paired"}, {"ranked"}),
        ({"unpaired"}, {"preferred"}),
        ({"paired", "unpaired", "ranked"}, {"preferred"}),
        ({"paired"}, {"paired", "unpaired", "preferred"}),
        ({"paired", "unpaired"}, {"paired", "unpaired"}),
    ],
)
def test_losses_take_the_data_they_can_learn_from(data, losses):
    check_kind(data, losses)


@pytest.mark.parametrize(
    ("data", "losses", "found", "needs"),
    [
        ({"unpaired"}, {"paired"}, "the data is unpaired", "needs pairs"),
        ({"unpaired"}, {"paired", "preferred"}, "the data is unpaired", "needs pairs"),
        ({"unpaired"}, {"ranked"}, "the data is unpaired", "needs rankings"),
        ({"ranked"}, {"unpaired"}, "the data is ranked", "pairwise loss"),
        ({"ranked"}, {"paired", "unpaired"}, "the data is ranked", "needs labelled"),
        ({"paired", "unpaired"}, {"paired"}, "some of the data is unpaired", "needs pairs"),
        (
            {"paired", "unpaired"},
            {"paired", "preferred"},
            "some of the data is unpaired",
            "needs pairs",
        ),
    ],
)
def test_what_does_not_fit_is_told_with_losses_that_would(data, losses, found, needs):
    with pytest.raises(DataError) as caught:
        check_kind(data, losses)
    message = str(caught.value)
    assert found in message
    assert needs in message
    assert ("kto" in message) == ("unpaired" in found)
    assert ("dpo" in message) == ("ranked" in found)


def test_the_kind_of_a_row_is_read_from_its_columns():
    assert detect_kind({"prompt": "a", "chosen": "b", "rejected": "c"}) == "paired"
    assert detect_kind({"prompt_ids": [1], "completion_ids": [2], "label": True}) == "unpaired"
    with pytest.raises(DataError):
        detect_kind({"text": "a"})
