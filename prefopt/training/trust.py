"""Code that comes with a model: run for what the user names in a run, never for what those name.

With ``trust_remote_code=True`` transformers runs Python from a model's folder. But a checkpoint
names the reference it was trained against, an adapter its base model, and a folder may say that its
code is in another repository: the user named none of these, so their code is not run.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from prefopt.reference.sources import loaded_from

# Files of a model that may name code.
_FILES = ("config.json", "tokenizer_config.json")


class CodeError(ValueError):
    """Code that would have to run is of something that the user did not name."""


def named_in_run(*given: Any) -> frozenset[str]:
    """Return what a user named: ids, and folders as absolute paths; of a model, where it is from.

    Args:
        given: Ids, paths, models, or None.
    """
    names = (
        absolute(one) if isinstance(one, str) else loaded_from(one).get("name_or_path")
        for one in given
        if isinstance(one, str) or hasattr(one, "config")
    )
    return frozenset(name for name in names if name)


def absolute(name: str) -> str:
    """Return an id as it is, the path of a folder in full."""
    folder = Path(name).expanduser()
    return str(folder.absolute()) if folder.exists() else name


def check_code(name: str, options: Mapping[str, Any]) -> None:
    """Raise where a model or tokenizer takes its code from another place, and it would run.

    Args:
        name: Its id or folder.
        options: Of ``from_pretrained``.

    Raises:
        CodeError: Naming the other place.
    """
    if not options.get("trust_remote_code"):
        return
    for reference in _code_of(name, options):
        place = reference.partition("--")[0] if "--" in reference else name
        if absolute(place) != absolute(name):
            raise CodeError(
                f"{name} takes its code from {place}, which this run does not name: "
                f"trust_remote_code covers only what comes with {name}. Copy that code into a "
                "folder beside the weights and name the folder, or load the model yourself and "
                "pass it"
            )


def check_code_of_base(adapter: str, base: str, options: Mapping[str, Any]) -> None:
    """Raise where the base model that an adapter names comes with code, and it was to run.

    Args:
        adapter: Id or folder of the adapter, which the user named.
        base: That of its base model.
        options: Of ``from_pretrained``, as the user gave them.

    Raises:
        CodeError: Saying how to load it.
    """
    if options.get("trust_remote_code") and next(_code_of(base, options), None) is not None:
        raise CodeError(
            f"the adapter {adapter} names {base} as its base model, which comes with code of its "
            "own, and trust_remote_code covers only what this run names: load the base model "
            "yourself with trust_remote_code=True and pass PeftModel.from_pretrained(base, "
            f"{adapter!r}, is_trainable=True), or leave trust_remote_code out if transformers "
            "knows that kind of model"
        )


@contextmanager
def code_explained(name: str, trusted: bool, args: Any) -> Iterator[None]:
    """Let the error of code that was not run say why it was not, though code was asked for.

    Args:
        name: What is loaded.
        trusted: Whether the user named it.
        args: Those of the run.

    Raises:
        CodeError: For such an error.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        if trusted or not args.trust_remote_code or "trust_remote_code" not in str(error):
            raise
        raise CodeError(
            f"{name} comes with code of its own, and this run does not name it, a file does: "
            "trust_remote_code covers only what this run names. Name it as model or ref_model, or "
            "load it yourself and pass it"
        ) from error


def _code_of(name: str, options: Mapping[str, Any]) -> Iterator[str]:
    """Yield the references to code in the files of a model, such as ``modeling.MyModel``."""
    places = ("cache_dir", "local_files_only", "revision", "subfolder", "token")
    known = {place: options[place] for place in places if options.get(place)}
    for file in _FILES:
        try:
            path = cached_file(
                name,
                file,
                **known,
                _raise_exceptions_for_gated_repo=False,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )
            fields = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
        except (OSError, ValueError):  # what loads it says so
            continue
        for value in (fields.get("auto_map") or {}).values():
            yield from (str(one) for one in (value if isinstance(value, list) else [value]) if one)
