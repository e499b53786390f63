"""Ways to quantise a tiny model that this machine can load: what is asked for, by name."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.models import tiny_model

# Wide enough for the blocks of every quantiser.
SIZES = {"hidden_size": 64, "intermediate_size": 128}


def _bitsandbytes(**fields: Any) -> Any:
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    if "bnb_4bit_quant_type" in fields:
        fields = {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float32} | fields
    return BitsAndBytesConfig(**fields)


def _quanto(weights: str) -> Any:
    pytest.importorskip("optimum.quanto")
    from transformers import QuantoConfig

    return QuantoConfig(weights=weights)


def _torchao(kind: str) -> Any:
    kinds = pytest.importorskip("torchao.quantization")
    from transformers import TorchAoConfig

    return TorchAoConfig(getattr(kinds, kind)())


KINDS: dict[str, Any] = {
    "nf4": lambda: _bitsandbytes(bnb_4bit_quant_type="nf4"),
    "nf4, double": lambda: _bitsandbytes(bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
    "fp4": lambda: _bitsandbytes(bnb_4bit_quant_type="fp4"),
    "8 bits": lambda: _bitsandbytes(load_in_8bit=True),
    "8 bits with head": lambda: _bitsandbytes(load_in_8bit=True, llm_int8_skip_modules=["none"]),
    "nf4 with head": lambda: _bitsandbytes(
        bnb_4bit_quant_type="nf4", llm_int8_skip_modules=["none"]
    ),
    "quanto int8": lambda: _quanto("int8"),
    "quanto int4": lambda: _quanto("int4"),
    "quanto float8": lambda: _quanto("float8"),
    "torchao int8": lambda: _torchao("Int8WeightOnlyConfig"),
    "torchao float8": lambda: _torchao("Float8WeightOnlyConfig"),
}


def kinds(*more: str, quick: tuple[str, ...] = ("nf4", "torchao int8")) -> list[Any]:
    """Return all kinds as parameters, slow ones marked; ``more`` are kinds beside these."""
    return [
        pytest.param(kind, marks=() if kind in quick else pytest.mark.slow)
        for kind in (*KINDS, *more)
    ]


def save_base(folder: Any, **changes: Any) -> str:
    """Save a tiny model; return its folder."""
    tiny_model("llama", **(SIZES | changes)).save_pretrained(folder)
    return str(folder)


def load(folder: Any, kind: str, **options: Any) -> Any:
    """Return a saved model, quantised; of kind ``"hqq"`` by hand, which transformers cannot."""
    options = {"dtype": torch.float32} | options
    if kind == "hqq":
        return _with_hqq(AutoModelForCausalLM.from_pretrained(folder, **options))
    return AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=KINDS[kind](), **options
    )


def _with_hqq(model: Any) -> Any:
    hqq = pytest.importorskip("hqq.core.quantize")
    for name, layer in list(model.named_modules()):
        if type(layer) is torch.nn.Linear and name != "lm_head":
            how = hqq.BaseQuantizeConfig(nbits=4, group_size=64)
            quantised = hqq.HQQLinear(layer, how, compute_dtype=torch.float32, device="cpu")
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, quantised)
    return model
