"""The order of training rows: random, but with the same mix of labels in every batch."""

from collections.abc import Iterator

import numpy as np
from datasets import Dataset
from torch.utils.data import Sampler

from prefopt.data.prepared import read_chunks


class MixedLabels(Sampler[int]):
    """Draws unpaired rows in random order, each stretch with the same mix of labels as the whole.

    The rows of each label are shuffled, and spread evenly, with jitter, over the epoch. A plain
    shuffle gives one batch of 4 in 23 one label only where a fifth of the rows has the other; KTO
    then sees nothing to compare.

    Args:
        desirable: Label of each row; (n,), bool.
        seed: Of the order; the same in all processes.
    """

    def __init__(self, desirable: np.ndarray, seed: int) -> None:
        self._desirable = np.asarray(desirable, dtype=bool)
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Have the next pass be that of an epoch, so that a run can be resumed."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._desirable)

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng((self._seed, self._epoch))
        places = np.empty(len(self._desirable))
        for label in (False, True):
            rows = generator.permutation(np.flatnonzero(self._desirable == label))
            jitter = generator.random(len(rows))
            places[rows] = (np.arange(len(rows)) + jitter) / max(len(rows), 1)
        yield from np.argsort(places, kind="stable").tolist()


def unpaired_labels(dataset: Dataset) -> np.ndarray | None:
    """Return the label of each row; (n,), bool; None if not all are unpaired, or all are alike."""
    labels = [chunk.flatten().to_numpy(False) for chunk in read_chunks(dataset, "desirable")]
    kinds = {kind for chunk in read_chunks(dataset, "kind") for kind in chunk.unique().to_pylist()}
    if kinds != {"unpaired"} or not labels:
        return None
    joined = np.concatenate(labels).astype(bool)
    return joined if len(joined) == len(dataset) and joined.any() and not joined.all() else None
