"""Whether a store is right: intact, by its checksums, and correct, by computing a sample again."""

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from prefopt.reference.fill import FILL_TOKENS, CompletionIndex, score_completions
from prefopt.reference.live import ReferenceModel
from prefopt.reference.store.database import Database, Floats
from prefopt.reference.store.logp_store import LogpStore
from prefopt.reference.store.maintain import ReferenceInfo, entries_of, references_of

# Nats that a token's log-prob may differ by when it is computed in another place, with other
# neighbours, kernels or versions. Float32 rounds logits of tens by 1e-5 and adds up some hundred
# such errors; TF32, where it is on, is worse and is meant to be noticed. Half precision keeps 11
# bits (float16) or 8 (bfloat16) of them.
_TOLERANCES = {"float64": 1e-3, "float32": 1e-3, "float16": 0.1}
_HALF_TOLERANCE = 0.5  # bfloat16, and whatever is quantised

_NAMES_OF_AUTOCAST = {"fp16": "float16", "bf16": "bfloat16"}

# What a fingerprint is made of, and how two are told apart for people.
_PARTS = (
    "weights", "config", "class", "quantization", "adapters", "scalings", "autocast", "engine"
)  # fmt: skip


# Intact -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Integrity:
    """What reading all of a store has shown.

    Attributes:
        completions: How many were read.
        damaged: Those whose values do not match their checksum, by fingerprint.
        problems: What SQLite says of the file, and what could not be read at all.
    """

    completions: int
    damaged: Mapping[str, int]
    problems: tuple[str, ...]

    @property
    def is_intact(self) -> bool:
        """Whether nothing is wrong."""
        return not self.damaged and not self.problems


def check_store(database: Database) -> Integrity:
    """Read all of a store: the structure of the file, and each value against its checksum."""
    problems = _problems_of_file(database)
    damaged: dict[str, int] = {}
    read = 0
    try:
        references = references_of(database)
    except sqlite3.DatabaseError as error:
        return Integrity(0, {}, (*problems, f"the references cannot be read: {error}"))
    for info in references:
        try:
            for keys in entries_of(database, info.number):
                bad = sum(not _is_readable(database, info, entry.key) for entry in keys)
                read += len(keys)
                if bad:
                    damaged[info.fingerprint] = damaged.get(info.fingerprint, 0) + bad
        except sqlite3.DatabaseError as error:
            problems.append(f"not all keys of {info.fingerprint[:12]} can be read: {error}")
    return Integrity(read, damaged, tuple(problems))


def _problems_of_file(database: Database) -> list[str]:
    try:
        rows = database.connection.execute("PRAGMA integrity_check").fetchall()
    except sqlite3.DatabaseError as error:
        return [str(error)]
    return [str(text) for (text,) in rows if text != "ok"]


def _is_readable(database: Database, info: ReferenceInfo, key: bytes) -> bool:
    try:
        return database.get(info.number, info.fingerprint, key) is not None
    except sqlite3.DatabaseError:
        return False


# Correct ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """Stored log-probs beside those that were computed again.

    Attributes:
        completions: That were compared.
        tokens: Of these.
        known: Completions of the data that the store has.
        unknown: Those that it does not have.
        largest: Difference of a token's log-prob; nats.
        mean: The same, mean over tokens.
        tolerance: What ``largest`` may be; nats.
    """

    completions: int
    tokens: int
    known: int
    unknown: int
    largest: float
    mean: float
    tolerance: float

    @property
    def agrees(self) -> bool:
        """Whether no difference is more than rounding."""
        return self.largest <= self.tolerance


def tolerance_of(facts: Mapping[str, Any]) -> float:
    """Return what a token's log-prob may differ by between two computations; nats."""
    if facts.get("quantization"):
        return _HALF_TOLERANCE
    autocast = str(facts.get("autocast", "none"))
    name = str(facts.get("dtype")) if autocast == "none" else autocast
    return _TOLERANCES.get(_NAMES_OF_AUTOCAST.get(name, name), _HALF_TOLERANCE)


def recompute(
    datasets: Sequence[Dataset],
    store: LogpStore,
    reference: ReferenceModel,
    context: Callable[[], Any] = nullcontext,
    *,
    with_kl: bool,
    sample: int,
    seed: int,
    tolerance: float,
) -> Comparison:
    """Compute a random sample of stored log-probs again, and compare.

    Each completion is scored with a prompt of its own, whatever it shared when it was stored.
    ``sample`` is how many completions at most, ``tolerance`` what a token's log-prob may differ by,
    in nats.
    """
    wanted = [CompletionIndex.of(dataset, with_kl) for dataset in datasets]
    known = [np.flatnonzero(~part.missing(store, usable=False)) for part in wanted]
    count = sum(map(len, known))
    chosen = np.random.default_rng(seed).permutation(count)[:sample]
    starts = np.cumsum([0, *map(len, known)])[:-1]
    differences: list[Floats] = []  # of each token's log-prob; (n,) each, nats
    for dataset, part, indices, start in zip(datasets, wanted, known, starts, strict=True):
        here = chosen[(chosen >= start) & (chosen < start + len(indices))] - start
        for groups in part.batches(np.sort(indices[here]).reshape(-1, 1), FILL_TOKENS):
            fresh = score_completions(part.examples(dataset, groups), reference, context)
            stored = store.look_up(part.keys_at(np.concatenate(groups)))
            differences += [
                _difference(old, new)
                for old, new in zip(stored, fresh, strict=True)
                if old is not None
            ]
    joined = np.concatenate([*differences, np.zeros(0, dtype=np.float32)])
    return Comparison(
        completions=len(differences),
        tokens=len(joined),
        known=count,
        unknown=sum(map(len, wanted)) - count,
        largest=float(joined.max(initial=0.0)),
        mean=float(joined.mean(dtype=np.float64)) if len(joined) else 0.0,
        tolerance=tolerance,
    )


def _difference(stored: Floats, now: Floats) -> Floats:
    """Return how much two rows of log-probs differ; infinite where one of them is not a number."""
    with np.errstate(invalid="ignore"):
        difference = np.where(stored == now, np.float32(0), np.abs(stored - now))
    return np.nan_to_num(difference, nan=np.inf, posinf=np.inf)


def nearest_reference(
    facts: Mapping[str, Any], references: Sequence[ReferenceInfo]
) -> tuple[ReferenceInfo, list[str]] | None:
    """Return the reference of a store that differs in least from some facts, and in what."""
    filled = [info for info in references if info.completions]
    if not filled:
        return None
    parts = {
        info.number: [name for name in _PARTS if info.facts.get(name) != facts.get(name)]
        for info in filled
    }
    nearest = min(filled, key=lambda info: len(parts[info.number]))
    return nearest, parts[nearest.number]
