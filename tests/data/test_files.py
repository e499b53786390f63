"""Rows of json and csv files: as they stand, or refused with the line that is broken."""

import bz2
import gzip
import json
import lzma

import pytest

from prefopt.data import DataError
from prefopt.data.files import builder_of, iter_rows, text_or_none

ROWS = [{"prompt": f"p{n}, \u2028é", "chosen": " a\r\n", "rejected": ""} for n in range(3)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    "content",
    [
        LINES,
        "\ufeff" + LINES,
        "\n" + LINES.replace("\n", "\n \n"),
        LINES.replace("\n", "\r\n"),
        LINES.replace("\n", ""),
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2),
        "\n".join(json.dumps(row, indent=1) for row in ROWS),
        gzip.compress(LINES.encode(), mtime=0),
        bz2.compress(LINES.encode()),
        lzma.compress(LINES.encode()),
        gzip.compress(LINES[:60].encode(), mtime=0) + gzip.compress(LINES[60:].encode(), mtime=0),
    ],
)
def test_json_is_read_however_it_is_written(tmp_path, content):
    assert list(iter_rows(write(tmp_path, "rows.jsonl", content))) == ROWS


def test_text_of_a_csv_file_stays_as_it_stands(tmp_path):
    text = 'prompt,chosen,label,weight\n007,"a ""b"",\nc",TRUE,0.5\nNA,None,0,\n'
    for name, content in (("a.csv", text), ("b.csv.gz", gzip.compress(text.encode()))):
        assert list(iter_rows(write(tmp_path, name, content), ("prompt", "chosen"))) == [
            {"prompt": "007", "chosen": 'a "b",\nc', "label": True, "weight": 0.5},
            {"prompt": "NA", "chosen": "None", "label": 0, "weight": None},
        ]
    old = text.replace('"a ""b"",\nc"', "a").replace("\n", "\r")
    assert len(list(iter_rows(write(tmp_path, "c.csv", old)))) == 2


def test_a_cell_may_be_longer_than_the_csv_module_takes_by_default(tmp_path):
    path = write(tmp_path, "rows.csv", "prompt\n" + "x" * 200_000 + "\n")
    assert [len(row["prompt"]) for row in iter_rows(path)] == [200_000]


def test_a_half_character_is_met_and_a_whole_one_is_not(tmp_path):
    assert list(iter_rows(write(tmp_path, "a.jsonl", '{"a": "\\ud83d\\ude00"}'))) == [{"a": "😀"}]
    with pytest.raises(DataError, match=r"line 2: has half a character, '\\ud83d'"):
        list(iter_rows(write(tmp_path, "b.jsonl", '{"a": 1}\n{"a": ["\\uD83D"]}')))


def test_a_file_is_known_by_its_name(tmp_path):
    names = {"a.jsonl": "json", "a.b.JSON.gz": "json", "a.csv.zst": "csv", "a.parquet": "parquet"}
    assert {name: builder_of(tmp_path / name) for name in names} == names
    assert builder_of(tmp_path / "a.txt.gz") is builder_of(tmp_path / "a") is None


def test_an_empty_cell_is_no_text():
    assert (text_or_none(""), text_or_none("0")) == (None, "0")
