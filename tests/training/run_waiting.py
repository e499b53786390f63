"""Two processes that wait for each other longer than a collective may take; see test_waiting.py."""

import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from prefopt.training.launch import Launch
from prefopt.training.waiting import first_of_node, meet
from tests.models import tiny_rows
from tests.runs import trainer

LIMIT_S = 4


def main(folder: Path) -> None:
    """Prepare data and fill a store, each longer in one process than a collective may wait."""
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", timeout=timedelta(seconds=LIMIT_S))
    assert dist.get_world_size() == 2
    order = folder / "order.txt"
    with first_of_node(rank == 0):
        if rank == 0:
            time.sleep(2 * LIMIT_S)
            order.write_text("first\n")
        else:
            order.write_text(order.read_text() + "second\n")
    assert order.read_text() == "first\nsecond\n"
    time.sleep(2 * LIMIT_S * rank)
    meet()

    run = trainer(folder / "run", None, eval_dataset=tiny_rows(8), ddp_timeout=LIMIT_S)
    assert isinstance(run._launch, Launch)
    scored = run.scorer.score

    def slowly(*given, **options):
        time.sleep(2 * LIMIT_S * rank)
        return scored(*given, **options)

    run.scorer.score = slowly
    run._reference.serve(("new", run._run.data.prepare(tiny_rows(6, seed=3), "new")))
    assert run.references is not None
    assert run.references.computed == 16 + 12
    run.scorer.score = scored
    (folder / f"done{rank}").touch()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)  # torch's gloo can deadlock when it is torn down: see run_ranks.py
