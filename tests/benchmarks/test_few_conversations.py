"""Few conversations: what is asked for, as far as planned, and what is written."""

import json
import sys
from dataclasses import replace

import pytest

from prefopt.compare import Curve, MethodResult, Sample, compare
from prefopt.evaluation import Estimate
from tests.benchmarks.test_hh_smollm2 import save_chat_model

CURVES = {
    "rewards/accuracies": ((1, 2, 3, 4), (0.5, 0.6, 1.0, 1.0)),
    "eval_rewards/accuracies": ((2, 4), (0.5, 0.625)),
    "eval_loss": ((2, 4), (0.75, 0.9)),
    "eval_margins": ((2, 4), (1.0, 2.0)),
}


def test_everything_is_asked_for_and_written(load, tmp_path, shared_dir, monkeypatch):
    pytest.importorskip("peft")
    script = load("few_conversations")
    save_chat_model(load, shared_dir, tmp_path / "model")
    given = {}

    def planned(model, rows, folder, **asked):
        """Have the real comparison check what is asked, and invent what it would find."""
        given.update(asked, rows=rows)
        found = compare(model, rows, folder, **asked, dry_run=True, print_table=False)
        curves = [
            Curve(method, 0, metric, *its)
            for method in ("full", "LoRA")
            for metric, its in CURVES.items()
        ]
        accuracy = {"accuracy": Estimate(0.6, 0.5, 0.7, 8)}
        methods = tuple(MethodResult(name, "dpo", metrics=accuracy) for name in ("full", "LoRA"))
        samples = [Sample("Why?", who, says) for who, says in (("start", "So."), ("LoRA", "See."))]
        samples += [Sample(f"And {number}?", "start", "So.") for number in range(5)]
        return replace(found, curves=tuple(curves), methods=methods, samples=tuple(samples))

    monkeypatch.setattr(script, "compare", planned)
    arguments = ["--allow-dirty", "--folder", str(tmp_path / "work"), "--results"]
    arguments += [str(tmp_path / "few"), "--model", str(tmp_path / "model")]
    arguments += ["--sizes", "16", "2", "8", "3", "40"]
    monkeypatch.setattr(sys, "argv", ["few_conversations.py", *arguments])
    script.main()
    assert len(given["rows"]) == 16 + 8
    assert given["validation"] == 8 / 24
    assert len(given["eval_dataset"]) == 8
    questions = [row["prompt"][0]["content"] for row in given["rows"]]
    assert not set(questions) & {row["prompt"][0]["content"] for row in given["eval_dataset"]}
    assert [method["num_train_epochs"] for method in given["methods"]] == [2, 2]
    found = json.loads((tmp_path / "few.json").read_text())
    assert found["answers"]["Why?"] == {"start": "So.", "LoRA": "See."}
    assert len(found["answers"]) == 3
    assert {metric for _, metric, *_ in found["curves"]} == set(CURVES) - {"eval_margins"}
    text = (tmp_path / "few.md").read_text()
    assert "16 conversations of Anthropic HH helpful for 2 epochs" in text
    assert "**LoRA**: See." in text
    assert "| full | 50.0, 62.5 | 0.750, 0.900 |" in text
    assert "| LoRA | 60.0 [50.0, 70.0] |  |  |" in text
    assert (tmp_path / "few.png").stat().st_size > 1000
