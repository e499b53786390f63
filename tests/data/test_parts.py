"""Rows mapped part by part are those mapped at once."""

import pytest
from datasets import Dataset

from prefopt.data.parts import Parts, map_rows

ROWS = Dataset.from_dict({"number": list(range(10))})


def numbered(batch, numbers, *, base, broken=None):
    if broken in numbers:
        raise KeyboardInterrupt
    return {"row": [base + number for number in numbers], "was": batch["number"]}


def mapped(parts, **options):
    made = map_rows(ROWS, numbered, parts, None, fn_kwargs={"base": 100, **options}, batch_size=2)
    return made.to_dict()


@pytest.mark.parametrize("rows", [1, 3, 10, 99])
def test_rows_and_their_numbers_are_those_of_the_whole(tmp_path, rows):
    assert mapped(Parts(tmp_path, "x", rows)) == mapped(None)
    assert len(list(tmp_path.glob("x-*.arrow"))) == -(-10 // rows)


def test_parts_that_are_whole_are_not_made_again(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        mapped(Parts(tmp_path, "x", 3), broken=7)
    assert len(list(tmp_path.glob("x-*.arrow"))) == 2
    assert mapped(Parts(tmp_path, "x", 3), base=200)["row"] == [*range(100, 106), *range(206, 210)]
    assert mapped(Parts(tmp_path, "y", 3), base=200)["row"] == [*range(200, 210)]
