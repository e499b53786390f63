"""The name of a text: what a reference log-prob is stored and found under, beside the reference."""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

KEY_BYTES = 16


def completion_key(prompt_ids: NDArray[np.int64], completion_ids: NDArray[np.int64]) -> bytes:
    """Return a digest of a completion under its prompt; 16 bytes.

    Row numbers, masks, losses and batch sizes have no part in it.

    Args:
        prompt_ids: Token ids; (m,). Their number is digested too, so that the border between
            prompt and completion matters.
        completion_ids: Token ids; (n,).
    """
    digest = blake2b(len(prompt_ids).to_bytes(8, "little"), digest_size=KEY_BYTES)
    digest.update(np.ascontiguousarray(prompt_ids, dtype="<i8").tobytes())
    digest.update(np.ascontiguousarray(completion_ids, dtype="<i8").tobytes())
    return digest.digest()


def completion_keys(
    prompt_ids: NDArray[np.int64], completions: Sequence[NDArray[np.int64]]
) -> list[bytes]:
    """Return the key of each completion of a prompt."""
    return [completion_key(prompt_ids, completion) for completion in completions]
