"""Checkpoints: written so that a half one is never taken for whole, and chosen to go on from.

While a checkpoint is written it holds a file that says so. When everything is there, a list of its
files, with size and digest of each, is written last, and that file goes. A checkpoint without such
a list (of an earlier version, or of TRL) is looked at file by file.
"""

import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from prefopt.reference.processes import Processes

MANIFEST_FILE = "prefopt_checkpoint.json"
UNFINISHED_FILES = ("_prefopt_unfinished", "checkpoint-is-incomplete.txt")  # ours, transformers'
_ARGUMENTS = "training_args.bin"
STATE_FILE = "trainer_state.json"
REFERENCE_FILE = "prefopt_reference.json"

# What is in a checkpoint for people and for later use: training does not go on from it.
_NOT_READ = (
    "README.md",
    _ARGUMENTS,
    "generation_config.json",
    "*token*.json",
    "vocab*",
    "merges.txt",
    "chat_template*",
    "additional_chat_templates/*",
    "*processor_config.json",
    "zero_to_fp32.py",
    MANIFEST_FILE,
    *UNFINISHED_FILES,
)
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
    "*/adapter_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "adapter_model.bin",
    "pytorch_model_fsdp_*/*",
    "global_step*/*",
)
# What begins anew where it is missing, and what that means.
_ANEW = {
    "optimizer.pt": ("optimizer.pt", "optimizer.bin", "optimizer_*/*", "global_step*/*"),
    "scheduler.pt": ("scheduler.pt", "global_step*/*"),
    "rng_state.pth": ("rng_state*.pth",),
}

# Files up to this size are digested whole, and of larger ones so many pieces of a megabyte, which
# finds a file that was not written to its end, or not at all; a few bytes that rot it may miss.
_WHOLE = 64 * 2**20
_PIECES = 16
_PIECE = 2**20


class CheckpointError(OSError):
    """A model or a checkpoint could not be written.

    Attributes:
        exit_code: That of a command that ends with it.
    """

    exit_code = 1


# Writing ------------------------------------------------------------------------------------------


class CheckpointWriter:
    """Writes checkpoints so that a half one is never taken for whole.

    Args:
        processes: Those that write one together.
        should_save: Whether this process writes what all have in common.

    Attributes:
        at_work: Whether a checkpoint is being written.
    """

    def __init__(self, processes: Processes, should_save: bool) -> None:
        self._processes = processes
        self._should_save = should_save
        self.at_work = False

    @contextmanager
    def writing(self, folder: Path, args: Any, state: Any) -> Iterator[None]:
        """Write a checkpoint inside; older ones are deleted when it is whole.

        Args:
            folder: That of the checkpoint; removed if it cannot be written.
            args: Those of the run. Transformers, which deletes and uploads too soon, is told to do
                neither.
            state: Of the run; says which checkpoint is the best.

        Raises:
            CheckpointError: If it cannot be written.
        """
        limit, pushes = args.save_total_limit, args.push_to_hub
        args.save_total_limit, args.push_to_hub = None, False
        self.at_work = True
        try:
            with told_if_unwritten(folder):
                if self._should_save:
                    _begin(folder)
                yield
                args.save_total_limit, args.push_to_hub = limit, pushes
                self._processes.all(None)  # all have written their part
                if self._should_save:
                    if (folder / _ARGUMENTS).exists():
                        torch.save(args, folder / _ARGUMENTS)  # with their limit
                    write_manifest(folder)
                    delete_older(folder.parent, limit, folder, state.best_model_checkpoint)
        except CheckpointError:
            if self._should_save:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            args.save_total_limit, args.push_to_hub = limit, pushes
            self.at_work = False


@contextmanager
def told_if_unwritten(folder: Path) -> Iterator[None]:
    """Say in one sentence that what is written inside could not be, and from where to go on.

    Raises:
        CheckpointError: In place of what the libraries raise.
    """
    try:
        yield
    except CheckpointError:
        raise
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        if isinstance(error, RuntimeError) and not re.search(
            r"PytorchStreamWriter|inline_container|No space left", reason
        ):
            raise
        whole = _whole_beside(folder if is_checkpoint(folder) else folder / "none")
        raise CheckpointError(
            f"cannot write {folder}: {reason[:300]}. "
            + (
                "No checkpoint was written before"
                if whole == "none"
                else f"Make room, and resume from {whole}, which is whole"
            )
        ) from error


def _begin(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / UNFINISHED_FILES[0]).touch()
    (folder / MANIFEST_FILE).unlink(missing_ok=True)


def write_manifest(folder: Path) -> None:
    """Say that a checkpoint is whole: list what training goes on from, as it is on the disk."""
    files = {name: _facts(folder / name, sync=True) for name in _files_read(folder)}
    temporary = folder / f"{UNFINISHED_FILES[0]}.json"
    with temporary.open("w", encoding="utf-8") as file:
        json.dump({"version": 1, "files": files}, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / MANIFEST_FILE)
    (folder / UNFINISHED_FILES[0]).unlink(missing_ok=True)


def _facts(file: Path, sync: bool = False) -> dict[str, Any]:
    size = file.stat().st_size
    digest = sha256()
    with file.open("rb") as content:
        if sync:
            os.fsync(content.fileno())
        if size <= _WHOLE:
            digest.update(content.read())
        else:
            for piece in range(_PIECES):
                content.seek(piece * (size - _PIECE) // (_PIECES - 1))
                digest.update(content.read(_PIECE))
    return {"bytes": size, "sha256": digest.hexdigest()}


def _files_read(folder: Path) -> list[str]:
    """Return the files of a checkpoint from which training goes on, by their path in it."""
    names = [
        path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()
    ]
    return [name for name in names if not _matches(name, _NOT_READ) and name[0] not in "._"]


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def delete_older(folder: Path, keep: int | None, newest: Path, best: str | None) -> None:
    """Delete the oldest checkpoints beyond a number, neither the newest nor the best.

    Called when the newest is whole: transformers deletes before it knows.

    Args:
        folder: Where they are.
        keep: How many remain; None or 0 for all.
        newest: The one that was just written.
        best: The folder of the best; None if there is none.
    """
    if not keep:
        return
    kept = {newest.resolve(), *([Path(best).resolve()] if best else [])}
    # By their time: a run begun anew in the same folder starts again from low numbers.
    others = sorted(
        (path for path in _checkpoints(folder) if path.resolve() not in kept),
        key=lambda path: (int(path.stat().st_mtime), _step_of(path)),
    )
    for path in others[: max(len(others) + len(kept) - keep, 0)]:
        shutil.rmtree(path, ignore_errors=True)


# Choosing -----------------------------------------------------------------------------------------


def is_checkpoint(folder: str | Path) -> bool:
    """Whether a folder is one from which training goes on, by its name."""
    return re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-\d+", Path(folder).name) is not None


def _step_of(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def _checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, the newest first."""
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if is_checkpoint(path) and path.is_dir())
    return sorted(found, key=_step_of, reverse=True)


def _whole_beside(folder: Path) -> str:
    """Return the newest whole checkpoint beside a folder, for people."""
    others = (path for path in _checkpoints(folder.parent) if path.resolve() != folder.resolve())
    return str(next((path for path in others if problem_of(path) is None), "none"))


def checkpoint_folder(
    resume_from_checkpoint: Any, output_dir: str, say: Callable[[str], None] = lambda text: None
) -> Path | None:
    """Return the folder from which training goes on; None if it begins.

    Args:
        resume_from_checkpoint: As ``Trainer.train`` takes it: True means the newest whole one.
        output_dir: Where checkpoints are.
        say: Told of checkpoints that are passed over, and of what one lacks.

    Raises:
        ValueError: If there is none, or it is broken.
    """
    if resume_from_checkpoint is None or resume_from_checkpoint is False:
        return None
    if resume_from_checkpoint is True:
        folder = _newest_whole(Path(output_dir), say)
    else:
        folder = _named(resume_from_checkpoint)
    if lacking := _lacking(folder):
        say(
            f"prefopt: the checkpoint {folder} has no {' and no '.join(lacking)}: "
            f"{_effect(lacking)} anew, so the run ends elsewhere than an undisturbed one "
            "(save_only_model leaves them out)"
        )
    return folder


def _named(asked: Any) -> Path:
    if not isinstance(asked, str | Path) or not Path(asked).is_dir() or not str(asked):
        raise ValueError(f"there is no checkpoint {asked!r} to resume from: it is no folder")
    folder = Path(asked)
    if not any(folder.iterdir()):
        raise ValueError(f"there is no checkpoint in {folder} to resume from: it is empty")
    problem = problem_of(folder)
    if problem is not None:
        whole = _whole_beside(folder)
        instead = (
            "there is no whole one beside it" if whole == "none" else f"resume from {whole} instead"
        )
        raise ValueError(f"the checkpoint {folder} is broken: {problem}; {instead}")
    return folder


def _newest_whole(output_dir: Path, say: Callable[[str], None]) -> Path:
    """Return the newest whole checkpoint, if need be one that lacks what can begin anew."""
    lacking, broken = [], []
    for folder in _checkpoints(output_dir):
        problem = problem_of(folder)
        if problem is not None:
            broken.append(f"{folder.name}: {problem}")
            say(f"prefopt: the checkpoint {folder} is passed over: {problem}")
        elif _lacking(folder):
            lacking.append(folder)
        else:
            for other in lacking:
                without = " and no ".join(_lacking(other))
                say(f"prefopt: the checkpoint {other} is passed over: it has no {without}")
            return folder
    if lacking:
        return lacking[0]
    if broken:
        raise ValueError(
            f"there is no whole checkpoint in {output_dir} to resume from: {'; '.join(broken)}"
        )
    raise ValueError(f"there is no checkpoint in {output_dir} to resume from")


def _lacking(folder: Path) -> list[str]:
    """Return what a checkpoint lacks that begins anew without it."""
    names = _files_read(folder)
    return [
        part
        for part, patterns in _ANEW.items()
        if not any(_matches(name, patterns) for name in names)
    ]


def _effect(lacking: list[str]) -> str:
    if lacking == ["rng_state.pth"]:
        return "random numbers begin"
    return "the optimiser and the schedule of the learning rate begin"  # both, without either


def problem_of(folder: Path) -> str | None:
    """Return why training cannot go on from a checkpoint; None if it is whole."""
    try:
        if not any(folder.iterdir()):
            return "it is empty"
        if any((folder / name).exists() for name in UNFINISHED_FILES):
            return "it was not written to its end"
        if (folder / MANIFEST_FILE).exists():
            return _differing(folder) or _unreadable(folder)
        return _unreadable(folder)
    except OSError as error:
        return f"it cannot be read ({error})"


def _differing(folder: Path) -> str | None:
    """Return how a checkpoint differs from the list of its files."""
    try:
        files = json.loads((folder / MANIFEST_FILE).read_bytes())["files"]
        listed = {str(name): facts for name, facts in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST_FILE} cannot be read"
    for name, facts in listed.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        size = file.stat().st_size
        if size != facts["bytes"]:
            return f"{name} has {size:,} bytes of {facts['bytes']:,}"
        if _facts(file) != facts:
            return f"{name} is not what was written"
    return None


def _unreadable(folder: Path) -> str | None:
    """Return which file of a checkpoint is missing or cannot be read; None if all can."""
    names = _files_read(folder)
    if STATE_FILE not in names:
        return f"{STATE_FILE} is missing"
    if not any(_matches(name, _WEIGHTS) for name in names):
        return "the weights are missing"
    for name in names:
        problem = _file_problem(folder / name)
        if problem is not None:
            return f"{name} {problem}"
    adapter_config = "adapter_config.json"
    if any(name.startswith("adapter_model") for name in names) and adapter_config not in names:
        return f"{adapter_config} is missing"
    return None


def _file_problem(file: Path) -> str | None:
    """Return what is wrong with a file, by what kind of file it is."""
    if file.stat().st_size == 0:
        return "is empty"
    if file.suffix == ".json":
        return _json_problem(file)
    if file.suffix == ".safetensors":
        return _safetensors_problem(file)
    if file.suffix in (".pt", ".pth", ".bin", ".distcp") and not zipfile.is_zipfile(file):
        with file.open("rb") as content:  # an old format of torch has no end that could be missed
            return None if content.read(1) == b"\x80" else "cannot be read: it was cut or damaged"
    return None


def _json_problem(file: Path) -> str | None:
    try:
        content = json.loads(file.read_bytes())
    except ValueError:
        return "is not JSON: it was cut or damaged"
    needed = {
        STATE_FILE: {"global_step", "log_history"},
        REFERENCE_FILE: {"description", "fingerprint", "facts"},
    }.get(file.name, set())
    if not isinstance(content, dict) or needed - content.keys():
        return f"does not hold what it should ({', '.join(sorted(needed)) or 'an object'})"
    if file.name.endswith(".index.json"):
        for shard in sorted(set(content.get("weight_map", {}).values())):
            if not (file.parent / shard).is_file():
                return f"names {shard}, which is missing"
    return None


def _safetensors_problem(file: Path) -> str | None:
    """Return whether a file of weights ends where its head says."""
    size = file.stat().st_size
    with file.open("rb") as content:
        length = int.from_bytes(content.read(8), "little")
        if length > size - 8:
            return "was cut or damaged"
        try:
            head = json.loads(content.read(length))
            ends = [its["data_offsets"][1] for name, its in head.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return "was damaged"
    wanted = 8 + length + max(ends, default=0)
    return None if size == wanted else f"has {size:,} bytes of {wanted:,}"


def agreed_folder(
    resume_from_checkpoint: Any,
    output_dir: str,
    processes: Processes,
    say: Callable[[str], None] = lambda text: None,
) -> Path | None:
    """Return what ``checkpoint_folder`` does in the main process, in all processes.

    Raises:
        ValueError: In all, if there is none.
    """
    found: Any = None
    if processes.is_main:
        try:
            found = checkpoint_folder(resume_from_checkpoint, output_dir, say)
        except ValueError as error:
            found = error
    found = processes.all(found)[0]
    if isinstance(found, ValueError):
        raise found
    return found  # type: ignore[no-any-return] # a Path or None
