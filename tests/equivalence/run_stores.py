"""Fill stores of reference log-probs and write what they hold; started by the tests beside it."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from prefopt.data.prepared import completion_keys, read_examples
from prefopt.reference import Fingerprint, default_folder
from prefopt.reference.live import ReferenceModel
from prefopt.reference.store.database import Database
from prefopt.reference.store.logp_store import FILE_NAME
from tests.models import tiny_rows
from tests.runs import trainer

scored = []
score = ReferenceModel.score


def counted(self, batch, *args, **options):
    """Score, and remember how many completions."""
    scored.append(len(batch.lengths))
    return score(self, batch, *args, **options)


def fill(folder: Path, cache: Path) -> dict[str, Any]:
    """Make a trainer twice, and return what this process did and what its store then holds."""
    os.environ["PREFOPT_CACHE"] = str(cache)
    scored.clear()
    rows = tiny_rows(12)
    first = trainer(folder, rows, precompute_ref_batch_size=2)
    mine = sum(scored)
    again = trainer(folder, rows)
    fingerprint: Fingerprint = first.references.fingerprint
    keys = [
        key
        for example in read_examples(first.train_dataset, with_kl=False)
        for key in completion_keys(example.prompt_ids, example.completion_ids)
    ]
    # Through a file opened anew: what lies on the disk, and not in this process.
    database = Database(default_folder() / FILE_NAME)
    number = database.reference(fingerprint.digest)
    return {
        "fingerprint": fingerprint.digest,
        "scored": mine,
        "again": sum(scored) - mine,
        "computed": [first.references.computed, again.references.computed],
        "values": [database.get(number, fingerprint.digest, key).tolist() for key in keys],
    }


def main(folder: Path) -> None:
    """Fill a store alone; of two processes one together, and then one each."""
    ReferenceModel.score = counted  # here: pytest imports this file too, for its doctests
    processes, rank = (int(os.environ.get(it, n)) for it, n in (("WORLD_SIZE", "1"), ("RANK", "0")))
    for name in ("alone",) if processes == 1 else ("one", "own"):
        cache = folder / (f"{name}{rank}" if name == "own" else name)
        result = fill(folder / name / "run", cache)
        (folder / f"{processes}-{name}-{rank}.json").write_text(json.dumps(result))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    sys.stdout.flush()
    os._exit(0)  # as in run_ranks.py


if __name__ == "__main__":
    main(Path(sys.argv[1]))
