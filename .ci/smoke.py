"""What an installed prefopt must do with whatever versions lie beside it.

    cd EMPTY_FOLDER && VENV/bin/python -I smoke.py all

With extras it imports every module, then helps, trains (all weights, LoRA), merges, scores and
compares; without, it trains. The model is tiny and random, and nothing is downloaded. Exits with 1
and what the command printed at the first that fails.
"""

import contextlib
import importlib
import io
import json
import pkgutil
import sys
import time
from pathlib import Path

FAST = ("--use_cpu", "--report_to=none", "--disable_tqdm=true", "--max_steps=2")


def main() -> None:
    """Do all of it in this folder."""
    import prefopt

    if "site-packages" not in prefopt.__file__:
        sys.exit(f"{prefopt.__file__} is not an installed package")
    write_model_and_pairs()
    if sys.argv[1:] != ["all"]:
        train_in_python()
        return
    print(f"{import_all(prefopt)} modules imported")
    run("--version")
    run("--help")
    run("losses")
    run("losses", "--why", "dpo")
    train = ("train", "--model=model", "--dataset=pairs.jsonl", *FAST)
    run(*train, "--loss_type=dpo", "--output_dir=full", "--eval_fraction=0.25")
    must_be("full/model.safetensors")
    run(*train, "--loss_type=dpo", "--use_peft", "--lora_r=2", "--output_dir=adapter")
    must_be("adapter/adapter_model.safetensors")
    run("merge", "adapter", "merged")
    must_be("merged/model.safetensors")
    run("score", "pairs.jsonl", "--model=full", "--ref_model=model", "--output=scores.jsonl")
    run(
        *("compare", "--model=model", "--dataset=pairs.jsonl", "--losses=dpo", "--seeds=1"),
        *("--output_dir=compared", "--held_out=4", "--max_new_tokens=4", "--temperatures=1", *FAST),
    )
    must_be("compared/report.html")


def train_in_python() -> None:
    """Train as a script does, where no extra is installed."""
    from datasets import load_dataset

    from prefopt import PreferenceConfig, PreferenceTrainer

    config = PreferenceConfig(
        "trained", max_steps=2, use_cpu=True, report_to="none", disable_tqdm=True, loss_type="dpo"
    )
    rows = load_dataset("json", data_files="pairs.jsonl", split="train")
    trainer = PreferenceTrainer("model", args=config, train_dataset=rows)
    trainer.train()
    trainer.save_model()
    must_be("trained/model.safetensors")


def import_all(package) -> int:
    """Import each module of a package but those that run; return how many."""
    names = [found.name for found in pkgutil.walk_packages(package.__path__, "prefopt.")]
    names = [name for name in names if not name.endswith("__main__")]
    for name in names:
        importlib.import_module(name)
    return len(names)


def write_model_and_pairs() -> None:
    """Write ``model``, a tiny random Llama, and ``pairs.jsonl``."""
    from prefopt.toy.data import sample_pairs
    from prefopt.toy.model import build_model, build_tokenizer

    tokenizer = build_tokenizer()
    build_model(tokenizer).save_pretrained("model")
    tokenizer.save_pretrained("model")
    rows = sample_pairs(24)
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def must_be(path: str) -> None:
    """End all if a file was not written."""
    if not Path(path).is_file():
        sys.exit(f"there is no {path}")


def run(*argv: str) -> None:
    """Run a command line in this process, which has imported what it needs; end all if it fails."""
    from prefopt.cli import main as prefopt

    start = time.perf_counter()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = prefopt(list(argv))
    print(f"{time.perf_counter() - start:5.1f} s  prefopt {' '.join(argv)}", flush=True)
    if code:
        sys.exit(f"{printed.getvalue()}\nexit code {code}")


if __name__ == "__main__":
    main()
