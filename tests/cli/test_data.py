"""``prefopt data report`` counts what training would make of a dataset."""

import json
import re

import pytest

from tests.data.templates import THINKING, bytes_tokenizer, pair


def test_the_report_counts_rows_and_tokens_of_the_named_model(prefopt, data_files, model_folder):
    result = prefopt("data", "report", data_files["paired"], "--tokenizer", model_folder)
    assert result.code == 0, result.err
    assert "24 rows in, 24 kept: 24 paired" in result.out
    assert re.search(r"[\d,]+ tokens with shared prefixes once", result.out)
    assert "--tokenizer" not in result.out


def test_without_a_tokenizer_it_says_what_it_counts(prefopt, data_files):
    result = prefopt("data", "report", data_files["unpaired"])
    assert result.code == 0, result.err
    assert "24 kept: 24 unpaired" in result.out
    assert "Counted in bytes, as no tokenizer is named" in result.out


def test_max_length_cuts_and_none_does_not(prefopt, data_files, model_folder):
    def report(*options):
        result = prefopt(
            *("data", "report", data_files["paired"], "--model", model_folder, "--json"), *options
        )
        return json.loads(result.out)[0]

    assert report("--max_length", "none")["cut_rows"] == 0
    assert report("--max_length", "none")["max_length"] is None
    assert report("--max_length", "64")["max_length"] == 64
    assert report("--max_length", "64")["completions"]["longest"] <= 64


def test_the_template_of_a_processor_is_found(prefopt, model_folder, tmp_path):
    for file in model_folder.glob("token*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    template = (model_folder / "chat_template.jinja").read_text()
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    row = {"prompt": [{"role": "user", "content": "Hi"}]} | {
        side: [{"role": "assistant", "content": text}]
        for side, text in (("chosen", "yes"), ("rejected", "no"))
    }
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    result = prefopt("data", "report", tmp_path / "rows.jsonl", "--tokenizer", tmp_path)
    assert result.code == 0, result.err
    assert "1 kept: 1 paired" in result.out


def test_every_split_of_a_folder_is_reported(prefopt, data_files, tmp_path):
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}] * 3)
    DatasetDict({"train": rows, "test": rows.select([0, 1])}).save_to_disk(tmp_path)
    result = prefopt("data", "report", tmp_path)
    assert "train data   3 rows in," in result.out
    assert "test data    2 rows in," in result.out
    assert "train data" not in prefopt("data", "report", tmp_path, "--split", "test").out


def test_a_row_is_shown_with_what_is_trained_on(prefopt, tmp_path):
    bytes_tokenizer(THINKING).save_pretrained(tmp_path / "model")
    rows = [pair("[b]Hi[/b] :smile:", "Hello " + "there " * 40, "No")] * 2
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    argv = ("data", "report", tmp_path / "rows.jsonl", "--tokenizer", tmp_path / "model")
    result = prefopt(*argv)
    assert "audit            2 rows: the template puts text before the answer" in result.out
    prompt, chosen, rejected = result.out.split("--- row 0, prompt ---\n")[1].split("\n---")[:3]
    assert prompt == "<|im_start|>user\n[b]Hi[/b] :smile:<|im_end|>\n<|im_start|>assistant\n"
    assert chosen.startswith(" chosen, trained on ---\n<think>\n\n</think>\n\nHello there")
    assert "there " * 40 + "<|im_end|>\n" in chosen
    assert rejected.endswith("No<|im_end|>\n")
    report = json.loads(prefopt(*argv, "--json").out)[0]
    assert report["sample"]["prompt"] == prompt
    assert all(remark["rows"] == [0, 1] for remark in report["remarks"].values())


def test_a_row_is_shown_as_text_where_no_tokenizer_is_named(prefopt, data_files):
    out = prefopt("data", "report", data_files["unpaired"]).out
    assert re.search(r"--- row 0, prompt ---\n.*\n--- (un)?desirable, trained on ---\n", out)
    assert "audit" not in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("/no/rows.jsonl",), "there is no file or folder /no/rows.jsonl"),
        (("DATA", "--split", "best"), "its only split is 'train', not 'best'"),
        (("DATA", "--tokenizer", "/no/model"), "/no/model"),
        (("WRONG",), "row 0|columns?"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_two(prefopt, data_files, tmp_path, argv, message):
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('{"text": "nothing to compare"}\n')
    names = {"DATA": data_files["paired"], "WRONG": wrong}
    result = prefopt("data", "report", *(names.get(item, item) for item in argv))
    assert result.code == 2
    assert re.search(message, result.err)
    assert "Traceback" not in result.err


def test_real_data_is_reported(prefopt, shared_dir):
    path = shared_dir / "data/preference/hh_helpful_base_test.jsonl.gz"
    result = prefopt("data", "report", path)
    assert result.code == 0, result.err
    assert "2,354 rows in" in result.out
