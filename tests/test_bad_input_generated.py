"""Wrong input that nobody thought of: damaged rows, files and options, made by hypothesis."""

import gzip
import io
import json
import math
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from datasets import Dataset, IterableDataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefopt import PreferenceConfig
from prefopt.config_checks import plain_fields
from prefopt.data import DataError, load_rows, prepare_dataset
from tests.bad_input.case import (
    IDS,
    LONGEST,
    PAIR,
    RANKED,
    TALK,
    UNPAIRED,
    byte_tokenizer,
    check_error,
)

TOKENIZER = byte_tokenizer()
MAX_LENGTH = 60
KINDS = {"paired": PAIR, "unpaired": UNPAIRED, "ranked": RANKED, "ids": IDS, "messages": TALK}
SOME = settings(
    derandomize=True, max_examples=100, deadline=None, suppress_health_check=list(HealthCheck)
)
MANY = settings(SOME, max_examples=700)

TEXT = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        ["", " ", "\n", "\0", "\u2028", "\ufeff", "<eos>", "<pad>", "é" * 99, "x" * 300]
    ),
)
JUNK = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.integers(2**31, 2**80),
        st.floats(),
        TEXT,
        st.text(st.characters(categories=["Cs"]), min_size=1, max_size=2),
        st.binary(max_size=5),
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", "type", "text"]), inner
        )
    ),
    max_leaves=6,
)
COLUMNS = (
    *{name for row in KINDS.values() for name in row},
    *("scores", "weight", "margin", "messages", "tools", "system", "chat_template_kwargs", "kind"),
    *(
        "completion_ids",
        "chosen_mask",
        "rejected_mask",
        "preference_probability",
        "win_rate_chosen",
        "desirable",
    ),
)


class Damaged(NamedTuple):
    """Five good rows of one kind, some cells of which are replaced."""

    rows: list[dict[str, Any]]
    damage: dict[tuple[int, str], Any]


@st.composite
def damaged(draw: st.DrawFn, cells: st.SearchStrategy[Any] = JUNK) -> Damaged:
    row = KINDS[draw(st.sampled_from(sorted(KINDS)))]
    rows = [dict(row) for _ in range(5)]
    places = st.tuples(st.integers(0, 4), st.sampled_from(COLUMNS) | st.sampled_from(sorted(row)))
    damage = draw(st.dictionaries(places, cells, min_size=1, max_size=2))
    for (place, column), cell in damage.items():
        rows[place][column] = cell
    return Damaged(rows, damage)


def check_prepared(rows: list[dict[str, Any]], dataset: Dataset | IterableDataset) -> None:
    """Assert that rows are refused in plain words, or counted and used without a loss."""
    try:
        prepared = prepare_dataset(dataset, TOKENIZER, max_length=MAX_LENGTH, vocabulary=300)
        used = list(prepared.dataset)
    except DataError as error:
        check_place(error, rows)
        return
    if prepared.report is not None:
        aside = sum(one.count for one in prepared.report.set_aside.values())
        assert prepared.report.rows == len(rows) == len(used) + aside
    for row in used:
        check_used(row, rows)


def check_place(error: DataError, rows: list[dict[str, Any]]) -> None:
    """Assert that an error is ours, and names a row and a column that there are."""
    check_error(error)
    columns = {column for row in rows for column in row}
    assert error.row is None or 0 <= error.row < len(rows), error
    assert error.column is None or error.column in columns | {*COLUMNS}, error


def check_used(row: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Assert that a prepared row holds numbers a model can take, and no text but that of a row."""
    assert all(0 <= token < 300 for token in row["prompt_ids"])
    assert len(row["completion_ids"]) > 0
    for ids in row["completion_ids"]:
        assert len(ids) > 0
        assert len(row["prompt_ids"]) + len(ids) <= MAX_LENGTH
        assert all(0 <= token < 300 for token in ids)
    for column in ("weight", "margin", "preference_probability", "win_rate_chosen"):
        assert row.get(column) is None or math.isfinite(row[column])
    if all(isinstance(given.get("prompt"), str) for given in rows):
        assert any(holds(row, given) for given in rows)


def holds(row: dict[str, Any], given: dict[str, Any]) -> bool:
    """Return whether a prepared row is that of given text, all of it as far as there is room."""
    texts = [given.get(name) for name in ("chosen", "rejected")]
    if row["kind"] == "unpaired":
        texts = [given.get("completion")]
    elif row["kind"] == "ranked":
        texts = list(given.get("completions") or ())
    if not all(isinstance(text, str) for text in texts):
        return True  # messages, whose template says more than they do
    wholes = [TOKENIZER(given["prompt"] + text)["input_ids"] for text in texts]
    made = [row["prompt_ids"] + ids for ids in row["completion_ids"]]
    return sorted(ids[: len(whole)] for ids, whole in zip(made, wholes, strict=False)) == sorted(
        whole[:MAX_LENGTH] for whole in wholes
    ) or set(map(tuple, made)) <= {
        tuple((whole + end)[:MAX_LENGTH]) for whole in wholes for end in ([1], [])
    }


def check_damaged(case: Damaged) -> None:
    check_prepared(case.rows, IterableDataset.from_generator(lambda: iter(case.rows)))
    try:
        dataset = Dataset.from_list(case.rows)
    except Exception:  # what no dataset can hold cannot be given as one
        return
    try:
        rows = list(dataset)
    except UnicodeDecodeError:  # Arrow holds what Python cannot read
        rows = case.rows
    check_prepared(rows, dataset)


@SOME
@given(damaged())
def test_damaged_cells_are_refused_or_counted(case):
    check_damaged(case)


@SOME
@given(damaged(TEXT))
def test_no_text_of_a_row_that_is_used_is_lost(case):
    check_damaged(case)


@pytest.mark.slow
@MANY
@given(damaged())
def test_many_damaged_cells_are_refused_or_counted(case):
    check_damaged(case)


# Files -----------------------------------------------------------------------------------------

ROWS = [
    {"prompt": f"p{n} é\u2028", "chosen": f" a{n}", "rejected": f' "b", {n}', "weight": n + 0.5}
    for n in range(6)
]
LINES = "".join(json.dumps(row, ensure_ascii=bool(n % 2)) + "\n" for n, row in enumerate(ROWS))


def as_csv() -> str:
    import csv

    made = io.StringIO()
    writer = csv.DictWriter(made, [*ROWS[0]])
    writer.writeheader()
    writer.writerows(ROWS)
    return made.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def contents(folder) -> dict[str, bytes]:
    """Sound files of each type."""
    Dataset.from_list(ROWS).to_parquet(str(folder / "rows.parquet"))
    return {
        "rows.jsonl": LINES.encode(),
        "rows.json": json.dumps(ROWS, indent=1).encode(),
        "rows.jsonl.gz": gzip.compress(LINES.encode(), mtime=0),
        "rows.csv": as_csv().encode(),
        "rows.csv.gz": gzip.compress(as_csv().encode(), mtime=0),
        "rows.parquet": (folder / "rows.parquet").read_bytes(),
    }


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path_factory):
    """Keep what `datasets` caches out of the user's folder."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def read(path: Path, content: bytes, streaming: bool) -> list[dict[str, Any]] | None:
    """Return the rows of a file; None where it is refused in plain words."""
    path.write_bytes(content)
    try:
        return list(load_rows(path, streaming=streaming))
    except DataError as error:
        check_error(error, naming=path.name)
        return None


@pytest.mark.parametrize(
    "name", ["rows.jsonl", "rows.json", "rows.csv", "rows.jsonl.gz", "rows.csv.gz", "rows.parquet"]
)
@pytest.mark.parametrize("streaming", [False, True])
def test_a_file_that_is_cut_off_is_refused_or_whole(folder, contents, name, streaming):
    """A file may end after a whole row, a csv file within a cell: nothing tells that it goes on."""
    content = contents[name]
    if name.endswith("parquet") and streaming:
        return
    step = max(len(content) // 40, 1)
    for end in [*range(0, len(content), step), *range(len(content) - 3, len(content) + 1)]:
        found = read(folder / name, content[:end], streaming)
        if found is None:
            continue
        if name == "rows.csv":
            found = found[:-1]
        if name in ("rows.jsonl", "rows.csv") or not end:
            assert found == ROWS[: len(found)], end
        else:
            assert found == ROWS, end
        if name == "rows.jsonl":
            assert len(found) == len(content[:end].splitlines()), end


def check_flipped(folder: Path, contents: dict[str, bytes], name: str, place: int, bits: int):
    """Assert that a file with one byte changed is refused, or has as many rows as before."""
    content = bytearray(contents[name])
    place %= len(content)
    content[place] ^= bits
    found = read(folder / name, bytes(content), False)
    if found is None:
        return
    if name.endswith(".gz"):
        assert found == ROWS
    rows = Dataset.from_list(found) if found else None
    assert rows is not None
    check_prepared(found, rows)


@SOME
@given(
    st.sampled_from(["rows.jsonl", "rows.csv", "rows.jsonl.gz"]),
    st.integers(0),
    st.integers(1, 255),
)
def test_a_changed_byte_ends_in_no_riddle(folder, contents, name, place, bits):
    check_flipped(folder, contents, name, place, bits)


@pytest.mark.slow
@MANY
@given(
    st.sampled_from(["rows.jsonl", "rows.json", "rows.csv", "rows.jsonl.gz", "rows.csv.gz"]),
    st.integers(0),
    st.integers(1, 255),
)
def test_many_changed_bytes_end_in_no_riddle(folder, contents, name, place, bits):
    check_flipped(folder, contents, name, place, bits)


WELL = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@SOME
@given(st.lists(st.tuples(WELL, WELL), min_size=1, max_size=4), st.booleans())
def test_any_text_comes_out_of_a_file_as_it_went_in(folder, pairs, ascii_only):
    rows = [{"prompt": a, "completion": b, "label": True} for a, b in pairs]
    lines = "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in rows)
    whole = json.dumps(rows, ensure_ascii=ascii_only)
    for name, content in {"a.jsonl": lines, "a.json": whole}.items():
        for streaming in (False, True):
            assert read(folder / name, content.encode(), streaming) == rows


# Options ---------------------------------------------------------------------------------------

OPTIONS = sorted(plain_fields(PreferenceConfig))
VALUES = st.one_of(
    JUNK,
    st.sampled_from(
        [math.nan, math.inf, -math.inf, -1, 0, 1, 2, 1e400, "nan", "1e-6", "auto", [], {}]
    ),
)


def check_said(error: ValueError, name: str) -> None:
    """Assert that an error names the option; what transformers checks itself it may say itself."""
    if "transformers" in traceback.extract_tb(error.__traceback__)[-1].filename:
        assert name in str(error)
    else:
        check_error(error, naming=name, longest=LONGEST + 300)


def check_option(name: str, value: Any) -> None:
    """Assert that an option's value is refused by name, or one that means something."""
    try:
        made = PreferenceConfig(
            "unused", **({"report_to": "none", "use_cpu": True} | {name: value})
        )
    except ValueError as error:
        check_said(error, name)
        return
    kept = getattr(made, name)
    assert not isinstance(kept, float) or not math.isnan(kept)
    assert isinstance(kept, (int, float, bool, str)) or kept is None


@SOME
@given(st.sampled_from(OPTIONS), VALUES)
def test_an_option_is_refused_by_name_or_means_something(name, value):
    check_option(name, value)


@pytest.mark.slow
@MANY
@given(st.sampled_from(OPTIONS), VALUES)
def test_many_options_are_refused_by_name_or_mean_something(name, value):
    check_option(name, value)
