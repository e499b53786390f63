"""Train with DeepSpeed, or without in one process, and write what came out; see test_zero.py."""

import json
import os
import sys
import traceback
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from prefopt.cli.cache.runs import fill
from prefopt.reference.store.maintain import describe_store, open_store
from tests.models import tiny_model, tiny_rows, tiny_tokenizer
from tests.runs import steps, trainer

PROCESSES = int(os.environ.get("WORLD_SIZE", "1"))

# No weight of a tiny model is too small to be partitioned, and none is kept between two uses.
ZERO_3 = {
    "stage3_param_persistence_threshold": 0,
    "stage3_max_live_parameters": 0,
    "stage3_max_reuse_distance": 0,
    "stage3_prefetch_bucket_size": 0,
}


def deepspeed_config(stage: int, **zero: Any) -> dict[str, Any]:
    """Return a configuration in which the trainer decides all but how weights are kept."""
    names = (
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "gradient_clipping",
    )
    partitioning = ZERO_3 if stage == 3 else {}
    return {
        **dict.fromkeys(names, "auto"),
        "bf16": {"enabled": "auto"},
        "zero_optimization": {"stage": stage, **partitioning, **zero},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def write_models(folder: Path) -> None:
    """Save rows, a policy, and an adapter for it that changes every log-prob."""
    tiny_model("llama").save_pretrained(folder / "policy")
    tiny_tokenizer().save_pretrained(folder / "policy")
    tiny_rows(24).to_json(folder / "rows.jsonl")
    (folder / "deepspeed.json").write_text(json.dumps(deepspeed_config(3)))
    adapted = get_peft_model(tiny_model("llama"), LoraConfig(r=4, target_modules=["q_proj"]))
    torch.manual_seed(5)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(folder / "adapter")


def made(folder: Path, stage: int = 3, by_path: bool = True, zero: Any = None, **options: Any):
    """Return a trainer whose model is loaded whole, or under ZeRO-3 partitioned by its path."""
    unset_hf_deepspeed_config()  # that of the run before, under which models are made partitioned
    model = None if by_path else tiny_model("llama")
    if PROCESSES > 1:
        options["deepspeed"] = deepspeed_config(stage, **(zero or {}))
    defaults = {
        "max_steps": 4,
        "per_device_train_batch_size": 4 // PROCESSES,
        # Of 7 and of 5 rows one process has a batch more than the other.
        "per_device_eval_batch_size": 3 if PROCESSES > 1 else 4,
        "optim": "sgd",
        "reference_cache_dir": str(folder / "store"),
        "model": str(folder.parent / "policy") if model is None else model,
        "eval_dataset": tiny_rows(7, seed=1),
    }
    return trainer(folder / "run", tiny_rows(24), **(defaults | options))


def trained(folder: Path, **options: Any) -> dict[str, Any]:
    """Return losses, of training and of rows that are new once the policy has been trained."""
    run = made(folder, **options)
    run.train()
    partitioned = [weight for weight in run.model.parameters() if hasattr(weight, "ds_id")]
    held = sum(weight.ds_tensor.numel() for weight in partitioned)
    new = tiny_rows(5, seed=2)
    return {
        "losses": [entry["loss"] for entry in steps(run)],
        "new": run.evaluate(new)["eval_loss"],
        "held": held / max(sum(weight.ds_numel for weight in partitioned), 1),
        "weights": sum(1 for _ in run.model.parameters()) - len(partitioned),
    }


def recognised(folder: Path, **options: Any) -> dict[str, Any]:
    """Return what the reference is, and how much of it had to be computed."""
    # One store for both launches.
    run = made(folder, reference_cache_dir=str(folder.parent / "store"), **options)
    assert run.references is not None
    fingerprint = run.references.fingerprint
    assert fingerprint is not None
    return {
        "digest": fingerprint.digest,
        "parameters": fingerprint.facts["parameters"],
        "computed": run.references.computed,
        "loss": run.evaluate()["eval_loss"],  # before there is an engine
    }


def filled(folder: Path) -> dict[str, Any]:
    """Fill a store by the command, and return how many completions it has of which reference."""
    base = folder.parent
    config = base / "deepspeed.json"
    given = ["--model", str(base / "policy"), "--dataset", str(base / "rows.jsonl"), "--use_cpu"]
    given += ["--cache-dir", str(folder / "store"), "--output_dir", str(folder / "run")]
    assert fill([*given, *(["--deepspeed", str(config)] if PROCESSES > 1 else [])]) == 0
    (reference,) = describe_store(open_store(folder / "store", readonly=True)).references
    return {"digest": reference.fingerprint, "completions": reference.completions}


def rounded(folder: Path, **options: Any) -> dict[str, Any]:
    """Return the losses of a policy in bfloat16 that stays what it is."""
    run = made(folder, bf16=True, learning_rate=0.0, **options)
    run.train()
    dtypes = {str(weight.dtype) for weight in run.model.parameters()}
    return {"losses": [entry["loss"] for entry in steps(run)], "dtypes": sorted(dtypes)}


def saved(folder: Path) -> dict[str, Any]:
    """Save a policy whose checkpoints hold parts; return what is in a checkpoint."""
    options = {"save_strategy": "steps", "save_steps": 4, "loss_type": "dpo + 0.1*beta_dpo"}
    run = made(folder, zero={"stage3_gather_16bit_weights_on_model_save": False}, **options)
    run.train()
    run.save_model(str(folder / "saved"))
    return {"checkpoint": sorted(file.name for file in (folder / "run/checkpoint-4").iterdir())}


def refused(folder: Path, **options: Any) -> dict[str, Any]:
    """Return why there is no trainer."""
    try:
        made(folder, **options)
    except ValueError as error:
        return {"refused": str(error)}
    return {}


LORA = {
    "peft_config": LoraConfig(r=4, target_modules=["q_proj"], bias="all"),
    "learning_rate": 0.5,
}
LIVE = {"reference": "live"}


def cases(folder: Path) -> dict[str, Any]:
    """Return what is done, by name."""
    adapter = f"adapter:{folder / 'adapter'}"
    return {
        "cached": trained,
        "live": partial(trained, **LIVE),
        "loaded whole": partial(trained, by_path=False, **LIVE),
        "adapter that trains biases": partial(trained, **LORA),
        "named adapter": partial(trained, reference=adapter),
        "recognised": recognised,
        "recognised in bf16": partial(
            recognised,
            **({"bf16": True} if PROCESSES > 1 else {"model_init_kwargs": {"dtype": "bfloat16"}}),
        ),
        "bf16": rounded,
        "bf16 live": partial(rounded, **LIVE),
        "bf16 loaded whole": partial(rounded, by_path=False),
        "bf16 of ZeRO-2": partial(rounded, stage=2),
        "saved": saved,
        "moving": partial(refused, sync_ref_model=True),
        "named adapter on a given model": partial(refused, by_path=False, reference=adapter),
        "filled": filled,  # the last, for it leaves the process group
    }


def main(folder: Path) -> int:
    """Run all cases; return the exit code."""
    rank = int(os.environ.get("RANK", "0"))
    if PROCESSES > 1:
        import deepspeed

        # Torch's gloo does the same without a C++ extension that takes minutes to build.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed("gloo")
        assert torch.distributed.get_world_size() == PROCESSES
    results = {}
    for name, case in cases(folder).items():
        try:
            results[name] = case(folder / f"{name.replace(' ', '-')}{PROCESSES}")
        except BaseException:
            traceback.print_exc()
            return 1
    if rank == 0:
        (folder / f"results{PROCESSES}.json").write_text(json.dumps(results))
    return 0


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # torch's gloo can deadlock when it is torn down: see run_ranks.py
