"""``prefopt score``: files in and out, accuracy by subset, data that can be trained on."""

import json

import pytest
from datasets import Dataset, load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefopt.cli import UserError
from prefopt.cli import score as command
from prefopt.cli.score import ScoreArguments
from prefopt.evaluation import completion_logps
from tests.cli.conftest import write_rows

QUESTIONS = ["Say hello.", "Count to three.", "Name a colour."]
ANSWERS = [["Hello.", "Hi there, my friend.", "No."], ["1 2 3", "4"], ["Red", "Blue"]]


@pytest.fixture
def run(prefopt, model_folder, tmp_path):
    """Score a file by a model without reference, and return its rows and what was printed."""

    def score(file, *options: object, suffix: str = ".jsonl"):
        output = tmp_path / f"scored{suffix}"
        result = prefopt(
            *("score", file, "--model", model_folder, "--ref_model", "none", "--use_cpu"),
            *("--disable_tqdm", "true", "--output", output, *options),
        )
        assert result.code == 0, result.err
        if suffix == ".parquet":
            return list(load_dataset("parquet", data_files=str(output), split="train")), result
        return [json.loads(line) for line in output.read_text().splitlines()], result

    return score


def answers_file(folder):
    rows = [{"prompt": q, "completions": its} for q, its in zip(QUESTIONS, ANSWERS, strict=True)]
    return write_rows(folder / "answers.jsonl", rows)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_rows_get_columns_of_scores(run, data_files, suffix):
    rows, result = run(data_files["paired"], suffix=suffix)
    assert len(rows) == 24
    for row in rows:
        assert row["chosen_reward"] == row["chosen_logps"] < 0
        assert row["rejected_tokens"] == len(row["rejected"]) + 1  # a byte is a token; the EOS
        assert "chosen_ref_logps" not in row
        assert "reward_chosen" in row  # a column of the data
    right = sum(row["chosen_reward"] > row["rejected_reward"] for row in rows) / 24
    longer = sum(
        (row["chosen_tokens"] > row["rejected_tokens"])
        + 0.5 * (row["chosen_tokens"] == row["rejected_tokens"])
        for row in rows
    )
    (cells,) = [line.split() for line in result.out.splitlines() if line.split()[:1] == ["all"]]
    assert float(cells[1]) == pytest.approx(right, abs=5e-4)
    assert float(cells[5]) == pytest.approx(longer / 24, abs=5e-4)


def test_unpaired_rows_and_lists_have_columns_of_their_own(run, data_files, tmp_path):
    rows, result = run(data_files["unpaired"], "--prefix", "mine_")
    assert {"mine_reward", "mine_logps", "mine_completion_tokens", "reward"} < rows[0].keys()
    assert "accuracy" not in result.out
    rows, _ = run(answers_file(tmp_path))
    for row, answers in zip(rows, ANSWERS, strict=True):
        assert row["completions"] == answers
        assert len(row["rewards"]) == len(row["logps"]) == len(answers)
        assert row["completion_tokens"] == [len(answer) + 1 for answer in answers]
        assert row["best"] == row["rewards"].index(max(row["rewards"]))


def test_answers_of_one_prompt_in_many_rows_become_one_best_row(run, tmp_path):
    lists, _ = run(answers_file(tmp_path))
    flat = write_rows(
        tmp_path / "flat.jsonl",
        [
            {"prompt": question, "completion": answer}
            for question, its in zip(QUESTIONS, ANSWERS, strict=True)
            for answer in its
        ],
    )
    rows, _ = run(flat, "--keep", "best")
    assert rows == [
        {
            "prompt": row["prompt"],
            "completion": row["completions"][row["best"]],
            "label": True,
            "reward": pytest.approx(max(row["rewards"]), abs=1e-3),
            "candidates": len(row["completions"]),
        }
        for row in lists
    ]


def test_what_was_sampled_is_scored_as_the_model_said_it(run, prefopt, model_folder, tmp_path):
    answers = tmp_path / "answers.jsonl"
    sampled = prefopt(
        *("sample", "--model", model_folder, "--prompts", "Why?", "How?", "--temperature", 1),
        *("--samples", 3, "--max_new_tokens", 6, "--output", answers),
    )
    assert sampled.code == 0, sampled.err
    rows, _ = run(answers)
    assert len(rows) == 6
    best, _ = run(answers, "--keep", "best")
    assert [row["prompt"][0]["content"] for row in best] == ["Why?", "How?"]
    # Its log-prob is that of the conversation, by transformers alone.
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    text = f"[user]{rows[0]['prompt'][0]['content']}</s>[assistant]"
    prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
    said = tokenizer(f"{rows[0]['completion']}</s>", add_special_tokens=False)["input_ids"]
    expected = completion_logps(model, [prompt], [said]).item()
    assert rows[0]["logps"] == pytest.approx(expected, abs=1e-3)


def test_new_preferences_can_be_trained_on(run, prefopt, model_folder, tmp_path):
    more = [{"prompt": "One answer.", "completions": ["Yes."]}]
    file = answers_file(tmp_path)
    file.write_text(file.read_text() + json.dumps(more[0]) + "\n")
    rows, result = run(file, "--keep", "chosen_rejected")
    assert "1 of 4 prompts make no pair" in result.err
    assert len(rows) == 3
    assert all(row["score_chosen"] > row["score_rejected"] for row in rows)
    for keep, loss in (("chosen_rejected", "odpo"), ("accepted", "sft")):
        run(file, "--keep", keep)
        trained = prefopt(
            *("train", "--model", model_folder, "--dataset", tmp_path / "scored.jsonl"),
            *("--loss_type", loss, "--output_dir", tmp_path / "out", "--use_cpu"),
            *("--max_steps", 1, "--report_to", "none", "--disable_tqdm", "true"),
        )
        assert trained.code == 0, trained.err


def test_rejection_sampling_repeats_with_its_seed(run, tmp_path):
    file = answers_file(tmp_path)
    options = ("--keep", "accepted", "--accept", 2, "--accept_beta", 50)
    first, again = (run(file, *options, "--seed", 1)[0] for _ in range(2))
    assert first == again
    assert len(first) == 6
    assert any(run(file, *options, "--seed", seed)[0] != first for seed in (2, 3, 4))


def test_rewardbench_is_told_by_subset_and_no_text_is_taken_away(run, tmp_path):
    echo = "Repeat after me: the cat sat on the mat."
    rows = [
        {
            "id": number,
            "subset": "echo" if number % 3 else "other",
            "prompt": echo,
            "chosen": f"{echo}{'!' * number}",
            "rejected": echo[: 10 + number],
            "chosen_model": "a",
            "rejected_model": "b",
        }
        for number in range(1, 10)
    ]
    file = write_rows(tmp_path / "bench.jsonl", rows)
    scored, result = run(file)
    assert "RewardBench's layout: prompt and answers are a question and answers" in result.err
    for row, given in zip(scored, rows, strict=True):
        assert {name: row[name] for name in given} == given
        assert row["chosen_tokens"] == len(given["chosen"]) + 1
        assert row["rejected_tokens"] == len(given["rejected"]) + 1
    lines = {line.split()[0]: line.split() for line in result.out.splitlines() if line.strip()}
    for subset in ("echo", "other"):
        its = [row for row in scored if row["subset"] == subset]
        right = sum(row["chosen_reward"] > row["rejected_reward"] for row in its) / len(its)
        assert float(lines[subset][1]) == pytest.approx(right, abs=5e-4)
        assert int(lines[subset][4]) == len(its)
    assert int(lines["all"][4]) == 9
    plain, result = run(file, "--chat", "false")
    assert "prompt and answers are plain text" in result.err
    assert [row["chosen_tokens"] for row in plain] == [len(row["chosen"]) + 1 for row in rows]
    _, result = run(file, "--by", "chosen_model")
    assert "\n a " in result.out


def test_a_row_that_is_set_aside_stays_without_scores(run, data_files):
    rows, _ = run(data_files["paired"], "--max_length", 60)
    assert len(rows) == 24
    rows, result = run(data_files["paired"], "--max_length", 31)
    without = [row for row in rows if "chosen_reward" not in row]
    assert 0 < len(without) < 24
    assert all(len(row["prompt"]) >= 31 for row in without)
    assert "the prompt leaves no room" in result.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "--output is missing"),
        (["--output", "x.csv"], "ends in .jsonl or .parquet"),
        (["--output", "no/such/x.jsonl"], "there is no folder"),
        (["--output", "x.jsonl", "--accept", 2], "--accept goes with --keep accepted"),
        (["--output", "x.jsonl", "--by", "subset"], "unknown column 'subset'"),
        (["--output", "x.jsonl", "--keep", "beast"], "invalid choice"),
        (["--output", "x.jsonl", "--keep", "accepted", "--accept_beta", 0], "greater than 0"),
    ],
)
def test_what_is_wrong_is_said_before_the_model_is_loaded(
    prefopt, data_files, tmp_path, monkeypatch, options, said
):
    monkeypatch.chdir(tmp_path)
    common = ("score", data_files["paired"], "--model", tmp_path, "--ref_model", "none")
    result = prefopt(*common, *options)
    assert result.code == 2
    assert said in result.err


def test_columns_of_an_earlier_score_are_not_overwritten():
    columns = Dataset.from_dict({"prompt": ["a"], "chosen_reward": [1.0]}).column_names
    with pytest.raises(UserError, match="have a column 'chosen_reward'"):
        command._check_columns(columns, ScoreArguments())
    command._check_columns(columns, ScoreArguments(keep="best"))
    command._check_columns(columns, ScoreArguments(prefix="mine_"))
    with pytest.raises(UserError, match="--keep does not write"):
        command._check_columns(columns, ScoreArguments(keep="best", prefix="mine_"))


def test_several_files_are_refused(prefopt, data_files, tmp_path):
    files = ("--datasets", data_files["paired"], data_files["ranked"])
    result = prefopt("score", *files, "--model", "m", "--ref_model", "r", "--output", "x.jsonl")
    assert result.code == 2
    assert "one file is scored at a time" in result.err
