"""A process that fills a store with a tiny model, for tests that kill it or start two of it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset

from prefopt.engine import Scorer
from prefopt.reference import fingerprint_of
from prefopt.reference.fill import CompletionIndex, Filler, FillOptions
from prefopt.reference.live import ReferenceModel
from prefopt.reference.store.logp_store import FileStore, open_database
from tests.models import VOCABULARY, tiny_model

ROWS_PER_BATCH = 2


def dataset_of(rows: int) -> Dataset:
    """Return prepared rows of random tokens, some longer than a piece."""
    random = np.random.default_rng(0)

    def text(most: int) -> list[int]:
        return random.integers(3, VOCABULARY, random.integers(1, most)).tolist()

    return Dataset.from_dict(
        {
            "prompt_ids": [text(20) for _ in range(rows)],
            "completion_ids": [[text(40), text(40)] for _ in range(rows)],
        }
    )


def open_store(folder: Path) -> tuple[FileStore, Scorer]:
    """Return a store in a folder for the tiny model, and a scorer of that."""
    model = tiny_model("llama")
    database = open_database(folder)
    assert database is not None
    digest, facts = fingerprint_of(model)
    return FileStore(database, digest, facts, {"pid": "any"}), Scorer(model)


def fill(
    folder: Path, rows: int, wait: Callable[[], object], tell: Callable[[str, int], object]
) -> None:
    """Fill a store, waiting after each commit.

    Args:
        folder: Of the store.
        rows: Of the data.
        wait: Called for that.
        tell: Told ``("ready", 0)``, then ``("kept", n)`` after each commit of n completions, then
            ``("computed", n)``.
    """
    torch.set_num_threads(1)
    store, scorer = open_store(folder)
    keep = store.add

    def keep_and_tell(values):
        keep(values)
        tell("kept", len(values))
        wait()

    store.add = keep_and_tell
    dataset = dataset_of(rows)
    options = FillOptions(rows_per_batch=ROWS_PER_BATCH, show_progress=False)
    filler = Filler(store, lambda: ReferenceModel(scorer), options)
    tell("ready", 0)
    tell("computed", filler.fill(dataset, CompletionIndex.of(dataset, with_kl=False)))
    store.database.close()
