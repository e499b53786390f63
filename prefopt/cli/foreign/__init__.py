"""Configurations of other programs, converted to ours: LLaMA-Factory, Axolotl, alignment-handbook.

``prefopt train --config`` and ``prefopt convert-config`` read them by the same functions. A file is
of a program if it has keys that only that program has, and none of ours that it lacks.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefopt.cli.foreign import alignment_handbook, axolotl, llama_factory
from prefopt.cli.foreign.conversion import Conversion

__all__ = ["PROGRAMS", "convert", "meaning_of"]

PROGRAMS = (llama_factory, axolotl, alignment_handbook)


def convert(
    values: Mapping[str, Any], path: str | Path, loss: str | None = None
) -> Conversion | None:
    """Return the conversion of a file of another program; None if the file is ours.

    Args:
        values: What the file says.
        path: Where it is.
        loss: The loss of the command line, where it names one.

    Raises:
        ValueError: If a value cannot be read, such as a number that is none.

    Examples:
        >>> convert({"base_model": "m", "rl": "ipo", "learning_rate": 1e-6}, "x.yaml").program
        'Axolotl'
        >>> convert({"model": "m", "loss_type": "ipo"}, "x.yaml")
    """
    keys = set(values)
    found = [one for one in PROGRAMS if keys & one.MARKS and not keys & one.OURS]
    if len(found) != 1:
        return None
    try:
        made: Conversion = found[0].convert(values, Path(path).expanduser().parent, loss)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    elsewhere = {key: meaning_of(key) for key in made.unknown}
    made.lines = [
        line._replace(note=elsewhere.get("".join(line.keys)) or line.note) for line in made.lines
    ]
    return made


def meaning_of(key: str, dashes: str = "") -> str:
    """Return what a key of another program is here; nothing if none has that key.

    Args:
        key: As a user wrote it.
        dashes: What stands before an option of ours: nothing in a file.

    Examples:
        >>> meaning_of("lora_rank"), meaning_of("colour")
        ("LLaMA-Factory's lora_rank is lora_r here", '')
    """
    for program in PROGRAMS:
        spec = program.KEYS.get(key)
        if spec is None:
            continue
        if spec.outcome == "nothing":
            return f"{program.PROGRAM}'s {key} changes nothing here: {spec.note}; leave it out"
        if spec.to:
            ours = ", ".join(dashes + part.strip() for part in spec.to.split(","))
            note = f" ({spec.note})" if spec.note else ""
            return f"{program.PROGRAM}'s {key} is {ours} here{note}"
        if spec.note:
            return f"{program.PROGRAM}'s {key} is not there: {spec.note}"
    return ""
