"""``prefopt compare``: its options, and a matrix of the real commands."""

import json
import os
import signal
import sys
import threading
import time

import pytest
import yaml

from prefopt.cli import compare as command
from prefopt.cli.errors import UserError
from prefopt.compare import tasks
from tests.compare.conftest import PROGRAM

NEEDED = ("--model", "M", "--dataset", "D", "--output_dir", "OUT")


def read(*argv):
    return command.read([str(word) for word in argv])


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Let the runs be done by a program that trains nothing."""
    monkeypatch.setattr(tasks, "PYTHON", (sys.executable, str(PROGRAM)))
    monkeypatch.setenv("STAND_IN_CALLS", str(tmp_path / "calls.txt"))


def test_own_options_are_apart_from_those_of_training_and_of_measuring():
    own, options = read(
        *(*NEEDED, "--losses", "dpo, kto", "--betas", "0.1,0.3", "--seeds", "5,7", "--dry-run"),
        *("--learning_rate", "1e-5", "--use_peft", "--loss_kwargs", '{"a": 1}', "--jobs", "2"),
        *("--reward", "file.py:reward", "--temperatures", "0", "0.7", "--submitit", '{"a": 2}'),
    )
    assert (own.losses, own.betas, own.seeds, own.jobs) == ("dpo, kto", [0.1, 0.3], [5, 7], 2)
    assert (own.output_dir, own.dry_run, own.submitit) == ("OUT", True, {"a": 2})
    assert own.evaluation == {"reward": "file.py:reward", "temperatures": [0.0, 0.7]}
    assert options == {
        "model_name_or_path": "M",
        "dataset_name": "D",
        "learning_rate": 1e-5,
        "use_peft": True,
        "loss_kwargs": {"a": 1},
    }


def test_a_file_holds_any_of_them_and_the_command_line_goes_before_it(tmp_path):
    path = tmp_path / "compare.yaml"
    path.write_text(
        "model: m\ndataset: d\noutput_dir: o\nlosses: [dpo, ipo]\nbetas: [0.1, 0.2]\nseeds: 2\n"
        "methods:\n- loss_type: slic\n  learning_rate: 1e-6\nmax_steps: 5\nmax_prompts: 3\n"
        "evaluation:\n  judge: function:a.py:better\nheld_out: 200\n"
    )
    own, options = read("--config", path, "--seeds", "4", "--max_steps", "6")
    assert (own.losses, own.betas, own.seeds, own.held_out) == ("dpo,ipo", [0.1, 0.2], [4], 200)
    assert own.methods == [{"loss_type": "slic", "learning_rate": "1e-6"}]
    assert own.evaluation == {"judge": "function:a.py:better", "max_prompts": 3}
    assert options == {"model_name_or_path": "m", "dataset_name": "d", "max_steps": 6}


def test_measuring_has_the_options_of_eval_and_no_others(tmp_path):
    own, _ = read(*NEEDED, "--losses", "dpo", "--max_new_tokens", "7", "--temperatures", "0", "1")
    assert own.evaluation == {"max_new_tokens": 7, "temperatures": [0.0, 1.0]}
    path = tmp_path / "compare.yaml"
    path.write_text("evaluation:\n  temperature: 1\n")
    with pytest.raises(UserError, match="unknown option of prefopt eval 'temperature'; did you"):
        read(*NEEDED, "--losses", "dpo", "--config", path)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (NEEDED[2:], "--model is missing"),
        ((*NEEDED[:2], *NEEDED[4:]), "--dataset is missing"),
        (NEEDED[:4], "--output_dir is missing"),
        (NEEDED, "--losses is missing"),
        ((*NEEDED, "--losses", "dpo", "--learning_rat", "1"), "unknown option '--learning_rat'"),
        ((*NEEDED, "--losses", "dpo", "--betas", "a"), "invalid _numbers value: 'a'"),
        ((*NEEDED, "--losses", "dpo", "--learning_rate", "x"), "invalid float value: 'x'"),
        ((*NEEDED, "--losses", "dpo", "--search_trials", "-1"), "search_trials must be"),
    ],
)
def test_a_mistake_is_a_user_error(argv, message):
    with pytest.raises(UserError, match=message):
        read(*argv)


def test_a_matrix_is_run_and_a_failure_is_the_exit_code(
    prefopt, stand_in, model_folder, data_files, tmp_path, monkeypatch
):
    words = (
        *("compare", "--model", model_folder, "--dataset", data_files["paired"], "--seeds", "1"),
        *("--losses", "dpo, ipo", "--output_dir", tmp_path / "out", "--max_steps", "2"),
    )
    monkeypatch.setenv("STAND_IN_FAILS", "ipo-0")
    result = prefopt(*words)
    assert result.code == 1, result.err
    assert "ipo-0" in result.out
    assert "this one fails" in result.out
    monkeypatch.delenv("STAND_IN_FAILS")
    again = prefopt(*words)
    assert again.code == 0, again.err
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["command"].startswith("prefopt compare --model")
    assert [run["state"] for run in found["runs"]] == ["done"] * 3


def test_ctrl_c_says_how_to_go_on(
    prefopt, stand_in, model_folder, data_files, tmp_path, monkeypatch
):
    monkeypatch.setenv("STAND_IN_STEP_S", "5")

    def send_when_running():
        while not list(tmp_path.glob("out/runs/dpo-0-*/log.txt")):
            time.sleep(0.05)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=send_when_running).start()
    result = prefopt(
        *("compare", "--model", model_folder, "--dataset", data_files["paired"], "--seeds", "1"),
        *("--losses", "dpo", "--output_dir", tmp_path / "out", "--max_steps", "2"),
    )
    assert result.code == 130
    assert "The same command goes on:\n  prefopt compare --model" in result.err


def test_several_datasets_are_one_with_rows_as_often_as_they_weigh(
    prefopt, data_files, model_folder, tmp_path
):
    path = str(data_files["paired"])
    config = tmp_path / "compare.yaml"
    config.write_text(
        yaml.safe_dump({"datasets": [path, {"path": path, "weight": 2}], "max_steps": 3})
    )
    result = prefopt(
        *("compare", "--config", config, "--model", model_folder, "--losses", "dpo", "--dry-run"),
        *("--output_dir", tmp_path / "out", "--validation", "0"),
    )
    assert result.code == 0, result.err
    sizes = yaml.safe_load((tmp_path / "out" / "comparison.yaml").read_text())["data"]["rows"]
    assert sizes["train"] + sizes["held_out"] == 24 * 3
