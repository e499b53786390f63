"""Launches in which several processes hold one row together are refused in a sentence."""

from types import SimpleNamespace

import pytest
from accelerate import ParallelismConfig

from prefopt import PreferenceConfig
from prefopt.training.parallelism import check_launch_of_rows, check_not_in_parts
from tests.models import tiny_model, tiny_rows, tiny_tokenizer
from tests.processes import run_script
from tests.runs import trainer


@pytest.mark.parametrize("size", ["tp_size", "cp_size", "sp_size"])
def test_a_row_is_not_spread_over_processes_by_the_launcher(monkeypatch, size):
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    check_launch_of_rows(SimpleNamespace())
    monkeypatch.setenv(f"PARALLELISM_CONFIG_{size.upper()}", "2")
    with pytest.raises(ValueError, match=f"{size}=2 asks for .*use FSDP2 or DeepSpeed's ZeRO-3"):
        check_launch_of_rows(SimpleNamespace())


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"tensor_parallel": {"autotp_size": 2}}, "tensor_parallel"),
        ({"sequence_parallel_size": 2}, "sequence_parallel_size"),
    ],
)
def test_nor_by_the_configuration_of_deepspeed(config, named):
    plugin = SimpleNamespace(deepspeed_config=config)
    with pytest.raises(ValueError, match=f"{named} of DeepSpeed's configuration lets 2 processes"):
        check_launch_of_rows(SimpleNamespace(deepspeed_plugin=plugin))
    ones = {"tensor_parallel": {"autotp_size": 1}, "sequence_parallel_size": 1}
    plugin.deepspeed_config = {name: ones[name] for name in config}
    check_launch_of_rows(SimpleNamespace(deepspeed_plugin=plugin))


@pytest.mark.parametrize("parallelism", [ParallelismConfig(cp_size=2), {"sp_size": 2}])
def test_nor_by_an_argument(tmp_path, parallelism):
    with pytest.raises(ValueError, match="2 processes hold one row together"):
        PreferenceConfig(str(tmp_path), use_cpu=True, parallelism_config=parallelism)


def test_a_model_that_was_loaded_in_parts_is_neither_policy_nor_reference(tmp_path):
    whole, parts = tiny_model("llama"), tiny_model("llama")
    check_not_in_parts(whole)
    parts._tp_size = 2
    with pytest.raises(ValueError, match="model was loaded with its weights spread over processes"):
        trainer(tmp_path, tiny_rows(4), model=parts)
    with pytest.raises(ValueError, match="ref_model was loaded with its weights spread"):
        trainer(tmp_path, tiny_rows(4), ref_model=parts)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model_init_kwargs", '{"tp_plan": "auto"}'], "model was loaded with its weights"),
        (["--parallelism_config", '{"tp_size": 2}'], "tp_size=2 asks for tensor parallelism"),
    ],
)
def test_a_launch_says_so_in_one_sentence(tmp_path, options, said):
    tiny_model("llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    tiny_rows(8).to_json(tmp_path / "rows.jsonl")
    given = ["--model", str(tmp_path / "model"), "--dataset", str(tmp_path / "rows.jsonl")]
    done = run_script(
        *("-m", "prefopt", "train", *given, "--output_dir", str(tmp_path / "out")),
        *("--use_cpu", "--report_to", "none", *options),
    )
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if said in line]
    assert lines, done.stderr[-2000:]
    assert "Traceback" not in done.stderr.split(lines[0])[0]
