"""One side of the QLoRA comparison: a command line whose trainer waits at each step's border.

    python qlora_worker.py JOB.json

The job names the side and the arguments of ``prefopt train`` or ``trl dpo``, which are run as their
console scripts run them. The parent speaks to it as to ``throughput_worker.py``.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from throughput_worker import Channel, Steps
from transformers import trainer as transformers_trainer


class LoggedSteps(Steps):
    """Steps with the loss that was logged; transformers logs a step after it has ended."""

    _logged: float | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say what is trained, then wait."""
        weights = dict(kwargs["model"].named_parameters())
        trained = {name: it for name, it in weights.items() if it.requires_grad}
        self.hello |= {
            "trained_parameters": sum(it.numel() for it in trained.values()),
            "trained_dtype": sorted({str(it.dtype) for it in trained.values()}),
            "quantised": sum(it.dtype == torch.uint8 for it in weights.values()),
            "optimiser": str(args.optim.value),
        }
        super().on_train_begin(args, state, control, **kwargs)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the record of a step, with the loss of the one before."""
        if self._logged is not None:
            self.add("loss", self._logged)
        super().on_step_end(args, state, control, **kwargs)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Keep the loss for the next record."""
        if "loss" in (logs or {}):
            self._logged = float(logs["loss"])


def main() -> None:
    """Run the command line in the file."""
    channel = Channel()
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(job["threads"])
    transformers_trainer.DEFAULT_CALLBACKS.append(LoggedSteps(channel, job["device"], {}))
    if job["side"] == "prefopt":
        from prefopt.cli import main as run

        sys.exit(run(["train", *job["argv"]]))
    from trl.scripts import dpo

    parsed = dpo.make_parser().parse_args_and_config(job["argv"], fail_with_unknown_args=True)
    dpo.main(*parsed)


if __name__ == "__main__":
    main()
