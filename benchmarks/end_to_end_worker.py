"""One command line of ``end_to_end.py``, run as its console script runs it, and timed.

python end_to_end_worker.py JOB.json
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers import trainer as transformers_trainer


class Times(TrainerCallback):
    """Keeps the moments at which training begins, a step ends, and training ends.

    Args:
        found: Where to keep them.
    """

    def __init__(self, found: dict[str, Any]) -> None:
        self.found = found

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the moment, and what is trained."""
        weights = dict(kwargs["model"].named_parameters())
        self.found["trained"] = sum(it.numel() for it in weights.values() if it.requires_grad)
        self.found["optimiser"] = str(args.optim.value)
        self.found["begin"] = time.time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the moment."""
        self.found.setdefault("steps", []).append(time.time())

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Keep the loss."""
        if "loss" in (logs or {}):
            self.found.setdefault("losses", []).append(float(logs["loss"]))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the moment."""
        self.found["end"] = time.time()


def main() -> None:
    """Run the command line, and write what was found when its model is saved."""
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(job["threads"])
    found: dict[str, Any] = {}
    transformers_trainer.DEFAULT_CALLBACKS.append(Times(found))
    if job["side"] == "prefopt":
        from prefopt.cli import main as run

        if code := run(["train", *job["argv"]]):
            sys.exit(code)
    else:
        from trl.scripts import dpo

        dpo.main(*dpo.make_parser().parse_args_and_config(job["argv"]))
    found["saved"] = time.time()
    found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    Path(job["found"]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
