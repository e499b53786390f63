"""Options of the commands that score data: which rows, which model, which reference."""

from dataclasses import dataclass, field

import pytest

from prefopt.cli import UserError
from prefopt.cli.scoring import data_name, make_parser, read, read_rows
from tests.cli.conftest import write_rows

PAIR = {"prompt": "a", "chosen": " b", "rejected": " c"}


@dataclass
class Own:
    """Options of a command."""

    output_dir: str | None = field(default=None, metadata={"help": "Where."})


def asked(*argv: object):
    return read(make_parser("eval", "What it does.", Own), [str(word) for word in argv])


def test_options_come_from_the_file_and_the_command_line(tmp_path, model_folder, data_files):
    file = tmp_path / "eval.yaml"
    file.write_text(
        f"model: {model_folder}\ndataset: {data_files['paired']}\nsplit: train[:5]\n"
        "loss_type: simpo\nloss_kwargs: {gamma: 0.2}\nuse_cpu: true\noutput_dir: here\n"
        "ref_model: x\n"
    )
    found = asked("--config", file, "--ref_model", "none", "--max_length", "none")
    assert (found.model, found.ref_model, found.own.output_dir) == (str(model_folder), None, "here")
    assert found.has_loss
    assert found.config.objective.terms[0].hyperparameters["gamma"] == 0.2
    assert found.config.max_length is None
    assert len(read_rows(found.data, found.config)) == 5
    assert not asked("--model", "m", "--dataset", "d", "--ref_model", "r").has_loss


def test_a_reference_is_known_named_or_asked_for(tmp_path, model_folder):
    data = ("--dataset", "d")
    with pytest.raises(UserError, match=r"--ref_model is missing: .* does not say what"):
        asked("--model", model_folder, *data)
    with pytest.raises(UserError, match="--ref_model is missing"):
        asked("--model", model_folder, *data, "--loss_type", "ipo")
    assert asked("--model", model_folder, *data, "--loss_type", "simpo").ref_model is None
    (tmp_path / "prefopt_reference.json").write_text('{"loaded_from": {"name_or_path": "start"}}')
    assert asked("--model", tmp_path, *data).ref_model == "start"
    assert asked("--model", tmp_path, *data, "--ref_model", "other").ref_model == "other"
    assert asked("--model", tmp_path, *data, "--ref_model", "None").ref_model is None


def test_the_held_out_rows_are_those_of_training(tmp_path, data_files, model_folder):
    from prefopt.cli.rows import DataArguments, load_splits

    options = ("--model", model_folder, "--dataset", data_files["paired"], "--ref_model", "none")
    found = asked(*options, "--eval_fraction", "0.25", "--seed", "3")
    ours = read_rows(found.data, found.config)
    given = DataArguments(dataset_name=str(data_files["paired"]), eval_fraction=0.25)
    theirs = load_splits(given, found.config)[1]
    assert ours.to_list() == theirs.to_list()
    assert len(ours) == 6
    assert len(read_rows(asked(*options).data, found.config)) == 24


def test_of_several_splits_test_is_read_and_no_other_in_silence(tmp_path, model_folder):
    for split in ("train", "test"):
        write_rows(tmp_path / f"{split}.jsonl", [PAIR | {"prompt": split}] * 2)
    found = asked("--model", model_folder, "--ref_model", "r", "--dataset", tmp_path)
    assert set(read_rows(found.data, found.config)["prompt"]) == {"test"}
    found = asked(
        "--model", model_folder, "--ref_model", "r", "--dataset", tmp_path, "--split", "train"
    )
    assert set(read_rows(found.data, found.config)["prompt"]) == {"train"}
    (tmp_path / "test.jsonl").rename(tmp_path / "validation.jsonl")
    found = asked("--model", model_folder, "--ref_model", "r", "--dataset", tmp_path)
    with pytest.raises(UserError, match="name one with --split, of train, validation"):
        read_rows(found.data, found.config)


def test_several_datasets_keep_their_names(data_files, model_folder):
    files = [data_files["paired"], data_files["ranked"]]
    found = asked("--model", model_folder, "--ref_model", "r", "--datasets", *files)
    rows = read_rows(found.data, found.config)
    assert [part.name for part in rows] == [str(file) for file in files]
    assert data_name(found.data) == "held-out"
    assert (
        data_name(asked("--model", "m", "--ref_model", "r", "--dataset", "d.jsonl").data)
        == "d.jsonl"
    )


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--dataset", "d"], "--model is missing"),
        (["--model", "m"], "--dataset is missing"),
        (["--model", "m", "--dataset", "d", "--learning_rate", "1"], "unknown option"),
        (["--model", "m", "--dataset", "d", "--dataset_streaming"], "known as a whole"),
        (["--model", "m", "--dataset", "d", "--loss_type", "dop"], "dop"),
        (["--model", "m", "--dataset", "d", "--beta", "2", "--loss_type", "orpo"], "lambda_"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_loaded(argv, said):
    with pytest.raises(UserError, match=said):
        asked(*argv)


def test_one_process_only(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="without a launcher"):
        asked("--model", "m", "--dataset", "d")


def test_a_quantised_model_is_asked_for_as_in_training(model_folder):
    found = asked(
        "--model",
        model_folder,
        "--ref_model",
        "r",
        "--dataset",
        "d",
        "--load_in_4bit",
        "--dtype",
        "bfloat16",
    )
    assert found.config.model_init_kwargs["quantization_config"].load_in_4bit
    assert found.config.model_init_kwargs["dtype"] == "bfloat16"
