"""Stands in for ``python -m prefopt`` where a test is about the matrix, not about training.

``train`` takes ``STAND_IN_STEP_S`` seconds a step and writes a model that is a function of its
options; ``eval`` writes numbers that are a function of the model. Each call is noted in a file.
"""

import json
import os
import random
import sys
import time
from pathlib import Path


def train(options: dict) -> None:
    output = Path(options["output_dir"])
    output.mkdir(parents=True, exist_ok=True)
    for step in range(options["max_steps"]):
        time.sleep(float(os.environ.get("STAND_IN_STEP_S", "0")))
        sys.stderr.write(f"\r 50%|## | {step + 1}/{options['max_steps']} [00:00<00:00]")
        sys.stderr.flush()
    places = ("output_dir", "dataset", "eval_datasets")
    told = {name: value for name, value in options.items() if name not in places}
    (output / "model.json").write_text(json.dumps(told, sort_keys=True))
    history = [{"step": step, "loss": 1 / step, "num_tokens": 100.0 * step} for step in (1, 2)]
    (output / "trainer_state.json").write_text(json.dumps({"log_history": history}))


def evaluate(options: dict) -> None:
    output = Path(options["output_dir"])
    output.mkdir(parents=True, exist_ok=True)
    model = Path(options["model"]) / "model.json"
    told = json.loads(model.read_text()) if model.exists() else {}
    rng = random.Random(json.dumps(told, sort_keys=True))
    skill = {"dpo": 1.0, "ipo": 0.9, "orpo": -0.5}.get(told.get("loss_type"), 0.0)
    rows = [rng.gauss(skill, 1) for _ in Path(options["dataset"]).read_text().splitlines()]
    share = sum(margin > 0 for margin in rows) / len(rows)
    fixed = {"rejected_reward": 0.0, "chosen_tokens": 5, "rejected_tokens": 4}
    pairs = [{"row": i, "chosen_reward": m, **fixed} for i, m in enumerate(rows)]
    samples = [
        {"row": 0, "prompt": "p", "completion": str(told.get("loss_type")), "temperature": 1.0},
    ]
    rate = {"against": "start", "temperature": 0.0, "rate": [0.5, 0.4, 0.6, 9]}
    (output / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    (output / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    found = {
        "metrics": {"accuracy": [share, share - 0.1, share + 0.1, len(rows)]},
        "data_baselines": {"longer": [0.6, 0.5, 0.7, len(rows)]},
        "win_rates": [rate],
    }
    (output / "evaluation.json").write_text(json.dumps(found))


def main(argv: list[str]) -> None:
    import yaml

    options = yaml.safe_load(Path(argv[argv.index("--config") + 1]).read_text())
    with Path(os.environ["STAND_IN_CALLS"]).open("a") as calls:
        calls.write(f"{argv[1]} {Path(options['output_dir']).parent.name}\n")
    place = "/".join(Path(options["output_dir"]).parts[-3:-1])
    if os.environ.get("STAND_IN_FAILS", "nothing") in place:
        sys.exit("Traceback:\nprefopt: error: this one fails")
    trains = dict.fromkeys(("train", "reward_model", "rl"), train)
    measures = dict.fromkeys(("eval", "measure_reward_model", "best_of_n"), evaluate)
    {**trains, **measures, "cache": lambda options: None}[argv[1]](options)


if __name__ == "__main__":
    main(sys.argv[1:])
