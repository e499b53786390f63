"""``prefopt eval``: files, table, errors."""

import json

import pytest

from prefopt.cli import eval as command
from prefopt.evaluation import Estimate
from prefopt.evaluation.policy import PolicyEvaluation


@pytest.fixture
def reward_file(tmp_path):
    path = tmp_path / "rewards_of_the_tests.py"
    path.write_text(
        "def short(prompts, completions):\n"
        "    return [-len(text) for text in completions]\n\n"
        "def wrong(prompts, completions):\n    return [1.0]\n"
    )
    return path


def test_a_trained_adapter_is_evaluated_against_its_start(
    prefopt, model_folder, data_files, reward_file, tmp_path
):
    trained, out = tmp_path / "trained", tmp_path / "out"
    common = (
        "--dataset",
        data_files["paired"],
        "--eval_rows",
        12,
        "--use_cpu",
        "--disable_tqdm",
        "true",
    )
    loss = ("--loss_type", "dpo", "--beta", 0.2)
    result = prefopt(
        *("train", "--model", model_folder, "--output_dir", trained, *common, *loss),
        *("--use_peft", "--max_steps", 2, "--learning_rate", 0.01, "--report_to", "none"),
    )
    assert result.code == 0, result.err
    result = prefopt(
        *("eval", "--model", trained, "--output_dir", out, *common, *loss),
        *("--reward", f"{reward_file}:short", "--temperatures", 0, 1, "--max_prompts", 3),
        *("--max_new_tokens", 4),
    )
    assert result.code == 0, result.err
    record = json.loads((out / "evaluation.json").read_text())
    theirs = json.loads((trained / "eval_results.json").read_text())
    metrics = {name: value[0] for name, value in record["metrics"].items()}
    # Both count alike, but for ties, which there are none of.
    assert metrics["accuracy"] == pytest.approx(theirs["eval_rewards/accuracies"])
    assert 0.2 * metrics["margin"] == pytest.approx(theirs["eval_rewards/margins"], abs=1e-4)
    assert record["reference"] == str(model_folder)
    assert record["dataset"] == str(data_files["paired"])
    assert metrics["kl"] > 0
    assert metrics["reward"] <= 0
    assert len((out / "samples.jsonl").read_text().splitlines()) == 3 + 6
    assert [(one["against"], one["temperature"]) for one in record["win_rates"]] == [
        ("chosen", 0.0),
        ("start", 0.0),
        ("chosen", 1.0),
        ("start", 1.0),
    ]
    assert "wins over start t=1" in result.out
    lines = [line.split() for line in result.out.splitlines() if line.strip()]
    (cells,) = [line for line in lines if line[0] == "accuracy"]
    baselines = [record["data_baselines"][name][0] for name in ("longer", "shorter", "start")]
    assert [float(cell) for cell in cells[5:]] == pytest.approx(baselines, abs=5e-4)


def test_the_options_may_come_from_a_file(prefopt, model_folder, data_files, tmp_path):
    file = tmp_path / "eval.yaml"
    file.write_text(
        f"model: {model_folder}\nref_model: {model_folder}\ndataset: {data_files['ranked']}\n"
        f"output_dir: {tmp_path / 'out'}\nmax_prompts: 0\nuse_cpu: true\ndisable_tqdm: true\n"
        "temperatures: [0, 1]\n"
    )
    result = prefopt("eval", "--config", file)
    assert result.code == 0, result.err
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert record["settings"]["temperatures"] == [0.0, 1.0]
    assert record["metrics"]["accuracy"][0] == 0.5  # against itself every pair is a tie
    assert "Note: margin_length_correlation: all values of a side are equal" in result.out


def test_beside_every_accuracy_stand_the_baselines(monkeypatch, capsys):
    def share(value: float) -> Estimate:
        return Estimate(value, value - 0.1, value + 0.1, 1234)

    names = ("accuracy", "log_ratio_accuracy", "balanced_accuracy", "kl")
    evaluation = PolicyEvaluation(
        model="m",
        reference="r",
        dataset="d",
        settings={},
        versions={},
        metrics={name: share(0.6) for name in names},
        data_baselines={"longer": share(0.71), "shorter": share(0.29), "start": share(0.52)},
        notes=("a note",),
    )
    command.print_evaluation(evaluation)
    out = capsys.readouterr().out
    rows = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    for name in ("accuracy", "log_ratio_accuracy"):
        assert all(number in rows[name] for number in ("0.600", "0.710", "0.290", "0.520", "1,234"))
    assert rows["balanced_accuracy"].count("0.500") == 3  # the low end, and the rules by length
    assert "0.710" not in rows["kl"]
    assert "Note: a note" in out
    assert all(len(row.rstrip()) <= 80 for name, row in rows.items() if name in names)
    numbers = {3.14159: "3.142", 31.4159: "31.42", 314.159: "314.2", 31415.9: "31,416"}
    assert [command._number(number) for number in numbers] == list(numbers.values())
    assert command._number(-0.5) == "-0.500"


def test_a_wrong_reward_and_a_missing_folder_are_one_message(
    prefopt, model_folder, data_files, reward_file, tmp_path
):
    options = (
        "--model",
        model_folder,
        "--ref_model",
        model_folder,
        "--use_cpu",
        "--disable_tqdm",
        "true",
    )
    data = ("--dataset", data_files["paired"])
    result = prefopt("eval", *options, *data)
    assert result.code == 2
    assert "--output_dir is missing" in result.err
    wrong = ("--reward", f"{reward_file}:wrong", "--max_prompts", 2, "--max_new_tokens", 2)
    result = prefopt("eval", *options, *data, *wrong, "--output_dir", tmp_path / "out")
    assert result.code == 2
    assert "returned 1 scores for 2 completions" in result.err
    assert not (tmp_path / "out").exists()
    unused = ("--judge", f"function:{reward_file}:short", "--max_prompts", 0)
    result = prefopt("eval", *options, *data, *unused, "--output_dir", tmp_path / "out")
    assert result.code == 2
    assert "no prompt is answered: max_prompts is 0" in result.err
    nowhere = ("--reward", f"{reward_file}:shrot", "--output_dir", tmp_path / "out")
    result = prefopt("eval", *options, *data, *nowhere)
    assert result.code == 2
    assert "has no function 'shrot'" in result.err


def test_a_judge_is_asked_at_the_usual_temperatures(
    prefopt, model_folder, data_files, reward_file, tmp_path
):
    result = prefopt(
        *("eval", "--model", model_folder, "--ref_model", model_folder, "--use_cpu"),
        *("--dataset", data_files["paired"], "--output_dir", tmp_path / "out"),
        *("--max_prompts", 2, "--max_new_tokens", 3, "--disable_tqdm", "true"),
        *("--judge", f"function:{reward_file}:short"),
    )
    assert result.code == 0, result.err
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert record["settings"]["temperatures"] == [0.0, 0.25, 0.7, 1.0]
    rates = {(it["against"], it["temperature"]): it["rate"][0] for it in record["win_rates"]}
    assert len(rates) == 8
    # The start is the model itself, and draws the same random numbers.
    assert all(rate == 0.5 for (against, _), rate in rates.items() if against == "start")
    assert "reward" in record["metrics"]
    assert "wins over start t=0.25" in result.out


def test_a_reward_may_be_a_judge_of_single_answers(reward_file, tmp_path):
    assert command.reward_of(f"{reward_file}:short", 8).scores(["a"], ["bb"]) == [-2.0]
    assert command.reward_of(f"function:{reward_file}:short", 8).scores(["a"], ["bb"]) == [-2.0]
    (tmp_path / "pairs_of_the_tests.py").write_text("def prefer(prompts, first, second): ...")
    with pytest.raises(ValueError, match="compares two answers: give it as --judge"):
        command.reward_of(f"{tmp_path}/pairs_of_the_tests.py:prefer", 8)
