import bz2
import csv
import gzip
import io
import json

import pytest
from datasets import Dataset, DatasetDict, IterableDataset

from prefopt.data import DataError, load_rows, prepare_dataset, report_for

ROWS = [{"prompt": f"p{n}", "chosen": " a", "rejected": " b"} for n in range(3)]
LINES = "\n".join(map(json.dumps, ROWS))


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    """Keep what `datasets` caches out of the user's folder."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def write(path, text):
    path.parent.mkdir(exist_ok=True, parents=True)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rows.jsonl", LINES),
        ("rows.jsonl.gz", LINES),
        ("rows.json", json.dumps(ROWS)),
        ("rows.v2.json.gz", json.dumps(ROWS)),
        ("rows.csv", "prompt,chosen,rejected\n" + "".join(f"p{n}, a, b\n" for n in range(3))),
        ("rows.csv.gz", "prompt,chosen,rejected\n" + "".join(f"p{n}, a, b\n" for n in range(3))),
    ],
)
def test_a_file_is_loaded_by_its_name(tmp_path, name, text):
    loaded = load_rows(write(tmp_path / name, text))
    assert isinstance(loaded, Dataset)
    assert loaded[:] == Dataset.from_list(ROWS)[:]


def test_a_parquet_file_is_loaded(tmp_path):
    Dataset.from_list(ROWS).to_parquet(str(tmp_path / "rows.parquet"))
    assert load_rows(str(tmp_path / "rows.parquet"))[:] == Dataset.from_list(ROWS)[:]


def test_a_file_may_be_streamed_and_sliced(tmp_path):
    path = write(tmp_path / "rows.jsonl", LINES)
    stream = load_rows(path, streaming=True)
    assert isinstance(stream, IterableDataset)
    assert list(stream) == ROWS
    assert len(load_rows(path, split="train[:2]")) == 2


def test_text_of_csv_files_stays_as_it_stands(tmp_path):
    text = "prompt,chosen,rejected,weight\n007,True,NA,1\n1e3,2.50,None,\n"
    wanted = [
        {"prompt": "007", "chosen": "True", "rejected": "NA", "weight": 1.0},
        {"prompt": "1e3", "chosen": "2.50", "rejected": "None", "weight": None},
    ]
    path = write(tmp_path / "folder" / "rows.csv", text)
    for loaded in (load_rows(path), load_rows(path.parent), load_rows(path, streaming=True)):
        assert list(loaded) == wanted


def test_ragged_rows_may_hold_line_separators_and_be_compressed(tmp_path):
    rows = [{"prompt": "a\u2028b", "tools": tools} for tools in ([{"a": 1}], [{"a": "x"}], "[]")]
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "rows.jsonl.bz2").write_bytes(bz2.compress(text.encode()))
    loaded = load_rows(tmp_path / "rows.jsonl.bz2")
    assert [row["prompt"] for row in loaded] == ["a\u2028b"] * 3


def test_a_saved_folder_is_loaded(tmp_path):
    rows = Dataset.from_list(ROWS)
    rows.save_to_disk(str(tmp_path / "one"))
    assert load_rows(tmp_path / "one")[:] == rows[:]
    assert list(load_rows(tmp_path / "one", streaming=True)) == ROWS
    DatasetDict(train=rows, test=rows.select([0])).save_to_disk(str(tmp_path / "two"))
    assert set(load_rows(tmp_path / "two")) == {"train", "test"}
    assert len(load_rows(tmp_path / "two", split="test")) == 1
    with pytest.raises(DataError, match=r"no split 'dev'; it has train, test"):
        load_rows(tmp_path / "two", split="dev")
    with pytest.raises(DataError, match="has no splits"):
        load_rows(tmp_path / "one", split="test")


def test_a_folder_of_files_is_loaded(tmp_path):
    write(tmp_path / "data/train.jsonl.gz", LINES)
    write(tmp_path / "data/test.jsonl.gz", json.dumps(ROWS[0]))
    assert {name: len(rows) for name, rows in load_rows(tmp_path / "data").items()} == {
        "train": 3,
        "test": 1,
    }
    assert len(load_rows(tmp_path / "data", split="test")) == 1
    with pytest.raises(DataError, match="dev"):
        load_rows(tmp_path / "data", split="dev")


@pytest.mark.parametrize(
    "name", ["./rows", "/nowhere/rows", "rows.jsonl", "a/b/c", "~/rows.json.gz"]
)
def test_a_missing_path_is_told(name):
    with pytest.raises(DataError, match="there is no file or folder"):
        load_rows(name)


def test_the_only_split_of_a_folder_is_taken(tmp_path):
    write(tmp_path / "data/train.jsonl", LINES)
    assert load_rows(tmp_path / "data")[:] == Dataset.from_list(ROWS)[:]


def test_a_name_that_is_nowhere_is_told(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="nobody/nothing: there is no such file or folder, and"):
        load_rows("nobody/nothing")
    (tmp_path / "pairs.jsonl").write_text("")
    with pytest.raises(DataError, match=r"no file or folder pairs.json \(did you mean pairs.jsonl"):
        load_rows("pairs.json")
    (tmp_path / "preferences").mkdir()
    with pytest.raises(DataError, match=r"no such file or folder \(did you mean preferences\?\)"):
        load_rows("prefernces")


def test_what_can_not_be_read_is_told(tmp_path):
    with pytest.raises(DataError, match="of no known type"):
        load_rows(write(tmp_path / "rows.txt", "text"))
    with pytest.raises(DataError, match="has no data files"):
        load_rows(tmp_path)
    with pytest.raises(DataError, match=r"its only split is 'train', not 'test'"):
        load_rows(write(tmp_path / "rows.jsonl", LINES), split="test")
    with pytest.raises(DataError, match=r"broken.jsonl, line 1: is no valid JSON"):
        load_rows(write(tmp_path / "broken.jsonl", '{"prompt": '))


def test_ragged_columns_are_loaded(tmp_path):
    tool = {"type": "function", "function": {"name": "f", "parameters": {"x": 1}}}
    rows = [
        {"prompt": "p", "tools": [tool], "chat_template_kwargs": {"a": 1}},
        {"prompt": "q", "tools": [], "chat_template_kwargs": {"b": "c"}},
        {"prompt": "r"},
        {"prompt": "s", "tools": [{"other": [1, "two"]}]},
    ]
    loaded = load_rows(write(tmp_path / "rows.jsonl", "\n".join(map(json.dumps, rows))))
    read = [json.loads(cell) if isinstance(cell, str) else cell for cell in loaded["tools"]]
    assert read[0] == [tool]
    assert read[3] == [{"other": [1, "two"]}]


def test_messages_in_csv_files_are_read_and_empty_cells_are_nothing(tmp_path, words):
    talk = [{"role": "Human", "content": 'Say "yes",\nplease'}, {"role": "bot", "content": "yes"}]
    other = [talk[0], {"role": "bot", "content": "no"}]
    for spell in (json.dumps, str):
        file = io.StringIO()
        table = csv.DictWriter(file, ["chosen", "rejected", "input", "images"])
        table.writeheader()
        table.writerows([{"chosen": spell(talk), "rejected": spell(other)}] * 2)
        rows = load_rows(write(tmp_path / f"{spell.__name__}.csv", file.getvalue()))
        prepared = prepare_dataset(rows, words)
        turns = ("user:", "Say", '"yes",', "please", "assistant:")
        assert prepared.dataset[1]["prompt_ids"] == [words.id_of(word) for word in turns]
        assert prepared.dataset[1]["completion_ids"] == [[words.id_of(w)] for w in ("yes", "no")]


def test_a_report_counts_bytes_without_a_tokenizer(tmp_path):
    path = write(tmp_path / "rows.jsonl", LINES)
    report = report_for(path)
    assert (report.unit, report.name, report.kept) == ("bytes", "rows.jsonl", 3)
    assert (report.prompts.total, report.completions.total) == (6, 12)
    assert "bytes" in report.render()
    assert "note" not in report.render()


def test_a_report_counts_messages_without_a_tokenizer(tmp_path):
    row = {"messages": [{"role": "user", "content": "Hi"}], "responses": ["yes", "no"]}
    report = report_for(write(tmp_path / "rows.jsonl", json.dumps(row)))
    # "user: Hi\nassistant: " and then "yes\n" or "no\n".
    assert (report.prompts.total, report.completions.total) == (20, 7)
    assert report.boundary_moved == 0


def test_a_report_counts_tokens_with_a_tokenizer(tmp_path, stories):
    path = write(tmp_path / "rows.jsonl", LINES)
    stories.save_pretrained(str(tmp_path / "tokenizer"))
    report = report_for(path, str(tmp_path / "tokenizer"), max_length=4)
    assert report == report_for(path, stories, max_length=4)
    assert (report.unit, report.max_length) == ("tokens", 4)


def test_a_report_is_of_one_split(tmp_path):
    rows = Dataset.from_list(ROWS)
    DatasetDict(train=rows, test=rows.select([0])).save_to_disk(str(tmp_path / "two"))
    with pytest.raises(DataError, match="take one of: train, test"):
        report_for(tmp_path / "two")
    assert report_for(tmp_path / "two", split="test").rows == 1
