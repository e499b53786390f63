import pytest
from datasets import Dataset, Features, Image, Value

from prefopt.data import DataError, check_kind, check_kind_by_kind, detect_kind
from prefopt.data.kinds import first_kinds


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
        ({"ranked"}, {"paired", "unpaired"}, "the data is ranked", "needs unpaired"),
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


def test_the_first_row_tells_the_kind_of_raw_and_prepared_data():
    pairs = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    prepared = Dataset.from_list([{"kind": "ranked", "completion_ids": [[1], [2]]}])
    assert first_kinds(pairs, None) == {"paired"}
    assert first_kinds(None, {"one": prepared, "two": pairs}) == {"ranked"}
    with pytest.raises(ValueError, match="the dataset has no rows"):
        first_kinds(pairs.select([]), pairs)
    assert first_kinds([pairs, (prepared, 0.5)], None) == {"paired", "ranked"}
    wrong = Dataset.from_list([{"prompt": "a"}])
    with pytest.raises(DataError, match=r"train: x.csv data, row 0"):
        first_kinds([pairs, (wrong, 1.0, "x.csv")], None)


@pytest.mark.parametrize("stream", [False, True])
def test_images_are_refused_before_they_are_decoded(stream):
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    types = {**dict.fromkeys(row, Value("string")), "image": Image()}
    rows = Dataset.from_list([{**row, "image": {"bytes": b"none", "path": None}}], Features(types))
    with pytest.raises(DataError, match="column 'image': images are not supported yet"):
        first_kinds(rows.to_iterable_dataset() if stream else rows, None)


def test_each_kind_of_row_needs_losses_that_learn_from_it():
    check_kind_by_kind({"paired", "unpaired"}, {"paired": ["paired"], "unpaired": ["unpaired"]})
    with pytest.raises(DataError, match="loss_type has losses for paired rows only; add one for"):
        check_kind_by_kind({"paired", "ranked"}, {"paired": ["paired"]})
    with pytest.raises(DataError, match="the data is unpaired, but the loss needs pairs"):
        check_kind_by_kind({"unpaired"}, {"unpaired": ["paired"]})
