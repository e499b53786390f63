"""Fill a store of reference log-probs and write what it holds; started by the tests beside it."""

import json
import os
import sys
from pathlib import Path

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


def main(folder: Path, stores: str) -> None:
    """Make a trainer twice, and write what this process did and what its store then holds."""
    ReferenceModel.score = counted  # here: pytest imports this file too, for its doctests
    rank = int(os.environ.get("RANK", "0"))
    os.environ["PREFOPT_CACHE"] = str(folder / (stores if stores == "one" else f"own{rank}"))
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
    result = {
        "fingerprint": fingerprint.digest,
        "scored": mine,
        "again": sum(scored) - mine,
        "computed": [first.references.computed, again.references.computed],
        "values": [database.get(number, fingerprint.digest, key).tolist() for key in keys],
    }
    Path(folder, f"rank{rank}.json").write_text(json.dumps(result))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    sys.stdout.flush()
    os._exit(0)  # as in run_ranks.py


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
