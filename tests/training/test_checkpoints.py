"""Checkpoints that are broken: recognised, told, passed over. A table of files and faults."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from peft import LoraConfig
from transformers import TrainerCallback

from prefopt.reference.processes import Processes
from prefopt.training.checkpoints import (
    CheckpointError,
    CheckpointWriter,
    agreed_folder,
    checkpoint_folder,
    delete_older,
    is_checkpoint,
    problem_of,
    write_manifest,
)
from prefopt.training.throughput import is_of_machine
from tests.models import tiny_rows
from tests.runs import config, trainer

OPTIONS = {
    "loss_type": "bco_pair",
    "max_steps": 4,
    "save_strategy": "steps",
    "save_steps": 2,
    "logging_steps": 3,
}
LORA = LoraConfig(task_type="CAUSAL_LM", r=4, init_lora_weights=True)


def flat(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def make(folder, policy, **options):
    options = OPTIONS | options
    return trainer(folder, tiny_rows(16), peft_config=LORA if policy == "lora" else None, **options)


class Saved(NamedTuple):
    folder: Path
    trained: object


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Two checkpoints of a full policy, of an adapter, and of a full policy in several files."""
    runs = {}
    for policy in ("full", "lora"):
        folder = tmp_path_factory.mktemp(policy)
        trained = make(folder, policy)
        trained.train()
        runs[policy] = Saved(folder, trained)
    shards = tmp_path_factory.mktemp("shards")
    shutil.copytree(runs["full"].folder, shards, dirs_exist_ok=True)
    for folder in shards.glob("checkpoint-*"):
        (folder / "model.safetensors").unlink()
        runs["full"].trained.model.save_pretrained(folder, max_shard_size="20KB")
        write_manifest(folder)
    runs["shards"] = Saved(shards, runs["full"].trained)
    return runs


# The faults ---------------------------------------------------------------------------------------


def missing(file):
    file.unlink()


def put(file, content):
    file.unlink()  # it may be a link to the file of another test
    file.write_bytes(content)


def empty(file):
    put(file, b"")


def cut(file):
    content = file.read_bytes()
    put(file, content[: len(content) // 2])


def overwritten(file):
    """As long as it was, but other bytes: what a disk may keep of a file after a power cut."""
    put(file, bytes(len(file.read_bytes())))


def one_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    put(file, bytes(content))


def other_json(file):
    put(file, b'{"a": 1}')


FAULTS: tuple[Callable[[Path], None], ...] = (missing, empty, cut, overwritten, one_bit)
COMMON = (
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
    "prefopt_reference.json",
    "prefopt_running.json",
    "prefopt_progress.json",
)
FILES = {
    "full": ("model.safetensors", "config.json", *COMMON),
    "lora": ("adapter_model.safetensors", "adapter_config.json", *COMMON),
    "shards": ("model.safetensors.index.json", "model-00001-of-*.safetensors"),
}
# Every file that training goes on from, and every fault.
TABLE = [
    (policy, name, fault) for policy, names in FILES.items() for name in names for fault in FAULTS
]
# The list of files: without it a checkpoint is one of an earlier version.
TABLE += [
    (policy, "prefopt_checkpoint.json", fault)
    for policy in FILES
    for fault in (empty, cut, overwritten, other_json)
]
# Without that list, what each file shows by itself: of TRL's checkpoints and of earlier versions.
NO_LIST = [
    (policy, name, fault)
    for policy, names in FILES.items()
    for name in names
    for fault in (missing, empty, cut, overwritten)
    if not ((fault is missing and name.startswith("prefopt_")) or name == "config.json")
]
NO_LIST += [("full", name, other_json) for name in ("trainer_state.json", "prefopt_reference.json")]
# What training does not go on from may be damaged, or edited.
UNREAD = ("README.md", "tokenizer.json", "tokenizer_config.json", "training_args.bin")


def copy_of(saved, policy, folder, copy=os.link):
    """Copy the checkpoints of a run; links will do where nothing is written into them."""
    shutil.copytree(saved[policy].folder, folder, dirs_exist_ok=True, copy_function=copy)
    return folder / "checkpoint-4"


def break_file(checkpoint, name, fault):
    (file,) = checkpoint.glob(name)
    fault(file)
    return file.name


def check_passed_over(folder, file):
    """The newest is passed over, with the file named; named itself, it is an error."""
    told = []
    assert checkpoint_folder(True, str(folder), told.append) == folder / "checkpoint-2"
    (line,) = told
    assert "checkpoint-4 is passed over: " in line
    assert file in line
    with pytest.raises(ValueError, match="is broken: ") as error:
        checkpoint_folder(str(folder / "checkpoint-4"), str(folder))
    assert file in str(error.value)
    assert f"resume from {folder / 'checkpoint-2'} instead" in str(error.value)


@pytest.mark.parametrize(("policy", "name", "fault"), TABLE)
def test_a_checkpoint_with_a_broken_file_is_passed_over(tmp_path, saved, policy, name, fault):
    checkpoint = copy_of(saved, policy, tmp_path)
    check_passed_over(tmp_path, break_file(checkpoint, name, fault))


@pytest.mark.parametrize(("policy", "name", "fault"), NO_LIST)
def test_so_is_one_that_has_no_list_of_its_files(tmp_path, saved, policy, name, fault):
    checkpoint = copy_of(saved, policy, tmp_path)
    for folder in tmp_path.glob("checkpoint-*"):
        (folder / "prefopt_checkpoint.json").unlink()
    file = break_file(checkpoint, name, fault)
    if name in ("optimizer.pt", "scheduler.pt", "rng_state.pth") and fault is missing:
        # It can go on from there, if not as it was: so an earlier one is better.
        told = []
        assert checkpoint_folder(True, str(tmp_path), told.append) == tmp_path / "checkpoint-2"
        assert f"it has no {name}" in told[0]
        assert checkpoint_folder(str(checkpoint), str(tmp_path), told.append) == checkpoint
        assert f"has no {name}: " in told[-1]
        assert "anew, so the run ends elsewhere" in told[-1]
    else:
        weights = fault is missing and ("safetensors" in name) and "0000" not in name
        check_passed_over(tmp_path, "the weights are missing" if weights else file)


@pytest.mark.parametrize("fault", [missing, empty, cut])
@pytest.mark.parametrize("name", UNREAD)
def test_files_that_are_not_read_do_not_matter(tmp_path, saved, name, fault):
    checkpoint = copy_of(saved, "full", tmp_path)
    fault(checkpoint / name)
    told = []
    assert checkpoint_folder(True, str(tmp_path), told.append) == checkpoint
    assert told == []


def unfinished(folder):
    (folder / "_prefopt_unfinished").touch()


def unfinished_by_transformers(folder):
    (folder / "checkpoint-is-incomplete.txt").touch()


def emptied(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def begun(folder):
    """Killed behind the first file, with the list of files of an earlier run gone."""
    emptied(folder)
    (folder / "_prefopt_unfinished").touch()
    (folder / "model.safetensors").touch()


def a_file(folder):
    shutil.rmtree(folder)
    folder.touch()


FOLDERS = (
    (unfinished, "not written to its end"),
    (unfinished_by_transformers, "not written to its end"),
    (begun, "not written to its end"),
    (emptied, "it is empty"),
)


@pytest.mark.parametrize(("fault", "message"), FOLDERS)
def test_a_folder_that_is_no_whole_checkpoint_is_passed_over(tmp_path, saved, fault, message):
    fault(copy_of(saved, "full", tmp_path))
    told = []
    assert checkpoint_folder(True, str(tmp_path), told.append) == tmp_path / "checkpoint-2"
    assert message in told[0]


def test_the_table_of_broken_checkpoints_has_this_many_rows():
    assert (len(TABLE), len(NO_LIST), len(UNREAD) * 3, len(FOLDERS)) == (112, 72, 12, 4)


@pytest.mark.parametrize("policy", ["full", "lora"])
@pytest.mark.parametrize("name", ["optimizer.pt", "*model.safetensors", "trainer_state.json"])
def test_a_run_resumed_past_a_broken_checkpoint_ends_as_an_undisturbed_one(
    tmp_path, saved, policy, name, capfd
):
    break_file(copy_of(saved, policy, tmp_path, shutil.copy2), name, cut)
    resumed = make(tmp_path, policy)
    resumed.train(resume_from_checkpoint=True)
    assert "checkpoint-4 is passed over" in capfd.readouterr().err
    whole = saved[policy].trained
    assert torch.equal(flat(resumed.model), flat(whole.model))
    assert log_of(resumed) == log_of(whole)
    assert problem_of(tmp_path / "checkpoint-4") is None  # written again


def log_of(trained):
    """Return what was logged, but for times."""
    return [
        {name: value for name, value in entry.items() if not is_of_machine(name)}
        for entry in trained.state.log_history
    ]


def test_where_no_checkpoint_is_whole_each_is_named(tmp_path, saved):
    break_file(copy_of(saved, "full", tmp_path), "optimizer.pt", cut)
    break_file(tmp_path / "checkpoint-2", "scheduler.pt", missing)
    with pytest.raises(ValueError, match="there is no whole checkpoint in") as error:
        checkpoint_folder(True, str(tmp_path))
    assert "checkpoint-4: optimizer.pt has" in str(error.value)
    assert "checkpoint-2: scheduler.pt is missing" in str(error.value)
    with pytest.raises(ValueError, match=r"optimizer.pt has .*; there is no whole one beside it"):
        checkpoint_folder(str(tmp_path / "checkpoint-4"), str(tmp_path))


def test_a_checkpoint_without_its_optimiser_is_said_where_there_is_no_other(tmp_path, capfd):
    first = make(tmp_path, "full", save_only_model=True, max_steps=2)
    first.train()
    resumed = make(tmp_path, "full", save_only_model=True)
    resumed.train(resume_from_checkpoint=True)
    said = capfd.readouterr().err
    assert "checkpoint-2 has no optimizer.pt and no scheduler.pt and no rng_state.pth: " in said
    assert resumed.state.global_step == 4


# Writing ------------------------------------------------------------------------------------------


def test_older_checkpoints_are_deleted_when_the_newer_one_is_whole(tmp_path):
    """Transformers deletes before it knows whether the new one could be written."""
    seen = []

    class Look(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            seen.append(sorted(path.name for path in tmp_path.glob("checkpoint-*")))

    run = make(tmp_path, "full", save_steps=1, save_total_limit=2)
    run.add_callback(Look)
    run.train()
    assert seen[-1] == ["checkpoint-3", "checkpoint-4"]
    assert run.args.save_total_limit == 2
    args = torch.load(tmp_path / "checkpoint-4" / "training_args.bin", weights_only=False)
    assert args.save_total_limit == 2


def test_the_newest_and_the_best_are_kept(tmp_path):
    for step in range(1, 7):
        (tmp_path / f"checkpoint-{step}").mkdir()
    newest, best = tmp_path / "checkpoint-6", tmp_path / "checkpoint-2"
    delete_older(tmp_path, None, newest, None)
    delete_older(tmp_path, 0, newest, None)
    assert len(list(tmp_path.iterdir())) == 6
    delete_older(tmp_path, 3, newest, str(best))
    assert {path.name[-1] for path in tmp_path.iterdir()} == {"2", "5", "6"}
    delete_older(tmp_path, 1, newest, str(best))
    assert {path.name[-1] for path in tmp_path.iterdir()} == {"2", "6"}


def full_disk(*args, **kwargs):
    raise OSError(28, "No space left on device")


def full_disk_of_torch(*args, **kwargs):
    raise RuntimeError("[enforce fail at inline_container.cc:603] . unexpected pos 64 vs 0")


@pytest.mark.parametrize(
    ("where", "how"),
    [
        ("torch.save", full_disk),
        ("torch.save", full_disk_of_torch),
        ("prefopt.training.progress.Progress.save", full_disk),
        ("prefopt.training.trainer.write_model_card", full_disk),
        ("transformers.PreTrainedModel.save_pretrained", full_disk),
        ("transformers.trainer_callback.TrainerState.save_to_json", full_disk),
        ("prefopt.training.checkpoints.write_manifest", full_disk),
    ],
)
def test_a_full_disk_is_one_message_and_earlier_checkpoints_stay(
    tmp_path, saved, monkeypatch, where, how
):
    shutil.copytree(saved["full"].folder / "checkpoint-2", tmp_path / "checkpoint-2")
    run = make(tmp_path, "full", save_total_limit=1)
    with monkeypatch.context() as patched:
        patched.setattr(where, how)
        with pytest.raises(CheckpointError, match=r"cannot write .*checkpoint-4") as error:
            run.train(resume_from_checkpoint=True)
    assert f"resume from {tmp_path / 'checkpoint-2'}, which is whole" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]
    resumed = make(tmp_path, "full", save_total_limit=1)
    resumed.train(resume_from_checkpoint=True)
    assert torch.equal(flat(resumed.model), flat(saved["full"].trained.model))


def test_a_final_model_that_cannot_be_written_says_which_checkpoint_is_whole(
    tmp_path, saved, monkeypatch
):
    copy_of(saved, "full", tmp_path, shutil.copy2)
    run = make(tmp_path, "full")
    monkeypatch.setattr("torch.save", full_disk)
    with pytest.raises(CheckpointError, match=r"No space left on device.*checkpoint-4, which is"):
        run.save_model(str(tmp_path))


def test_what_has_nothing_to_do_with_writing_stays_what_it_is(tmp_path):
    writer = CheckpointWriter(Processes(), should_save=True)
    args = config(tmp_path)
    with (
        pytest.raises(RuntimeError, match="CUDA out of memory"),
        writer.writing(tmp_path / "checkpoint-1", args, None),
    ):
        raise RuntimeError("CUDA out of memory")
    assert not writer.at_work
    # It is left there, for it can be told that it is not whole.
    assert problem_of(tmp_path / "checkpoint-1") == "it was not written to its end"


def test_a_large_file_is_digested_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("prefopt.training.checkpoints._WHOLE", 1000)
    monkeypatch.setattr("prefopt.training.checkpoints._PIECE", 100)
    (tmp_path / "trainer_state.json").write_text(json.dumps({"global_step": 1, "log_history": []}))
    weights = tmp_path / "pytorch_model.bin"
    weights.write_bytes(b"\x80" + bytes(range(256)) * 40)
    write_manifest(tmp_path)
    assert problem_of(tmp_path) is None
    content = weights.read_bytes()
    for damaged in (b"\x80" + bytes(len(content) - 1), content[:-100] + bytes(100)):
        put(weights, damaged)
        assert problem_of(tmp_path) == "pytorch_model.bin is not what was written"


def test_all_processes_go_on_from_what_the_main_one_found(tmp_path, saved):
    checkpoint = copy_of(saved, "full", tmp_path)
    other = Processes(1, 2, lambda mine: [checkpoint, mine])
    assert agreed_folder(True, "a folder of another node", other) == checkpoint
    failed = Processes(1, 2, lambda mine: [ValueError("there is no checkpoint"), mine])
    with pytest.raises(ValueError, match="there is no checkpoint"):
        agreed_folder(True, "", failed)


def test_a_checkpoint_from_before_counts_from_where_it_is(tmp_path, saved):
    """Written by a version without the files of this one: it goes on, but for what it lacks."""
    copy_of(saved, "full", tmp_path, shutil.copy2)
    checkpoint = tmp_path / "checkpoint-2"
    shutil.rmtree(tmp_path / "checkpoint-4")
    for name in ("prefopt_checkpoint.json", "prefopt_progress.json"):
        (checkpoint / name).unlink()
    resumed = make(tmp_path, "full")
    resumed.train(resume_from_checkpoint=True)
    assert torch.equal(flat(resumed.model), flat(saved["full"].trained.model))


def test_training_goes_on_from_the_latest_checkpoint_or_the_one_that_is_named(tmp_path, saved):
    assert checkpoint_folder(None, str(tmp_path)) is None
    assert checkpoint_folder(False, str(tmp_path)) is None
    for step in (2, 10):
        shutil.copytree(saved["full"].folder / "checkpoint-2", tmp_path / f"checkpoint-{step}")
    assert checkpoint_folder(True, str(tmp_path)) == tmp_path / "checkpoint-10"
    named = str(tmp_path / "checkpoint-2")
    assert checkpoint_folder(named, str(tmp_path)) == tmp_path / "checkpoint-2"


@pytest.mark.parametrize("asked", [True, "nowhere", "", 5, "empty"])
def test_a_checkpoint_that_is_not_there_is_told(tmp_path, monkeypatch, asked):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"there is no checkpoint .* to resume from"):
        checkpoint_folder(asked, str(tmp_path))


def test_a_checkpoint_is_known_by_its_name():
    assert is_checkpoint("out/checkpoint-5")
    assert not is_checkpoint("checkpoint-5/best")
    assert not is_checkpoint("out/checkpoints")  # where a run may save its model
