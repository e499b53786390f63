"""HH with a real model: its halves and numbers by hand, its comparisons as far as planned."""

import json
import sys
from dataclasses import replace

import pytest
import torch

from prefopt.compare import compare


def test_all_rows_with_a_preference_are_dealt_and_no_question_is_on_both_sides(load, shared_dir):
    script = load("hh_smollm2")
    halves = script.deal(0, 0)
    assert 2340 <= sum(map(len, halves)) <= 2352  # two have no preference, four an empty answer
    first = [{row["prompt"][0]["content"] for row in half} for half in halves]
    assert not first[0] & first[1]
    for row in halves[0] + halves[1]:
        assert row["prompt"][-1]["role"] == "user"
        assert row["chosen"] != row["rejected"]
        assert row["chosen"][0]["content"]
        assert row["rejected"][0]["content"]


def test_of_a_prompt_the_last_exchanges_that_fit_are_kept(load):
    texts = ["one two three", "four five", "six", "seven eight", "nine"]
    roles = ["user", "assistant"] * 3
    turns = [{"role": a, "content": b} for a, b in zip(roles, texts, strict=False)]
    last_turns = load("hh_smollm2").last_turns
    assert last_turns(turns, 0) == last_turns(turns, 9) == turns
    assert last_turns(turns, 8) == last_turns(turns, 4) == turns[2:]
    assert last_turns(turns, 3) == last_turns(turns[-1:], 1) == turns[4:]
    assert last_turns(turns[:1], 2) == turns[:1]  # the question itself is never cut


def test_accuracy_is_over_all_rows_and_seeds(load):
    report = load("hh_smollm2_report")
    rows = [
        {"chosen_logps": a, "rejected_logps": b, "ref_chosen_logps": -5.0}
        | {"ref_rejected_logps": -6.0, "chosen_tokens": 3 + i, "rejected_tokens": 4}
        for i, (a, b) in enumerate([(-4.0, -6.0), (-5.0, -6.0), (-7.0, -6.5), (-4.0, -4.0)])
    ]
    other = [row | {"chosen_logps": -1.0} for row in rows]
    measured = report._measured([rows, other])
    # margins: 1, 0, -1.5, -1; with the other seed 4, 4, 4.5, 2
    torch.testing.assert_close(measured.correct, torch.tensor([1.0, 0.75, 0.5, 0.5]).double())
    assert measured.margins[0].tolist() == [1.0, 0.0, -1.5, -1.0]
    found = report.summary(measured)
    assert found["accuracy"][0] == pytest.approx(0.6875)
    assert [seed[0] for seed in found["by_seed"]] == [0.375, 1.0]
    assert report.rules(measured)["longer"][0] == pytest.approx((0 + 0.5 + 1 + 1) / 4)
    assert report.rules(measured)["start's log-probs"][0] == 1.0


def save_chat_model(load, shared_dir, folder):
    """Save a tiny model with a tokenizer that has a chat template."""
    model = load("throughput_models").make_model("tiny", 0, dtype=torch.float32, attention="eager")
    model.save_pretrained(folder)
    tokenizer = load("throughput_data").make_tokenizer("tiny", shared_dir)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}"
    tokenizer.save_pretrained(folder)


def _fake_pairs(folder, runs, rows):
    for run in runs:
        file = folder / "runs" / run.name / "evaluation" / "pairs.jsonl"
        file.parent.mkdir(parents=True)
        shift = len(run.name)
        lines = [
            {"row": row, "chosen_logps": -50.0 + (row + shift) % 3, "rejected_logps": -49.0}
            | {"ref_chosen_logps": -50.0, "ref_rejected_logps": -50.0}
            | {"chosen_tokens": 5 + row % 4, "rejected_tokens": 6}
            for row in rows
        ]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_everything_is_asked_for_and_written(load, tmp_path, shared_dir, monkeypatch):
    pytest.importorskip("peft")
    script = load("hh_smollm2")
    save_chat_model(load, shared_dir, tmp_path / "model")

    def planned(model, rows, folder, **asked):
        """Have the real comparison check what is asked, and invent what it would find."""
        found = compare(model, rows, folder, **asked, dry_run=True, print_table=False)
        trained = [replace(run, state="done") for run in found.runs if run.method != "start"]
        _fake_pairs(folder, trained, range(len(asked["eval_dataset"])))
        return replace(found, runs=tuple(trained))

    monkeypatch.setattr(script, "compare", planned)
    arguments = ["--allow-dirty", "--folder", str(tmp_path / "work"), "--results"]
    arguments += [str(tmp_path / "hh"), "--model", str(tmp_path / "model")]
    arguments += ["--sizes", "80", "40", "16", "2"]
    monkeypatch.setattr(sys, "argv", ["hh_smollm2.py", *arguments])
    script.main()
    found = json.loads((tmp_path / "hh.json").read_text())
    assert {run[0] for run in found["runs"]} == {"half 0", "half 1"}
    assert len(found["runs"]) == 4 + 4
    assert found["held_out"]["full"]["accuracy"][3] == 80
    assert len(found["held_out"]["LoRA"]["by_seed"]) == 2
    assert "full minus LoRA" in (tmp_path / "hh.md").read_text()
    assert (tmp_path / "hh.png").stat().st_size > 1000
