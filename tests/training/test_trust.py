"""Code that comes with a model runs for what the user names in a run, and for nothing else.

Each folder here holds Python that writes a file when it runs, as hostile code would.
"""

import json
from pathlib import Path

import pytest

from prefopt.training.checkpoints import MANIFEST_FILE
from prefopt.training.tokenizer import read_tokenizer
from prefopt.training.trust import CodeError, named_in_run
from tests.models import tiny_model, tiny_rows, tiny_tokenizer
from tests.runs import trainer

CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
Path({marker!r}).write_text("ran")
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""
MODEL = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """The file that exists when code of a folder has run."""
    # Where transformers copies such code to, and imports it from.
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    return tmp_path / "ran"


def own_model(folder: Path, marker: Path, seed: int = 0, auto_map=None) -> Path:
    """Save a model that only the code beside it can load."""
    tiny_model("llama", seed=seed).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    change(folder / "config.json", model_type="own", auto_map=auto_map or MODEL)
    (folder / "own.py").write_text(CODE.format(marker=str(marker)))
    return folder


def plain_model(folder: Path, seed: int = 0) -> Path:
    tiny_model("llama", seed=seed).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def adapter_on(base: Path, folder: Path) -> Path:
    """Save an adapter, as one that was trained on a base model."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    peft.get_peft_model(tiny_model("llama"), config).save_pretrained(folder)
    change(folder / "adapter_config.json", base_model_name_or_path=str(base))
    return folder


def change(file: Path, **fields) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def run(folder: Path, model=None, **options):
    cache = {"reference_cache_dir": str(folder / "store"), "trust_remote_code": True}
    return trainer(folder / "out", tiny_rows(8), model, **(cache | options))


def test_code_of_a_model_that_is_named_runs_if_that_is_asked_for_and_is_said(
    tmp_path, marker, capsys
):
    path = own_model(tmp_path / "own", marker)
    with pytest.raises(ValueError, match="trust_remote_code"):
        run(tmp_path, str(path), trust_remote_code=False)
    assert not marker.exists()
    run(tmp_path, str(path)).train()
    assert marker.exists()
    assert f"code may run that comes with what is named: {path}" in capsys.readouterr().err


def test_code_of_a_reference_that_is_named_runs_too(tmp_path, marker):
    path = own_model(tmp_path / "own", marker, seed=1)
    run(tmp_path, ref_model=str(path)).train()
    assert marker.exists()


def resumed(folder: Path, loaded_from: dict[str, str], **options):
    """Train against another reference, then resume from a checkpoint that was tampered with."""
    other = plain_model(folder / "other", seed=1)
    first = run(folder, ref_model=str(other), save_strategy="steps", save_steps=1, max_steps=1)
    first.train()
    checkpoint = folder / "out" / "checkpoint-1"
    record = json.loads((checkpoint / "prefopt_reference.json").read_text())
    change(
        checkpoint / "prefopt_reference.json",
        loaded_from=loaded_from,
        fingerprint="0" * len(record["fingerprint"]),
    )
    (checkpoint / MANIFEST_FILE).unlink()  # whoever changes a file changes this one too
    again = run(folder, max_steps=2, **options)
    return again.train(str(checkpoint))


def test_what_only_a_checkpoint_names_is_not_trusted(tmp_path, marker):
    path = own_model(tmp_path / "own", marker, seed=2)
    with pytest.raises(ValueError, match="comes with code of its own, and this run does not name"):
        resumed(tmp_path, {"name_or_path": str(path)})
    assert not marker.exists()


def test_an_adapter_that_only_a_checkpoint_names_brings_no_code(tmp_path, marker):
    base = own_model(tmp_path / "own", marker, seed=2)
    adapter = adapter_on(base, tmp_path / "adapter")
    with pytest.raises(ValueError, match="the run that is resumed was trained against"):
        resumed(tmp_path, {"name_or_path": str(adapter), "adapter": str(adapter)})
    assert not marker.exists()


@pytest.mark.parametrize("given", ["model", "ref_model"])
def test_the_base_model_that_an_adapter_names_is_not_trusted(tmp_path, marker, given):
    base = own_model(tmp_path / "own", marker)
    adapter = adapter_on(base, tmp_path / "adapter")
    with pytest.raises(CodeError, match="trust_remote_code covers only what this run names: load"):
        run(tmp_path, **{given: str(adapter)})
    assert not marker.exists()


def test_the_tokenizer_of_an_adapters_base_is_not_trusted(tmp_path, marker):
    base = plain_model(tmp_path / "base")
    (base / "own.py").write_text(CODE.format(marker=str(marker)))
    names = {"AutoTokenizer": [None, "own.OwnTokenizer"]}
    change(base / "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map=names)
    adapter = adapter_on(base, tmp_path / "adapter")
    with pytest.raises(CodeError, match="comes with code of its own"):
        run(tmp_path, str(adapter))
    assert not marker.exists()


def test_code_in_another_place_than_what_is_named_is_refused(tmp_path, marker):
    other = own_model(tmp_path / "own", marker)
    elsewhere = {name: f"{other}--{code}" for name, code in MODEL.items()}
    path = own_model(tmp_path / "model", marker, auto_map=elsewhere)
    with pytest.raises(CodeError, match=f"takes its code from {other}, which this run does not"):
        run(tmp_path, str(path))
    with pytest.raises(CodeError, match=f"takes its code from {other}"):
        run(tmp_path, ref_model=str(path))
    plain = plain_model(tmp_path / "plain")
    names = {"AutoTokenizer": [None, f"{other}--own.OwnTokenizer"]}
    change(plain / "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map=names)
    with pytest.raises(CodeError, match=f"takes its code from {other}"):
        read_tokenizer(str(plain), trust_remote_code=True)
    assert not marker.exists()


def test_a_model_that_names_itself_as_the_place_of_its_code_is_taken(tmp_path, marker):
    path = tmp_path / "own"
    itself = {name: f"{path}--{code}" for name, code in MODEL.items()}
    own_model(path, marker, auto_map=itself)
    run(tmp_path, str(path)).train()
    assert marker.exists()


def test_what_is_not_there_is_told_as_without_code(tmp_path):
    with pytest.raises(OSError, match="can't load the model nobody/nothing"):
        run(tmp_path, "nobody/nothing")
    adapter = adapter_on(tmp_path / "base", tmp_path / "adapter")
    with pytest.raises(OSError, match=r"names as its base model .*base', which is no folder"):
        run(tmp_path, str(adapter))


def test_what_is_named_is_known_by_its_path_in_full(tmp_path, monkeypatch):
    (tmp_path / "m").mkdir()
    monkeypatch.chdir(tmp_path)
    model = tiny_model("llama")
    assert named_in_run("m", None, model, 5) == {str(tmp_path / "m")}
    model.config._name_or_path = "org/model"
    assert named_in_run(model) == {"org/model"}
