"""Hostile files: what is loaded is data, and the Python in it never runs.

Each file would write a marker if it did; docs/security.md says what holds and what does not.
"""

import contextlib
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prefopt.cli.train import read_config_file
from prefopt.data import DataError, load_rows, prepare_dataset
from tests.bad_input.case import byte_tokenizer
from tests.models import tiny_model, tiny_rows, tiny_tokenizer
from tests.runs import trainer


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self):
        return (Path.write_text, (Path(self.marker), "ran"))


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "ran"


def test_the_bomb_goes_off_where_it_is_unpickled(marker):
    pickle.loads(pickle.dumps(Bomb(marker)))
    assert marker.exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_pickled_weights_of_a_model_run_nothing(tmp_path, marker, legacy):
    folder = tmp_path / "model"
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    weights = {**load_file(folder / "model.safetensors"), "bomb": Bomb(marker)}
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    for names in ({"model": str(folder)}, {"ref_model": str(folder)}):
        with pytest.raises(ValueError, match="its weights are a pickle of more than tensors"):
            trainer(tmp_path / "out", tiny_rows(4), **names)
    assert not marker.exists()


def test_pickled_weights_of_an_adapter_run_nothing(tmp_path, marker):
    peft = pytest.importorskip("peft")
    base = tmp_path / "base"
    tiny_model("llama").save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    folder = tmp_path / "adapter"
    config = peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(type(tiny_model("llama")).from_pretrained(base), config)
    model.save_pretrained(folder)
    weights = {**load_file(folder / "adapter_model.safetensors"), "bomb": Bomb(marker)}
    (folder / "adapter_model.safetensors").unlink()
    torch.save(weights, folder / "adapter_model.bin")
    for given in ({"model": str(folder)}, {"reference": f"adapter:{folder}"}):
        with pytest.raises(ValueError, match="adapter is not loaded: its weights are a pickle"):
            trainer(tmp_path / "out", tiny_rows(4), **given)
    assert not marker.exists()


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "scaler.pt"]
)
def test_pickles_of_a_checkpoint_run_nothing_when_training_goes_on(tmp_path, marker, name):
    options = {"save_strategy": "steps", "save_steps": 1}
    trainer(tmp_path / "out", tiny_rows(8), max_steps=1, **options).train()
    checkpoint = tmp_path / "out" / "checkpoint-1"
    torch.save({"bomb": Bomb(marker)}, checkpoint / name)
    again = trainer(tmp_path / "out", tiny_rows(8), max_steps=2, **options)
    with contextlib.suppress(Exception):  # some are not even read; that none runs is what counts
        again.train(str(checkpoint))
    assert not marker.exists()


ATTACKS = (
    "{{ cycler.__init__.__globals__.os.system('touch MARK') }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__init__.__globals__ }}",
    "{% set x = [].append.__self__.__class__.__base__.__subclasses__() %}{{ x }}",
    "{% for i in range(10000000) %}x{% endfor %}",
)


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_chat_template_cannot_leave_its_sandbox(tmp_path, marker, attack):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = attack.replace("MARK", str(marker)) + tokenizer.chat_template
    turns = {
        "prompt": [{"role": "user", "content": "Is it?"}],
        "chosen": [{"role": "assistant", "content": "Yes."}],
        "rejected": [{"role": "assistant", "content": "No."}],
    }
    rows = tiny_rows(1).from_list([turns])
    with pytest.raises(DataError, match=r"refuses the messages: (Security|Undefined|Overflow)"):
        prepare_dataset(rows, tokenizer)
    assert not marker.exists()


def test_a_script_in_a_folder_of_data_is_not_run(tmp_path, marker):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "data.py").write_text(f"open({str(marker)!r}, 'w').write('ran')")
    with pytest.raises(DataError, match="has no data files"):
        load_rows(folder)
    (folder / "rows.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    with pytest.raises(DataError, match="scripts are no longer supported"):
        load_rows(folder)
    assert not marker.exists()


def test_a_file_of_options_builds_no_python_objects(tmp_path, marker):
    path = tmp_path / "run.yaml"
    path.write_text(f"beta: !!python/object/apply:os.system ['touch {marker}']\n")
    with pytest.raises(Exception, match="is not valid YAML"):
        read_config_file(str(path))
    assert not marker.exists()


@pytest.mark.parametrize(
    "name", ["LD_PRELOAD", "DYLD_INSERT_LIBRARIES", "PYTHONPATH", "PATH", "CC"]
)
def test_a_file_of_options_does_not_choose_what_code_runs(tmp_path, name):
    path = tmp_path / "run.yaml"
    path.write_text(f"env: {{HF_HOME: here, {name}: /tmp/evil}}\n")
    before = dict(os.environ)
    with pytest.raises(Exception, match=f"env sets {name}, which chooses the code"):
        read_config_file(str(path))
    assert dict(os.environ) == before


def test_other_variables_of_a_file_of_options_are_set_and_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_PROJECT", "before")
    path = tmp_path / "run.yaml"
    path.write_text("env: {WANDB_PROJECT: mine}\n")
    assert read_config_file(str(path)) == {}
    assert os.environ["WANDB_PROJECT"] == "mine"
    assert capsys.readouterr().err == f"prefopt: {path} sets WANDB_PROJECT\n"


def test_the_store_holds_no_text_and_is_only_for_whom_the_umask_allows(tmp_path):
    rows, store = tiny_rows(4), tmp_path / "store"
    before = os.umask(0o077)
    try:
        trainer(tmp_path, rows, reference_cache_dir=str(store), max_steps=1).train()
    finally:
        os.umask(before)
    files = list(store.iterdir())  # SQLite's journal may lie beside it
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    held = b"".join(file.read_bytes() for file in files)
    assert len(held) > 1000
    texts = [text for row in rows for text in row.values() if text.count(" ") > 1]
    assert texts
    assert not [text for text in texts if text.strip().encode() in held]
