"""DeepSpeed: what it makes of a model is made before the model is scored."""

import json
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from prefopt.training.zero import ready_for_engine, zero_stage
from tests.conftest import ROOT
from tests.models import tiny_model
from tests.processes import run_script
from tests.training.run_zero import write_models

LN_2 = math.log(2)


def accelerator(stage, **config):
    plugin = None
    if stage is not None:
        plugin = SimpleNamespace(zero_stage=stage, deepspeed_config=config)
    return SimpleNamespace(
        state=SimpleNamespace(deepspeed_plugin=plugin), mixed_precision="bf16", device="cpu"
    )


def test_without_deepspeed_a_model_stays_as_it_is():
    model = tiny_model("llama")
    assert zero_stage(accelerator(None)) is None
    assert ready_for_engine(model, accelerator(None)) is model
    assert model.dtype == torch.float32


@pytest.mark.parametrize("enabled", [True, "auto"])
def test_weights_are_cast_as_deepspeed_will_and_buffers_are_not(enabled):
    model = tiny_model("llama")
    ready_for_engine(model, accelerator(2, bf16={"enabled": enabled}))
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in model.buffers()} == {torch.float32}


@pytest.mark.parametrize("config", [{}, {"bf16": {"enabled": False}}, {"fp16": {}}])
def test_weights_keep_their_dtype_where_deepspeed_keeps_it(config):
    model = tiny_model("llama")
    ready_for_engine(model, accelerator(1, **config))
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_an_autocast_inside_the_engine_alone_is_refused():
    with pytest.raises(ValueError, match="torch_autocast of DeepSpeed's configuration"):
        ready_for_engine(tiny_model("llama"), accelerator(2, torch_autocast={"enabled": True}))


# Real runs ----------------------------------------------------------------------------------------


def run(folder, processes):
    done = run_script(
        str(ROOT / "tests/training/run_zero.py"),
        str(folder),
        processes=processes,
        timeout_s=600,
        DS_ACCELERATOR="cpu",
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / f"results{processes}.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("zero")


@pytest.fixture(scope="module")
def results(folder):
    write_models(folder)
    return [run(folder, processes) for processes in (1, 2)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["cached", "live", "loaded whole", "adapter that trains biases", "named adapter"],
)
def test_a_partitioned_policy_trains_as_a_whole_one(results, name):
    one, two = (result[name] for result in results)
    assert two["held"] == pytest.approx(0.5, abs=0.02)
    assert two["weights"] == 0  # that are not partitioned
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert two["new"] == pytest.approx(one["new"], abs=1e-5)
    assert abs(one["losses"][-1] - one["losses"][0]) > 1e-3
    if "named" not in name:
        assert one["losses"][0] == pytest.approx(LN_2, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["recognised", "recognised in bf16"])
def test_a_store_that_one_process_filled_is_used_by_processes_that_share_weights(results, name):
    one, two = (result[name] for result in results)
    assert one["computed"] == 2 * (16 + 7)  # completions: of four steps, and of evaluation
    assert two["computed"] == 0
    assert (two["digest"], two["parameters"]) == (one["digest"], one["parameters"])
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bf16", "bf16 live", "bf16 loaded whole", "bf16 of ZeRO-2"])
def test_the_reference_is_rounded_as_the_policy_is(results, name):
    _, two = (result[name] for result in results)
    assert two["dtypes"] == ["torch.bfloat16"]
    assert two["losses"] == pytest.approx([LN_2] * 4, abs=1e-5)


@pytest.mark.slow
def test_a_store_is_filled_by_processes_that_share_the_weights(results):
    one, two = (result["filled"] for result in results)
    assert one["completions"] == 48
    assert two == one


@pytest.mark.slow
def test_a_reference_that_moves_is_refused(results):
    one, two = (result["moving"] for result in results)
    assert one == {}
    assert "sync_ref_model needs all weights in each process" in two["refused"]


@pytest.mark.slow
def test_a_named_adapter_needs_a_base_that_can_be_loaded_again(results):
    one, two = (result["named adapter on a given model"] for result in results)
    assert one == {}
    assert "give the model by its id or path, or a ref_model" in two["refused"]


@pytest.mark.slow
def test_checkpoints_of_parts_become_whole_weights_and_what_is_saved_at_last_is_whole(
    results, folder
):
    one, two = (result["saved"]["checkpoint"] for result in results)
    assert "model.safetensors" in one
    assert "model.safetensors" not in two
    for name in ("prefopt_reference.json", "prefopt_running.json", "zero_to_fp32.py"):
        assert name in two
    weights = load_file(folder / "saved1/saved/model.safetensors")
    whole = load_file(folder / "saved2/saved/model.safetensors")
    checkpoint = folder / "saved2/run/checkpoint-4"
    subprocess.run(
        [sys.executable, "zero_to_fp32.py", ".", "whole", "--safe_serialization"],
        cwd=checkpoint,
        env=os.environ | {"DS_ACCELERATOR": "cpu"},
        capture_output=True,
        check=True,
        timeout=300,
    )
    converted = load_file(checkpoint / "whole/model.safetensors")
    assert whole.keys() == converted.keys() == weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(whole[name], weight, rtol=0, atol=1e-5)
        torch.testing.assert_close(converted[name], weight, rtol=0, atol=1e-5)
