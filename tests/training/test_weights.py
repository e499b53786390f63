"""Weights that are not finite are named, wherever they are, before training begins."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import BitsAndBytesConfig

from prefopt.data.prepared import completion_keys
from prefopt.reference import fill
from prefopt.reference.processes import Processes
from prefopt.reference.store.database import _crc
from prefopt.training.weights import (
    NonFiniteError,
    check_trainable_dtype,
    check_weights,
    train_in_float32,
)
from tests.models import tiny_model, tiny_rows
from tests.runs import trainer

LORA = LoraConfig(task_type="CAUSAL_LM", r=4)
NAN, INF = float("nan"), float("inf")

# A row of the embeddings that the probe does not read, a norm, a matrix, the head.
PLACES = {
    "model.embed_tokens.weight": (60, 3),
    "model.layers.1.mlp.down_proj.weight": (5, 7),
    "model.norm.weight": (2,),
    "lm_head.weight": (96, 0),
}


@torch.no_grad()
def spoil(model, name, place, value):
    dict(model.named_parameters())[name][place] = value
    return model


@pytest.mark.parametrize(
    ("name", "value", "dtype"),
    [
        *((name, NAN, torch.float32) for name in PLACES),
        ("model.embed_tokens.weight", INF, torch.bfloat16),
        ("model.norm.weight", -INF, torch.float32),
    ],
)
def test_a_model_that_is_not_finite_is_named_so(tmp_path, name, value, dtype):
    model = spoil(tiny_model("llama").to(dtype), name, PLACES[name], value)
    with pytest.raises(NonFiniteError, match=f"the model holds NaN or infinite .*{name}; it was"):
        trainer(tmp_path, tiny_rows(8), model=model)


def test_so_is_one_that_is_loaded_from_a_folder(tmp_path):
    model = spoil(tiny_model("llama"), "model.norm.weight", (2,), NAN)
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(NonFiniteError, match="the model holds NaN or infinite weights, in 1 "):
        trainer(tmp_path, tiny_rows(8), model=str(tmp_path / "model"))


def test_so_is_an_adapter_though_it_starts_as_zero(tmp_path):
    """What is NaN in A makes NaN of a B of zeros; peft's own start would hide it."""
    model = get_peft_model(tiny_model("llama"), LORA)
    name = next(name for name, _ in model.named_parameters() if "lora_A" in name)
    with pytest.raises(NonFiniteError, match="lora_A"):
        trainer(tmp_path, tiny_rows(8), model=spoil(model, name, (0, 0), NAN))


@pytest.mark.parametrize("as_path", [False, True])
@pytest.mark.parametrize("mode", ["auto", "live"])
def test_so_is_a_reference(tmp_path, mode, as_path):
    reference = spoil(tiny_model("llama", seed=3), "model.embed_tokens.weight", (60, 3), NAN)
    if as_path:
        reference.save_pretrained(tmp_path / "reference")
        reference = str(tmp_path / "reference")
    with pytest.raises(NonFiniteError, match="the reference holds NaN or infinite weights"):
        trainer(tmp_path, tiny_rows(8), ref_model=reference, reference=mode)


@pytest.mark.parametrize("value", [NAN, -INF])
def test_log_probs_of_a_reference_that_are_not_finite_are_not_kept(tmp_path, monkeypatch, value):
    """Weights may be finite and what they compute not."""
    computed = fill.score_completions

    def spoilt(*arguments):
        values = computed(*arguments)
        values[3][0] = value
        return values

    cache = {"reference_cache_dir": str(tmp_path / "cache")}
    with monkeypatch.context() as patched:
        patched.setattr(fill, "score_completions", spoilt)
        with pytest.raises(ValueError, match=r"gives a completion of row \d+ a log-prob of -?\w+ "):
            trainer(tmp_path, tiny_rows(8), **cache)
    assert trainer(tmp_path, tiny_rows(8), **cache).references.computed == 16


def test_what_an_earlier_version_kept_of_such_is_told(tmp_path):
    cache = {"reference_cache_dir": str(tmp_path / "cache")}
    first = trainer(tmp_path, tiny_rows(8), **cache)
    store = first.references.store
    row = first.train_dataset[2]
    (key, _) = completion_keys(np.array(row["prompt_ids"]), map(np.array, row["completion_ids"]))
    (known,) = store.look_up([key])
    blob = np.full_like(known, np.nan).tobytes()
    with store.database.writing() as connection:
        find = "SELECT first FROM completion WHERE key = ?"
        (first_piece,) = connection.execute(find, (key,)).fetchone()
        connection.execute("UPDATE piece SET logps = ? WHERE id = ?", (blob, first_piece))
        checksum = _crc(store.fingerprint, key, blob)
        connection.execute("UPDATE completion SET checksum = ? WHERE key = ?", (checksum, key))
    with pytest.raises(ValueError, match=r"row 2, as the store has it, a log-prob of nan .*prune"):
        trainer(tmp_path, tiny_rows(8), **cache)


def test_float16_is_not_trained(tmp_path):
    with pytest.raises(ValueError, match=r"to be trained in float16, the first is .*fp16=True"):
        trainer(tmp_path, tiny_rows(8), model=tiny_model("llama").half())
    lora = get_peft_model(tiny_model("llama").half(), LORA)  # its own weights are float32
    trainer(tmp_path, tiny_rows(8), model=lora)
    check_trainable_dtype(tiny_model("llama").half(), keeps_float32=True)


def dtypes(model):
    return {tensor.dtype for tensor in model.state_dict().values()}


def test_a_whole_model_is_cast_to_float32_to_be_trained_and_tied_weights_stay_tied():
    model = tiny_model("llama", tie_word_embeddings=True).half()
    model.model.embed_tokens.requires_grad_(False)
    train_in_float32(model, keeps_float32=False)
    assert dtypes(model) == {torch.float32}
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_what_is_not_trained_in_float16_is_not_cast():
    sharded = tiny_model("llama").half()
    train_in_float32(sharded, keeps_float32=True)
    frozen = tiny_model("llama").half().requires_grad_(False)
    train_in_float32(frozen, keeps_float32=False)
    assert dtypes(sharded) == dtypes(frozen) == {torch.float16}
    quantised = tiny_model("llama").half()
    quantised.is_quantized = True
    with pytest.raises(ValueError, match="to be trained in float16"):
        train_in_float32(quantised, keeps_float32=False)


def test_what_overflowed_in_float16_is_told_so():
    model = tiny_model("llama").half()
    spoil(model, "model.norm.weight", (2,), INF)
    with pytest.raises(NonFiniteError, match="float16 holds nothing above 65504: use bfloat16"):
        check_weights(model, "the model", "stop")


def test_large_numbers_are_no_infinite_ones():
    model = tiny_model("llama").double()
    spoil(model, "model.norm.weight", (2,), 1e300)
    check_weights(model, "the model", "stop")
    half = spoil(tiny_model("llama").half(), "model.norm.weight", slice(None), 65504.0)
    check_weights(half, "the model", "stop")


def test_processes_tell_each_other():
    model = tiny_model("llama")
    others = Processes(0, 2, lambda mine: [mine, ["its.part"]])
    with pytest.raises(NonFiniteError, match=r"the first is its\.part"):
        check_weights(model, "the model", "stop", others)
    check_weights(model, "the model", "stop", Processes(0, 2, lambda mine: [mine, mine]))


def test_scales_of_quantised_weights_are_looked_at():
    class Quantised:
        absmax = torch.tensor([1.0, NAN])

    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros(4, dtype=torch.uint8), requires_grad=False)
    check_weights(model, "the model", "stop")
    model.weight.quant_state = Quantised()
    with pytest.raises(NonFiniteError, match="the first is weight"):
        check_weights(model, "the model", "stop")


def test_float8_and_meta_tensors_are_no_trouble():
    model = nn.Module()
    model.a = nn.Parameter(torch.ones(4).to(torch.float8_e4m3fn), requires_grad=False)
    model.b = nn.Parameter(torch.ones(4, device="meta"))
    model.c = nn.Parameter(torch.ones(0))
    check_weights(model, "the model", "stop")
    model.a = nn.Parameter(torch.tensor([1.0, np.nan]).to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(NonFiniteError, match="the first is a"):
        check_weights(model, "the model", "stop")
    check_weights(model, "the model", "stop", trained_only=True)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_model_that_is_quantised_of_nan_is_named_so(tmp_path, bits):
    pytest.importorskip("bitsandbytes")
    options = {f"load_in_{bits}bit": True}
    model = spoil(tiny_model("llama"), "model.layers.1.mlp.down_proj.weight", (5, 7), NAN)
    model.save_pretrained(tmp_path / "model")
    lora = LoraConfig(task_type="CAUSAL_LM", r=4)  # peft writes into it where the model is
    options = {"quantization_config": BitsAndBytesConfig(**options), "peft_config": lora}
    with pytest.raises(ValueError, match="NaN"):
        trainer(tmp_path, tiny_rows(8), model=str(tmp_path / "model"), **options)


def test_the_bits_of_four_bit_weights_are_no_numbers():
    model = tiny_model("llama")
    packed = model.model.layers[0].mlp.up_proj.weight
    with torch.no_grad():
        packed.fill_(torch.nan)
    packed.quant_state = SimpleNamespace(absmax=torch.ones(3), state2=None)
    check_weights(model, "the model", "hint")
    packed.quant_state.absmax[1] = torch.inf
    with pytest.raises(NonFiniteError, match=r"the first is model.layers.0.mlp.up_proj.weight"):
        check_weights(model, "the model", "hint")
