import pytest
from datasets import Dataset

from prefopt.data import DataError, prepare_dataset, read_example


def read(**row):
    return read_example(row, 7)


def test_pairs_have_trls_columns():
    example = read(prompt_ids=[1, 2], chosen_ids=[3], rejected_ids=[4, 5], prompt="text")
    assert (example.kind, example.form) == ("paired", "ids")
    assert (example.prompt, example.completions) == ([1, 2], [[3], [4, 5]])
    assert (example.desirable, example.ranks, example.masks) == ([True, False], [0, 1], None)


def test_one_list_of_completion_ids_has_a_label():
    example = read(prompt_ids=[1], completion_ids=[3, 4], label=False, completion_mask=[0, 1])
    assert (example.kind, example.completions, example.desirable) == ("unpaired", [[3, 4]], [False])
    assert example.masks == [[False, True]]


def test_several_lists_are_ordered_with_their_masks_and_mismatches():
    example = read(
        prompt_ids=[1],
        completion_ids=[[2], [3, 4]],
        scores=[0.5, 0.75],
        completion_mask=[[1], [True, False]],
        kl_completion_ids=[[5], [6]],
    )
    assert (example.kind, example.completions) == ("ranked", [[3, 4], [2]])
    assert (example.ranks, example.scores) == ([0, 1], [0.75, 0.5])
    assert example.masks == [[True, False], [True]]
    assert example.kl_completions == [[6], [5]]


def test_pairs_may_have_masks_and_mismatches():
    example = read(
        prompt_ids=[],
        chosen_ids=[3, 4],
        rejected_ids=[5],
        chosen_mask=[False, True],
        rejected_mask=[True],
        KL_completion_ids=[[8], [9]],
    )
    assert example.masks == [[False, True], [True]]
    assert example.kl_completions == [[8], [9]]


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"chosen_ids": [1], "rejected_ids": [2]}, "prompt_ids"),
        ({"prompt_ids": [1], "chosen_ids": [1]}, "rejected_ids"),
        ({"prompt_ids": [1]}, "completion_ids"),
        ({"prompt_ids": [1], "completion_ids": [2]}, "label"),
        ({"prompt_ids": [1], "completion_ids": [[2], [3]]}, "completion_ids"),
        ({"prompt_ids": [1], "completion_ids": [[2], [3]], "label": True}, "completion_ids"),
        ({"prompt_ids": [1], "completion_ids": [[2]], "kind": "paired"}, "completion_ids"),
        ({"prompt_ids": [1], "completion_ids": [[2]], "kind": "good"}, "kind"),
        ({"prompt_ids": [1], "completion_ids": [], "label": True}, "completion_ids"),
        ({"prompt_ids": [1.5], "completion_ids": [2], "label": True}, "prompt_ids"),
        ({"prompt_ids": [-1], "completion_ids": [2], "label": True}, "prompt_ids"),
        ({"prompt_ids": [True], "completion_ids": [2], "label": True}, "prompt_ids"),
        ({"prompt_ids": [1, None], "completion_ids": [2], "label": True}, "prompt_ids"),
        ({"prompt_ids": "text", "completion_ids": [2], "label": True}, "prompt_ids"),
        (
            {"prompt_ids": [1], "completion_ids": [2], "label": 1, "completion_mask": [1, 0]},
            "completion_mask",
        ),
        (
            {"prompt_ids": [1], "completion_ids": [2], "label": 1, "completion_mask": [7]},
            "completion_mask",
        ),
        (
            {"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [2], "chosen_mask": [1]},
            "rejected_mask",
        ),
        (
            {
                "prompt_ids": [1],
                "chosen_ids": [2],
                "rejected_ids": [2],
                "kl_completion_ids": [[1]],
            },
            "kl_completion_ids",
        ),
    ],
)
def test_what_is_wrong_is_told_by_row_and_column(row, column):
    with pytest.raises(DataError) as caught:
        read(**row)
    assert (caught.value.row, caught.value.column) == (7, column)


def test_given_mismatches_are_cut_to_the_room_behind_the_prompt():
    row = {"prompt_ids": [1, 2], "completion_ids": [3], "label": True}
    rows = Dataset.from_list([row | {"kl_completion_ids": [4, 5, 6]}])
    for max_length, cut in ((None, [4, 5, 6]), (4, [4, 5])):
        prepared = prepare_dataset(rows, None, max_length=max_length)
        assert prepared.dataset[0]["kl_completion_ids"] == [cut]


def test_a_mask_that_is_missing_is_not_looked_for_among_the_ids():
    row = {"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3], "chosen_mask": [1]}
    with pytest.raises(DataError, match="rejected_mask") as caught:
        read_example(row, 0)
    assert "rename" not in str(caught.value)
