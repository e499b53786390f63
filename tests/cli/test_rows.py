"""The datasets that options name: one, or several with weights, and what is held out."""

import json
import re

import pytest

from prefopt.cli import rows, train
from prefopt.cli.errors import UserError
from tests.cli.conftest import write_rows

FAST = ("--report_to=none", "--use_cpu", "--disable_tqdm=true", "--max_steps=2")


def pairs(count, first=0):
    return [
        {"prompt": f"{i} + 1 =", "chosen": f" {i + 1}", "rejected": f" {i}"}
        for i in range(first, first + count)
    ]


def parsed(tmp_path, text="", *argv):
    """Return data arguments and configuration of a YAML file and a command line."""
    path = tmp_path / "run.yaml"
    path.write_text(f"model: m\nreport_to: none\nuse_cpu: true\noutput_dir: {tmp_path}\n{text}")
    return train.parse(train.make_parser(), ["--config", str(path), *argv])[:2]


def splits(tmp_path, text="", *argv):
    return rows.load_splits(*parsed(tmp_path, text, *argv))


@pytest.fixture
def two(tmp_path):
    """Two files, of 12 pairs and of 8."""
    return (
        write_rows(tmp_path / "a.jsonl", pairs(12)),
        write_rows(tmp_path / "b.jsonl", pairs(8, first=50)),
    )


def test_entries_of_a_file_are_datasets_with_weights(tmp_path, two):
    a, b = two
    text = f"datasets:\n  - {a}\n  - path: {b}\n    weight: 5e-1\n    columns: [prompt, chosen]\n"
    train_rows, eval_rows = splits(tmp_path, text)
    assert [(part.weight, part.name) for part in train_rows] == [(1.0, str(a)), (0.5, str(b))]
    assert [len(part.dataset) for part in train_rows] == [12, 8]
    assert train_rows[1].dataset.column_names == ["prompt", "chosen"]
    assert eval_rows is None


def test_datasets_are_named_on_the_command_line_too(tmp_path, two):
    a, b = two
    entry = json.dumps({"path": str(b), "split": "train[:3]", "weight": 2})
    train_rows, _ = splits(tmp_path, "", "--datasets", str(a), entry)
    assert [(len(part.dataset), part.weight) for part in train_rows] == [(12, 1.0), (3, 2.0)]
    assert train_rows[1].name == f"{b} (train[:3])"


def test_columns_are_renamed_and_rows_limited(tmp_path):
    rows = [{**row, "ask": row["prompt"], "prompt": "not read"} for row in pairs(5)]
    path = write_rows(tmp_path / "other.jsonl", rows)
    entry = f"{{path: {path}, columns: [chosen, rejected], rename: {{ask: prompt}}, limit: 3}}"
    (part,), _ = splits(tmp_path, f"datasets: [{entry}]\n")
    assert part.dataset.to_list() == pairs(3)
    (part,), _ = splits(tmp_path, f"datasets: [{entry.replace('limit: 3', 'limit: 300')}]\n")
    assert len(part.dataset) == 5


@pytest.mark.parametrize("form", ["command line", "list", "mapping"])
def test_columns_of_one_dataset_are_named(tmp_path, form):
    theirs = [
        {"ask": row["prompt"], "good": row["chosen"], "bad": row["rejected"]} for row in pairs(5)
    ]
    path = write_rows(tmp_path / "other.jsonl", theirs)
    names = {"prompt": "ask", "chosen": "good", "rejected": "bad"}
    words = [f"{ours}={its}" for ours, its in names.items()]
    text, argv = f"dataset: {path}\n", ()
    if form == "command line":
        argv = ("--columns", *words)
    else:
        text += f"columns: {json.dumps(words if form == 'list' else names)}\n"
    train_rows, held_out = splits(tmp_path, f"{text}eval_rows: 2\n", *argv)
    found = sorted([*train_rows, *held_out], key=lambda row: int(row["chosen"]))
    assert found == pairs(5)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("[prompt]", "columns must be pairs such as prompt=instruction"),
        ("{prompt: asked}", "has no column 'asked'; it has prompt, chosen, rejected"),
        ("{prompt: chosen}", "there are two columns 'prompt'"),
        ("{prompt: chosen, rejected: chosen}", "one column cannot be read as two"),
    ],
)
def test_columns_that_cannot_be_had_are_told(tmp_path, columns, message):
    path = write_rows(tmp_path / "pairs.jsonl", pairs(3))
    with pytest.raises((ValueError, UserError), match=re.escape(message)):
        splits(tmp_path, f"dataset: {path}\ncolumns: {columns}\n")


def test_a_column_of_csv_that_becomes_text_is_read_as_text(tmp_path):
    """A prompt "NA" or "007" is no missing value and no number."""
    path = tmp_path / "other.csv"
    path.write_text("ask,good,rejected\nNA,007,null\nnan,1e3,8\n")
    entry = f"{{path: {path}, rename: {{ask: prompt, good: chosen}}}}"
    for folder in (path, tmp_path / "folder"):
        (part,), _ = splits(tmp_path, f"datasets: [{entry.replace(str(path), str(folder))}]\n")
        assert part.dataset["prompt"][:] == ["NA", "nan"]
        assert part.dataset["chosen"][:] == ["007", "1e3"]
        assert part.dataset["rejected"][:] == ["null", "8"]
        (tmp_path / "folder").mkdir(exist_ok=True)
        (tmp_path / "folder" / "train.csv").write_text(path.read_text())


def test_datasets_to_evaluate_on_are_named(tmp_path, two):
    a, b = two
    for text in (f"dataset: {a}\n", f"datasets: [{a}]\n"):
        text += f"eval_datasets: [{{path: {b}, limit: 2}}, {a}]\n"
        _, eval_rows = splits(tmp_path, text)
        assert [(len(part.dataset), part.name) for part in eval_rows] == [
            (2, str(b)),
            (12, str(a)),
        ]


@pytest.mark.parametrize(("rows", "held_out"), [(7, [4, 3]), (1, [1]), (15, [9, 6])])
def test_a_number_of_rows_is_held_out_of_all_datasets(tmp_path, two, rows, held_out):
    a, b = two
    train_rows, eval_rows = splits(tmp_path, f"datasets: [{a}, {b}]\neval_rows: {rows}\n")
    assert [len(part.dataset) for part in eval_rows] == held_out
    assert sum(len(part.dataset) for part in train_rows) == 20 - rows
    train_one, eval_one = splits(tmp_path, f"dataset: {a}\neval_rows: 7\n")
    assert (len(train_one), len(eval_one)) == (5, 7)


def test_files_are_named_by_type_as_in_trl(tmp_path, two):
    a, b = two
    text = f"datasets:\n  - path: json\n    data_files: [{a}, {b}]\n"
    ((whole, _, name),), _ = splits(tmp_path, text)
    assert (len(whole), name) == (20, "json")


@pytest.mark.parametrize("option", ["eval_fraction", "test_split_size"])
def test_rows_are_held_out_of_each_dataset_before_its_weight(tmp_path, two, option):
    a, b = two
    text = f"datasets:\n  - path: {a}\n    weight: 3\n  - path: {b}\n{option}: 0.25\n"
    train_rows, eval_rows = splits(tmp_path, text)
    assert [len(part.dataset) for part in train_rows] == [9, 6]
    assert [(len(part.dataset), part.weight) for part in eval_rows] == [(3, 1.0), (2, 1.0)]
    for left, out in zip(train_rows, eval_rows, strict=True):
        assert not {*left.dataset["prompt"]} & {*out.dataset["prompt"]}


def test_held_out_rows_are_the_same_for_the_same_seed(data_files, tmp_path):
    def held_out(seed):
        text = f"dataset: {data_files['paired']}\neval_fraction: 0.25\nseed: {seed}\n"
        train_rows, eval_rows = splits(tmp_path, text)
        assert (len(train_rows), len(eval_rows)) == (18, 6)
        return eval_rows["prompt"][:], eval_rows["chosen"][:]

    assert held_out(1) == held_out(1)
    assert held_out(1) != held_out(2)


def test_a_test_split_is_that_of_each_dataset(tmp_path):
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
        write_rows(folder / "train.jsonl", pairs(4))
        write_rows(folder / "test.jsonl", pairs(2))
    text = "".join(f"  - path: {folder}\n" for folder in folders)
    train_rows, eval_rows = splits(tmp_path, f"datasets:\n{text}dataset_test_split: test\n")
    assert [len(part.dataset) for part in (*train_rows, *eval_rows)] == [4, 4, 2, 2]


def test_a_mixture_trains_and_reports_each_dataset(prefopt, model_folder, two, tmp_path):
    a, b = two
    path = tmp_path / "run.yaml"
    path.write_text(
        f"model: {model_folder}\ndatasets:\n  - path: {a}\n    weight: 0.5\n  - path: {b}\n"
        f"output_dir: {tmp_path / 'out'}\ntest_split_size: 0.25\n"
    )
    result = prefopt("train", "--config", path, *FAST)
    assert result.code == 0, result.err
    for line in (
        f"train: {a} data",
        "4 rows, by weight 0.5",
        "train data: 10 rows of 2 datasets",
        "eval data: 5 rows of 2 datasets",
    ):
        assert line in result.err
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("datasets: []", "at least one dataset"),
        ("datasets: A", "must be a list"),
        ("datasets: [7]", "must list paths, or mappings"),
        ("datasets: [{weight: 1}]", "needs a path"),
        ("datasets: [{path: A, wieght: 1}]", "unknown key 'wieght' in datasets; use weight"),
        ("datasets: [{id: A}]", "unknown key 'id' in datasets; use path instead"),
        ("datasets: [{path: A, config: b}]", "use name instead"),
        ("datasets: [{path: A, fraction: 0.5}]", "use weight .how often each row"),
        ("datasets: [{path: A, columns: prompt}]", "must be a list of names"),
        ("datasets: [{path: A, columns: [prompts]}]", "has no column 'prompts'; it has prompt"),
        ("datasets: [{path: A, weight: half}]", "must be a number, got 'half'"),
        ("datasets: [{path: A, weight: 0}]", "must be greater than 0 and finite, got 0.0"),
        ("datasets: [{path: A, weight: -1}]", "must be greater than 0"),
        ("datasets: [{path: A, weight: .nan}]", "must be greater than 0"),
        ("datasets: [{path: A, weight: 0.01}]", "leaves none of 12 rows"),
        ("datasets: [{path: A, split: best}]", "its only split is 'train', not 'best'"),
        ("datasets: [{path: /no/pairs.jsonl}]", "/no/pairs.jsonl"),
        ("datasets: [{path: json, data_files: /no/pairs.jsonl}]", "/no/pairs.jsonl"),
        ("datasets: [A]\ndataset: A", "give dataset_name .* or datasets, not both"),
        ("datasets: [A]\ndataset_config: x", "give each entry its name instead"),
        ("datasets: [A]\ndataset_train_split: x", "give each entry its split instead"),
        ("datasets: [A]\ndataset_streaming: true", "does not go with dataset_streaming"),
        ("datasets: [A]\nstreaming: true", "use dataset_streaming instead"),
        ("datasets: [A]\neval_strategy: epoch", "there are no rows for them"),
        ("datasets: [A]\ntest_split_size: 3", r"eval_fraction must be in \[0, 1\)"),
        ("datasets: [{path: A, rename: [prompt]}]", "rename of .* must map names of columns"),
        ("datasets: [{path: A, rename: {question: prompt}}]", "has no column 'question'"),
        ("datasets: [{path: A, rename: {chosen: prompt}}]", "there are two columns 'prompt'"),
        ("datasets: [{path: A, limit: many}]", "limit of .* must be a number of rows"),
        ("datasets: [{path: A, limit: 0}]", "limit of .* must be at least 1"),
        ("datasets: [A]\neval_datasets: A", "eval_datasets must be a list"),
        ("datasets: [A]\neval_datasets: [{id: A}]", "use path instead"),
        ("dataset: A\neval_rows: 12", "leaves none of 12 rows to train on"),
        ("dataset: A\neval_rows: -1", "eval_rows must be a number of rows"),
        ("dataset: A\neval_rows: 2\neval_fraction: 0.5", "eval_fraction or eval_rows, not both"),
        ("dataset: A\neval_rows: 2\neval_datasets: [A]", "eval_rows or eval_datasets, not both"),
        ("dataset: [A, A]", "several go to datasets"),
    ],
)
def test_a_wrong_mixture_is_one_message(prefopt, model_folder, two, tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_text(text.replace("A", str(two[0])) + f"\nmodel: {model_folder}\n")
    result = prefopt("train", "--config", path, f"--output_dir={tmp_path / 'out'}", *FAST)
    assert result.code == 2, result.err
    error = result.err[result.err.rindex("prefopt: error: ") :]
    assert re.search(message, error), error
    assert "Traceback" not in result.err


def test_too_few_rows_to_hold_out_are_named(tmp_path, two):
    one = write_rows(tmp_path / "one.jsonl", pairs(1))
    with pytest.raises(UserError, match=r"one.jsonl has too few rows \(1\) to hold out 0.25"):
        splits(tmp_path, f"datasets: [{two[0]}, {one}]\neval_fraction: 0.25\n")


def test_a_dataset_with_other_splits_says_which(tmp_path):
    folder = tmp_path / "splits"
    folder.mkdir()
    for name in ("validation", "test"):
        write_rows(folder / f"{name}.jsonl", pairs(2))
    with pytest.raises(UserError, match="has no split 'train'; give --dataset_train_split, or"):
        splits(tmp_path, f"datasets: [{folder}]\n")


def test_a_filled_store_serves_a_mixture(prefopt, model_folder, two, tmp_path):
    """Its keys are of the content: a row that is used twice is computed once."""
    a, b = two
    entries = ["--datasets", str(a), json.dumps({"path": str(b), "weight": 2})]
    run = ("--model", str(model_folder), *entries, "--report_to=none", "--use_cpu")
    folder = ("--reference_cache_dir", str(tmp_path / "store"))
    filled = prefopt("cache", "fill", *run, *folder)
    assert filled.code == 0, filled.err
    assert "40 completions" in filled.out
    assert "0 completions" in prefopt("cache", "fill", *run, *folder).out
