"""Train some cells of the launch matrix, one after the other; started once per process."""

import json
import os
import sys
import traceback
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import save_file
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from prefopt import PreferenceTrainer
from tests.launches.cells import ALL_CELLS, STEP, STEPS, Cell
from tests.launches.engines import (
    ENGINES,
    GPU_ENGINES,
    Engine,
    apply_fsdp_on_cpus,
    use_deepspeed_without_building,
)
from tests.models import tiny_model, tiny_rows
from tests.runs import steps, trainer

RATE = 1e-2


def rows_of(kind: str, count: int, seed: int) -> Dataset:
    """Return tiny rows; rankings are of three."""
    if kind != "ranked":
        return tiny_rows(count, kind, seed)
    long = tiny_rows(3 * count, kind, seed).filter(lambda row: len(row["ranks"]) > 2)
    cut = long.map(lambda row: {name: row[name][:3] for name in ("completions", "ranks")})
    assert len(cut) >= count
    return cut.select(range(count))


def own_policy(folder: Path) -> Path:
    """Return where this process has its copy of the tiny model."""
    return folder / f"policy{os.environ.get('RANK', '0')}"


def new_policy(cell: Cell) -> Any:
    """Return the tiny model that a cell trains."""
    if cell.four_bits:
        return in_four_bits(cell)
    return tiny_model("llama", **cell.model).to(getattr(torch, cell.dtype))


def in_four_bits(cell: Cell) -> Any:
    """Return a model in 4 bits, stored as its other weights are: so that FSDP2 can shard it."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    stored = {"bnb_4bit_compute_dtype": torch.float32, "bnb_4bit_quant_storage": torch.float32}
    config = BitsAndBytesConfig(load_in_4bit=True, **stored)
    with TemporaryDirectory() as folder:
        # Not by save_pretrained, which writes in one process where there are several.
        model = tiny_model("llama", **cell.model)
        model.config.to_json_file(Path(folder, "config.json"), use_diff=False)
        save_file(model.state_dict(), Path(folder, "model.safetensors"), {"format": "pt"})
        return AutoModelForCausalLM.from_pretrained(folder, quantization_config=config)


def made(folder: Path, cell: Cell, engine: Engine, until: int = STEPS) -> PreferenceTrainer:
    """Return the trainer of a cell."""
    options = {
        "loss_type": cell.loss,
        "beta": 0.5,
        "per_device_train_batch_size": STEP // engine.processes // cell.accumulated,
        "gradient_accumulation_steps": cell.accumulated,
        "ddp_find_unused_parameters": False,
        "learning_rate": RATE,
        "optim": "sgd",
        "max_steps": until,
        "save_strategy": "steps" if cell.resumed else "no",
        "save_steps": STEPS // 2,
        "reference_cache_dir": str(folder / "store"),
    }
    if engine.lora:
        from peft import LoraConfig

        # Its factors are drawn anew: those of all processes must be those of the first.
        torch.manual_seed(0)
        options["peft_config"] = LoraConfig(
            r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=not cell.begun
        )
        options["learning_rate"] = 30 * RATE  # one of two factors begins as zeros
    rows, held_out = rows_of(cell.kind, cell.rows, 0), rows_of(cell.kind, 7, 1)
    options |= cell.options | engine.options
    unset_hf_deepspeed_config()  # of the trainer before; under ZeRO-3 models are made in parts
    if cell.other:
        options["ref_model"] = tiny_model("llama", seed=3)
    policy = str(own_policy(folder)) if engine.by_path else new_policy(cell)
    return trainer(folder / "run", rows, model=policy, eval_dataset=held_out, **options)


def train(folder: Path, cell: Cell, engine: Engine) -> dict[str, Any]:
    """Train a cell, save the model, and return what was seen."""
    trained = made(folder, cell, engine, STEPS // 2 if cell.resumed else STEPS)
    start = [it.detach().clone() for it in trained.model.parameters() if it.requires_grad]
    trained.train()
    losses = [entry["loss"] for entry in steps(trained)]
    if cell.resumed:
        trained = made(folder, cell, engine)
        trained.train(resume_from_checkpoint=True)
        losses = [entry["loss"] for entry in steps(trained)]
    sharded = engine.is_sharded(trained) if engine.is_sharded else False
    moved = None
    if engine.processes == 1:
        moving = (it for it in trained.model.parameters() if it.requires_grad)
        pairs = zip(moving, start, strict=True)
        moved = max(float((now - then).abs().max()) for now, then in pairs)
    evaluated, predicted = trained.evaluate(), trained.predict(trained.eval_dataset)
    trained.save_model(str(folder / "saved"))
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    rewards = predicted.predictions
    rewards = rewards if isinstance(rewards, tuple) else (rewards,)
    return {
        "world": world,
        "sharded": sharded,
        "moved": moved,
        "losses": losses,
        "eval": evaluated,
        "rewards": [part.tolist() for part in rewards],
    }


def main(folder: Path, engines: list[Engine]) -> int:
    """Train the cells of rows, and write what each gave; return the exit code."""
    before = dict(os.environ)
    cells = [(row, name) for row in engines for name in (*row.cells, *row.refusals)]
    for engine, name in cells:
        if engine.by_path:  # before the processes know each other: later only the first would save
            place = folder / engine.name / name.replace(" ", "-")
            new_policy(ALL_CELLS[name]).save_pretrained(own_policy(place))
    for engine, name in cells:
        place = folder / engine.name / name.replace(" ", "-")
        place.mkdir(parents=True, exist_ok=True)
        os.environ.update(ALL_CELLS[name].environment)
        try:
            result = train(place, ALL_CELLS[name], engine)
        except ValueError as error:  # a refusal, the same in each process
            result = {"refused": str(error)}
        except BaseException:
            traceback.print_exc()
            return 1
        for variable in ALL_CELLS[name].environment:
            os.environ.pop(variable)
        os.environ.update(before)
        if os.environ.get("RANK", "0") == "0":
            (place / "result.json").write_text(json.dumps(result))
    return 0


if __name__ == "__main__":
    apply_fsdp_on_cpus()
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        use_deepspeed_without_building()
    code = main(Path(sys.argv[1]), [(ENGINES | GPU_ENGINES)[name] for name in sys.argv[2:]])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # torch's gloo can deadlock when it is torn down: see run_ranks.py
