"""``prefopt sample``: which prompts are asked, what is printed and written."""

import json

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefopt.cli import sample
from prefopt.evaluation import generate

from .conftest import write_rows

QUICK = ("--max_new_tokens", "4", "--temperature", "0")


def answers(folder, prompts, **options):
    """Return what a model answers, asked in Python."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    settings = {"temperature": 0, "max_new_tokens": 4} | options
    return generate(model, AutoTokenizer.from_pretrained(folder), prompts, **settings)


@pytest.fixture(scope="module")
def other_folder(model_folder, tmp_path_factory):
    """Another model with the same tokenizer."""
    folder = tmp_path_factory.mktemp("other")
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    model.lm_head.weight.data = model.lm_head.weight.data.flip(0)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(folder)
    return folder


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_two_models_answer_side_by_side(prefopt, model_folder, other_folder, tmp_path):
    out = tmp_path / "answers.jsonl"
    result = prefopt(
        *("sample", "--model", model_folder, "--compare", other_folder, "--output", out),
        *("--prompts", "Why?", "What is 2 + 2?", *QUICK),
    )
    assert result.code == 0, result.err
    asked = [[{"role": "user", "content": text}] for text in ("Why?", "What is 2 + 2?")]
    ours, theirs = answers(model_folder, asked), answers(other_folder, asked)
    assert [answer.text for answer in ours] != [answer.text for answer in theirs]
    found = lines(out)
    assert [line["model"] for line in found] == [str(model_folder), str(other_folder)] * 2
    expected = [answer for both in zip(ours, theirs, strict=True) for answer in both]
    assert [line["completion"] for line in found] == [answer.text for answer in expected]
    assert [line["tokens"] for line in found] == [answer.tokens for answer in expected]
    assert [line["truncated"] for line in found] == [answer.truncated for answer in expected]
    questions = [message["content"] for line in found for message in line["prompt"]]
    assert set(questions) == {"Why?", "What is 2 + 2?"}
    assert all(line["prompt"][0]["role"] == "user" for line in found)
    assert {line["temperature"] for line in found} == {0.0}
    places = [
        result.out.index(text) for text in ("--- prompt 1 ---\nuser: Why?", str(other_folder))
    ]
    assert places == sorted(places)
    assert result.out.count("(4 tokens, cut)") == sum(answer.truncated for answer in expected)


def test_prompts_are_plain_where_that_is_asked_for(prefopt, model_folder, tmp_path):
    out = tmp_path / "answers.jsonl"
    command = ("sample", "--model", model_folder, "--prompts", "2 + 2 =", *QUICK, "--output", out)
    assert prefopt(*command, "--plain").code == 0
    assert lines(out)[0]["completion"] == answers(model_folder, ["2 + 2 ="])[0].text
    assert lines(out)[0]["prompt"] == "2 + 2 ="
    assert prefopt(*command, "--system", "Be short.").code == 0
    turns = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "2 + 2 ="}]
    assert lines(out)[0]["completion"] == answers(model_folder, [turns])[0].text
    refused = prefopt(*command, "--plain", "--system", "Be short.")
    assert (refused.code, "--system goes with --prompts" in refused.err) == (2, True)


def test_samples_and_settings_reach_the_model(prefopt, model_folder, tmp_path):
    out = tmp_path / "answers.jsonl"
    result = prefopt(
        *("sample", "--model", model_folder, "--prompts", "a", "b", "--plain", "--output", out),
        *("--temperature", "1.3", "--top_k", "20", "--top_p", "0.9", "--samples", "2"),
        *("--seed", "5", "--max_new_tokens", "3", "--batch_size", "3"),
    )
    assert result.code == 0, result.err
    options = {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "samples": 2, "seed": 5}
    expected = answers(model_folder, ["a", "b"], **options, max_new_tokens=3)
    found = lines(out)
    assert [line["completion"] for line in found] == [answer.text for answer in expected]
    assert [(line["prompt"], line["sample"]) for line in found] == [
        *(("a", 0), ("a", 1), ("b", 0), ("b", 1))
    ]
    assert {(line["top_k"], line["top_p"], line["seed"]) for line in found} == {(20, 0.9, 5)}


def test_the_first_prompts_of_a_dataset_are_asked(prefopt, model_folder, tmp_path):
    rows = [{"prompt": text, "chosen": "x", "rejected": "y"} for text in ("a", "a", "b", "c")]
    data, out = write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "answers.jsonl"
    command = ("sample", "--model", model_folder, "--dataset", data, "--output", out, *QUICK)
    assert prefopt(*command, "--max_prompts", "2").code == 0
    assert [line["prompt"] for line in lines(out)] == ["a", "b"]
    assert lines(out)[1]["completion"] == answers(model_folder, ["b"])[0].text


def test_prompts_that_leave_no_room_are_told(prefopt, model_folder, tmp_path):
    rows = [{"prompt": text} for text in ("a" * 510, "b", "c" * 600)]  # of 512 positions
    data = write_rows(tmp_path / "rows.jsonl", rows)
    result = prefopt("sample", "--model", model_folder, "--dataset", data, *QUICK)
    assert result.code == 0
    assert "2 prompts are left out: no room" in result.out
    assert result.out.count("--- prompt ") == 1
    data = write_rows(tmp_path / "rows.jsonl", rows[::2])
    result = prefopt("sample", "--model", model_folder, "--dataset", data, *QUICK)
    assert (result.code, "none of 2 prompts" in result.err) == (2, True)


def test_splits_are_chosen_or_named(prefopt, model_folder, tmp_path):
    from datasets import Dataset, DatasetDict

    splits = {name: Dataset.from_list([{"prompt": name}]) for name in ("train", "test", "more")}
    DatasetDict(splits).save_to_disk(tmp_path / "all")
    DatasetDict({"a": splits["train"], "b": splits["test"]}).save_to_disk(tmp_path / "others")
    command = ("sample", "--model", model_folder, *QUICK, "--dataset")
    assert "---\ntest\n" in prefopt(*command, tmp_path / "all").out
    assert "---\nmore\n" in prefopt(*command, tmp_path / "all", "--split", "more").out
    result = prefopt(*command, tmp_path / "others")
    assert (result.code, "has the splits a, b" in result.err) == (2, True)


def test_in_a_terminal_answers_stand_beside_each_other(capsys, monkeypatch):
    from prefopt.evaluation import Generation

    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    made = [Generation(text, (1,), 1, text == "left") for text in ("left", "right")]
    found = [
        sample.Asked(name, ["asked"], [{}], [one]) for name, one in zip("ab", made, strict=True)
    ]
    sample.show(found, 1)
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if "left" in line]
    assert "right" in line
    assert "1 tokens, cut" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--samples", "0"), "--samples must be at least 1"),
        (("--samples", "2", "--temperature", "0"), "all answers to a prompt are the same"),
        (("--seed", "-1"), "--seed must be at least 0"),
        (("--temperature", "-1"), "temperature must be at least 0"),
        (("--output", "/no/such/folder/x.jsonl"), "there is no folder /no/such/folder"),
        (("--backend", "vllm", "--load_in_8bit"), "--backend vllm does not take"),
        (("--max_new_tokens", "600"), "more than the 512"),
    ],
)
def test_mistakes_are_told(prefopt, model_folder, words, message):
    result = prefopt("sample", "--model", model_folder, "--prompts", "a", *words)
    assert (result.code, result.out) == (2, "")
    assert message in result.err


def test_vllm_is_used_where_it_is_asked_for(prefopt, model_folder, monkeypatch):
    loaded = {}

    def load_vllm(name, **options):
        loaded[name] = options
        return AutoModelForCausalLM.from_pretrained(name)

    monkeypatch.setattr("prefopt.evaluation.vllm_backend.load_vllm", load_vllm)
    command = ("sample", "--model", model_folder, "--prompts", "a", "--backend", "vllm", *QUICK)
    assert prefopt(*command, "--seed", "3", "--dtype", "bfloat16").code == 0
    assert loaded == {str(model_folder): {"seed": 3, "dtype": "bfloat16"}}
