import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from prefopt.data import DataError, prepare_dataset
from prefopt.data.mismatch import find_donors
from prefopt.data.prepared import examples_of, read_examples

# Rows as (prompt, completions), of few values so that they often clash.
rows_strategy = st.lists(
    st.tuples(st.integers(0, 3), st.lists(st.integers(0, 4), min_size=1, max_size=3)),
    min_size=1,
    max_size=14,
)


def naive_donor(rows, row, place):
    """Go back row by row, as the rule is told."""
    for back in range(1, len(rows)):
        donor = (row - back) % len(rows)
        prompt, completions = rows[donor]
        given_completion = completions[place % len(completions)]
        if prompt != rows[row][0] and given_completion != rows[row][1][place]:
            return donor, place % len(completions)
    return -1, 0


@given(rows_strategy)
def test_donors_are_the_nearest_rows_before_that_fit(rows):
    prompts = [prompt for prompt, _ in rows]
    flat = [completion for _, completions in rows for completion in completions]
    donors = find_donors(prompts, flat, [len(completions) for _, completions in rows])
    expected = [
        naive_donor(rows, row, place)
        for row, (_, completions) in enumerate(rows)
        for place in range(len(completions))
    ]
    assert list(zip(donors.rows.tolist(), donors.places.tolist(), strict=True)) == expected


def test_distinct_rows_rotate_by_one():
    donors = find_donors(range(6), range(6), [1] * 6)
    assert donors.rows.tolist() == [5, 0, 1, 2, 3, 4]
    assert donors.skipped == 0


@pytest.mark.parametrize("same", ["both", "completions"])
def test_long_runs_of_one_prompt_and_few_completions_take_no_quadratic_time(same):
    count = 200_000  # a search row by row would take hours
    half = np.repeat([0, 1], count // 2)
    prompts = half if same == "both" else np.arange(count)
    donors = find_donors(prompts, half, np.ones(count, dtype=int))
    assert donors.rows[-1] == count // 2 - 1
    assert donors.rows[0] == count - 1
    assert (half[donors.rows] != half).all()


def unpaired(count, prompt="p{}", completion=" c{} d e"):
    return [
        {"prompt": prompt.format(row), "completion": completion.format(row), "label": row % 2 == 0}
        for row in range(count)
    ]


def test_unpaired_rows_take_the_completion_of_the_row_before_as_in_trl(words):
    prepared = prepare_dataset(Dataset.from_list(unpaired(5)), words, needs_kl=True)
    completions = [row[0] for row in prepared.dataset["completion_ids"][:]]
    taken = [row[0] for row in prepared.dataset["kl_completion_ids"][:]]
    assert taken == [completions[-1], *completions[:-1]]
    assert prepared.report.mismatched_skipped == 0


def test_pairs_take_chosen_for_chosen_and_rejected_for_rejected(words):
    rows = [{"prompt": f"p{n}", "chosen": f" c{n}", "rejected": f" r{n}"} for n in range(4)]
    dataset = prepare_dataset(Dataset.from_list(rows), words, needs_kl=True).dataset
    completions = dataset["completion_ids"][:]
    assert dataset["kl_completion_ids"][:] == [completions[-1], *completions[:-1]]


def test_mismatched_completions_are_cut_behind_the_prompt(words):
    rows = [
        {"prompt": "p", "completion": " a b c d", "label": True},
        {"prompt": "p q r s", "completion": " e", "label": True},
    ]
    dataset = prepare_dataset(Dataset.from_list(rows), words, needs_kl=True, max_length=5).dataset
    first, second = dataset[0], dataset[1]
    assert second["kl_completion_ids"] == [first["completion_ids"][0][:1]]
    assert first["kl_completion_ids"] == [second["completion_ids"][0]]
    for row in dataset:
        assert len(row["prompt_ids"]) + len(row["kl_completion_ids"][0]) <= 5


def test_rows_set_aside_give_nothing(words):
    rows = unpaired(4)
    rows[2]["prompt"] = "much too long a prompt to fit"
    prepared = prepare_dataset(Dataset.from_list(rows), words, needs_kl=True, max_length=5)
    completions = [row[0] for row in prepared.dataset["completion_ids"][:]]
    assert [row[0] for row in prepared.dataset["kl_completion_ids"][:]] == [
        completions[2],
        completions[0],
        completions[1],
    ]


@pytest.mark.parametrize("same", [{"prompt": "p"}, {"completion": "yes"}])
@pytest.mark.parametrize("count", [1, 4])
def test_rows_of_one_prompt_or_one_completion_have_no_part_in_the_estimate(words, same, count):
    dataset = Dataset.from_list([row | same for row in unpaired(count)])
    prepared = prepare_dataset(dataset, words, needs_kl=True)
    assert prepared.dataset["kl_completion_ids"][:] == [[[]]] * count
    assert (prepared.report.mismatched_skipped, prepared.report.mismatched_lacking) == (0, count)
    assert "no completion has one" in prepared.report.render()
    assert "KTO's KL estimate is 0" in prepared.report.render()


def test_a_stream_warns_of_the_first_row_without_a_part_in_the_estimate(words, caplog):
    rows = unpaired(3)
    rows[1]["completion"] = rows[2]["completion"] = rows[0]["completion"]
    stream = Dataset.from_list(rows).to_iterable_dataset()
    prepared = prepare_dataset(stream, words, needs_kl=True).dataset
    assert [row["kl_completion_ids"] for row in prepared] == [[[]]] * 3
    assert [record.getMessage()[:50] for record in caplog.records] == [
        "train data: row 0 has no part in KTO's KL estimate"
    ]


def test_a_row_that_only_its_own_prompt_or_completion_surrounds_lacks_one(words):
    cells = [("p", " x"), ("q", " x"), ("p", " y")]  # the first has nothing, the others each other
    rows = [{"prompt": p, "completion": c, "label": True} for p, c in cells]
    prepared = prepare_dataset(Dataset.from_list(rows), words, needs_kl=True)
    x, _, y = (row[0] for row in prepared.dataset["completion_ids"][:])
    assert prepared.dataset["kl_completion_ids"][:] == [[[]], [y], [x]]
    assert prepared.report.mismatched_lacking == 1
    assert "1 of 3 completions have none" in prepared.report.render()
    # What is scored by the reference, and rows that are prepared already.
    counts = [1, 2, 2]
    for examples in (examples_of(prepared.dataset, True), read_examples(prepared.dataset, True)):
        assert [len(example.completion_ids) for example in examples] == counts
    again = prepare_dataset(prepared.dataset, None, needs_kl=True)
    assert again.dataset[:] == prepared.dataset[:]


def test_rows_of_the_same_prompt_are_passed_over_and_counted(words):
    rows = unpaired(4)
    rows[2]["prompt"] = rows[1]["prompt"]
    prepared = prepare_dataset(Dataset.from_list(rows), words, needs_kl=True)
    completions = [row[0] for row in prepared.dataset["completion_ids"][:]]
    assert prepared.dataset["kl_completion_ids"][2] == [completions[0]]
    assert prepared.report.mismatched_skipped == 1
    assert "1 completion could not come from the row before" in prepared.report.render()


def test_given_mismatched_completions_are_kept():
    rows = [{"prompt_ids": [1], "completion_ids": [2], "label": True, "KL_completion_ids": [7, 8]}]
    prepared = prepare_dataset(Dataset.from_list(rows), None, needs_kl=True)
    assert prepared.dataset[0]["kl_completion_ids"] == [[7, 8]]
    assert prepare_dataset(prepared.dataset, None, needs_kl=True).dataset[:] == prepared.dataset[:]


def test_a_stream_takes_from_the_rows_before_and_repeats_itself(words):
    count = 250  # more than two batches
    rows = unpaired(count)
    for row in (100, 101, 200):  # the first rows of a batch have the prompt of the row before
        rows[row]["prompt"] = rows[row - 1]["prompt"]
    whole = prepare_dataset(Dataset.from_list(rows), words, needs_kl=True).dataset
    stream = Dataset.from_list(rows).to_iterable_dataset()
    streamed = prepare_dataset(stream, words, needs_kl=True).dataset
    first, second = list(streamed), list(streamed)
    assert first == second
    expected = whole["kl_completion_ids"][:]
    assert [row["kl_completion_ids"] for row in first[1:]] == expected[1:]
    assert first[0]["kl_completion_ids"] == whole["completion_ids"][99]  # end of the first batch


@settings(deadline=None, max_examples=25)
@given(rows_strategy, st.integers(4, 9))
def test_prepared_rows_never_get_their_own_completion_or_prompt(rows, max_length):
    table = [
        {"prompt_ids": [prompt] * (prompt + 1), "completion_ids": [[c] * (c + 1) for c in cs]}
        | {"ranks": list(range(len(cs)))}
        for prompt, cs in rows
    ]
    try:
        prepared = prepare_dataset(
            Dataset.from_list(table), None, needs_kl=True, max_length=max_length
        )
    except DataError:
        return  # no row is left
    texts = {}
    for row in prepared.dataset:
        for ids in row["completion_ids"]:
            texts.setdefault(tuple(ids), set()).add(tuple(row["prompt_ids"]))
    for row in prepared.dataset:
        room = max_length - len(row["prompt_ids"])
        for own, mismatched in zip(row["completion_ids"], row["kl_completion_ids"], strict=True):
            assert len(mismatched) <= room
            assert not mismatched or any(
                ids[:room] == tuple(mismatched) and prompts - {tuple(row["prompt_ids"])}
                for ids, prompts in texts.items()
                if list(ids) != own
            )
