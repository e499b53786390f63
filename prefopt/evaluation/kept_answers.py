"""Answers that many evaluations need, kept on disk: a start answers once, not once for each policy.

They lie beside the store of reference log-probs, in files that may be deleted at any time. A file
is named by what decides its answers: the model's fingerprint, the prompts, how they are drawn, and
the versions of what computes.
"""

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from prefopt.versions import versions

__all__ = ["kept_answers"]

_FOLDER = "answers"
_PACKAGES = ("torch", "transformers")


def kept_answers(
    folder: Path | None,
    model: str | None,
    prompt_ids: Sequence[Sequence[int]],
    settings: dict[str, Any],
    write: Callable[[], list[str]],
) -> list[str]:
    """Return the answers that are kept, or write them and keep them.

    Args:
        folder: Of the store; None to keep nothing.
        model: What tells the model from all others; None to keep nothing.
        prompt_ids: Token ids of the prompts.
        settings: How answers are drawn.
        write: Returns an answer to each prompt.
    """
    if folder is None or model is None:
        return write()
    facts = {
        "model": model,
        "prompts": [[int(token) for token in ids] for ids in prompt_ids],
        "settings": settings,
        "versions": versions(*_PACKAGES),
    }
    digest = blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16).hexdigest()
    path = folder / _FOLDER / f"{digest}.json"
    known = _read(path, len(prompt_ids))
    if known is None:
        known = write()
        _save(path, known)
    return known


def _read(path: Path, count: int) -> list[str] | None:
    """Return the answers of a file; None if there is none, or it is not whole."""
    try:
        answers = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(answers, list) and len(answers) == count
    return answers if whole and all(isinstance(text, str) for text in answers) else None


def _save(path: Path, answers: list[str]) -> None:
    """Write answers to a file, as a whole or not at all; where it cannot be written, leave it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, suffix=".part", delete=False
        ) as file:
            json.dump(answers, file, ensure_ascii=False)
        os.replace(file.name, path)
    except OSError:
        return
