"""What of FSDP is refused, and how a policy is made ready for it; runs are in tests/launches."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from prefopt.data.collate import PreferenceCollator
from prefopt.engine import Scorer
from prefopt.engine.company import Company
from prefopt.objective import parse_objective
from prefopt.reference.processes import Processes
from prefopt.training.fsdp import (
    applies_fsdp,
    as_many_everywhere,
    check_launch,
    check_passes,
    make_ready,
    writes_parts,
)
from prefopt.training.launch import Launch
from tests.models import tiny_model
from tests.runs import config


def launch(kind=DistributedType.FSDP, count=2, mixed_precision="no", **options):
    """Return a launch as accelerate would describe it where it applies FSDP."""
    plugin = None
    if kind is DistributedType.FSDP:
        plugin = FullyShardedDataParallelPlugin(**{"fsdp_version": 2} | options)
        if mixed_precision != "no":
            plugin.set_mixed_precision(mixed_precision)
    accelerator = SimpleNamespace(
        distributed_type=kind,
        device=torch.device("cpu"),
        mixed_precision=mixed_precision,
        state=SimpleNamespace(fsdp_plugin=plugin),
    )
    return Launch(accelerator, Processes(0, count, lambda value: [value] * count))


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    for name in ("ACCELERATE_USE_FSDP", "FSDP_CPU_RAM_EFFICIENT_LOADING"):
        monkeypatch.delenv(name, raising=False)


def test_fsdp_that_is_asked_for_and_not_had_is_an_error(tmp_path, monkeypatch):
    check_launch(config(tmp_path), launch(DistributedType.MULTI_CPU))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="accelerate does not apply it here"):
        check_launch(config(tmp_path), launch(DistributedType.MULTI_CPU))
    with pytest.warns(UserWarning, match="there is one process: the weights stay whole"):
        check_launch(config(tmp_path), launch(DistributedType.NO, 1))
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    asked = dataclasses.replace(config(tmp_path))
    asked.fsdp = True
    with pytest.raises(ValueError, match="start it on GPUs, or leave FSDP out"):
        check_launch(asked, launch(DistributedType.MULTI_CPU))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fsdp_version": 1, "use_orig_params": True}, "set fsdp_version: 2"),
        ({"cpu_ram_efficient_loading": True}, "leaves the weights of all processes but one empty"),
        ({"cpu_offload": True}, "fsdp_offload_params keeps weights on the CPU"),
    ],
)
def test_what_fsdp_cannot_do_rightly_is_refused(tmp_path, options, message):
    args = config(tmp_path)
    check_launch(args, launch())
    with pytest.raises(ValueError, match=message):
        check_launch(args, launch(**options))


@pytest.mark.parametrize(
    ("options", "state_dict_type", "refused"),
    [
        ({}, "FULL_STATE_DICT", True),
        ({"optim_args": "momentum=0.9"}, "FULL_STATE_DICT", False),
        ({"optim": "adamw_torch"}, "FULL_STATE_DICT", False),
        ({"save_strategy": "no"}, "FULL_STATE_DICT", False),
        ({}, "SHARDED_STATE_DICT", False),
    ],
)
def test_checkpoints_that_could_not_be_loaded_are_refused(
    tmp_path, options, state_dict_type, refused
):
    args = config(tmp_path, **{"optim": "sgd", "save_strategy": "steps"} | options)
    made = launch(state_dict_type=state_dict_type)
    assert writes_parts(made) == (state_dict_type == "SHARDED_STATE_DICT")
    if not refused:
        check_launch(args, made)
        return
    with pytest.raises(ValueError, match="empty state of SGD without momentum"):
        check_launch(args, made)


@pytest.mark.parametrize(
    ("loss", "reference", "kept"),
    [("dpo", "auto", False), ("dpo", "live", True), ("orpo", "auto", True)],
)
def test_a_policy_computes_as_its_reference_did(tmp_path, loss, reference, kept):
    model = tiny_model("llama").bfloat16()
    model.model.norm.weight.requires_grad_(False)
    made = launch(mixed_precision="bf16")
    args = config(tmp_path, reference=reference)
    make_ready(model, args, parse_objective(loss), made)
    assert model.lm_head.weight.dtype == torch.float32
    assert model.model.norm.weight.dtype == torch.bfloat16
    assert (made.accelerator.state.fsdp_plugin.mixed_precision_policy is not None) == kept


def test_without_fsdp_a_policy_is_left_as_it_is(tmp_path):
    model = tiny_model("llama").bfloat16()
    plain = launch(DistributedType.MULTI_GPU, mixed_precision="bf16")
    make_ready(model, config(tmp_path), parse_objective("dpo"), plain)
    assert model.dtype == torch.bfloat16
    assert not applies_fsdp(plain)
    assert not writes_parts(plain)


def test_a_policy_without_whole_weights_is_refused(tmp_path):
    with torch.device("meta"):
        model = tiny_model("llama")
    with pytest.raises(ValueError, match="the model is sharded already"):
        make_ready(model, config(tmp_path), parse_objective("dpo"), launch())


@pytest.mark.parametrize(
    ("stored", "refused"), [(torch.uint8, True), (torch.bfloat16, True), (torch.float32, False)]
)
def test_four_bit_weights_are_stored_as_the_others_are(tmp_path, stored, refused):
    class Params4bit(torch.nn.Parameter):
        pass

    model = tiny_model("llama")
    weight = torch.zeros(2, 2, dtype=stored)
    model.model.layers[0].mlp.up_proj.weight = Params4bit(weight, requires_grad=False)
    made = launch(mixed_precision="bf16")
    if refused:
        with pytest.raises(ValueError, match="FSDP2 shards weights of one floating dtype only"):
            make_ready(model, config(tmp_path), parse_objective("dpo"), made)
        return
    make_ready(model, config(tmp_path), parse_objective("dpo"), made)
    assert made.accelerator.state.fsdp_plugin.mixed_precision_policy is None


def test_a_model_that_computes_texts_apart_is_refused():
    scorer = Scorer(tiny_model("llama"))
    check_passes(scorer, launch(), None)
    scorer.company = Company("none", window=20)
    check_passes(scorer, launch(), 20)
    with pytest.raises(ValueError, match="train it whole in each process"):
        check_passes(scorer, launch(), 21)


def test_processes_get_as_many_batches():
    (nothing,) = PreferenceCollator().batches([])
    processes = Processes(0, 2, lambda mine: [mine, 3])
    assert as_many_everywhere([nothing], nothing, processes) == [nothing] * 3
    assert len(as_many_everywhere([nothing] * 3, nothing, processes)) == 3
