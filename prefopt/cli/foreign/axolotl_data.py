"""Axolotl's data: entries of ``datasets`` and ``test_datasets``, and keys about them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefopt.cli.foreign.conversion import (
    Conversion,
    Key,
    cannot,
    differs,
    nothing,
    number,
    same,
    together,
    words,
)
from prefopt.data.roles import known_role

_CUT = (
    "a row with more tokens is left out there unless excess_length_strategy is truncate; here its "
    "completion is cut at the end, and a row whose prompt leaves no room is set aside"
)
DATA_KEYS: dict[str, Key] = {
    "datasets": together("datasets", "with columns and rename by type and fields"),
    "test_datasets": together("eval_datasets"),
    "val_set_size": together("eval_fraction, eval_rows", "a share, or from 1 on a number"),
    "sequence_len": differs("max_length", _CUT, default=512),
    "excess_length_strategy": together("max_length", "truncate is what is done here"),
    "dataset_num_proc": same("dataset_num_proc"),
    "dataset_processes": same("dataset_num_proc"),
    "min_sample_len": cannot("leave short rows out of the data"),
    "dataset_exact_deduplication": cannot("leave rows that occur twice out of the data", False),
    "dataset_shard_num": cannot("use limit or split of an entry of datasets"),
    "dataset_shard_idx": cannot("use limit or split of an entry of datasets"),
    "dataset_prepared_path": nothing("data are prepared anew"),
    "shuffle_merged_datasets": nothing("rows of all datasets are shuffled by the sampler"),
    "shuffle_before_merging_datasets": nothing("rows are shuffled by the sampler"),
}

# Types whose prompt is text of one column: what the user says, in a chat.
_PROMPTS = {
    "icr": "input",
    "intel": "question",
    "prompt_pairs": "prompt",
    "argilla": "instruction",
}
_CHATS = ("chatml", "llama3")
_MESSAGE_KEYS = (("from", "value"), ("role", "content"))
_KNOWN = frozenset(
    words(
        "path name split type data_files ds_type revision trust_remote_code field_messages "
        "field_chosen field_rejected "
        "message_property_mappings message_field_role message_field_content roles "
        "chat_template shards shards_idx preprocess_shards roles_to_train train_on_eos "
        "train_on_eot"
    )
)
_BY_HAND = (
    "write the entry by hand: `{path: ..., columns: [...], rename: {question: instruction}}`, "
    "where instruction is what the user says"
)


def put_data(conversion: Conversion, loss: str, folder: Path) -> None:
    """Convert the datasets to train and to evaluate on."""
    given = conversion.given
    if not given.get("datasets"):
        conversion.refuse("datasets", "is missing: at least one dataset")
    for key, option in (("datasets", "datasets"), ("test_datasets", "eval_datasets")):
        if not given.get(key):
            continue
        try:
            if not isinstance(given[key], list):
                raise ValueError("it must be a list of entries, each with a path")
            entries = [_entry(item, loss) for item in given[key]]
        except (ValueError, TypeError) as error:
            conversion.refuse(key, str(error))
        else:
            note = _note(given[key])
            conversion.put(option, entries, key, note=note, differs=bool(note))
    size = number(given.get("val_set_size", 0.0), "val_set_size")
    if size and given.get("test_datasets"):
        conversion.leave("val_set_size", "test_datasets is given")
    elif size >= 1:
        conversion.put("eval_rows", int(size), "val_set_size")
    elif size:
        conversion.put("eval_fraction", size, "val_set_size")


def _note(items: list[Any]) -> str:
    kinds = [str(item.get("type")) for item in items if isinstance(item, Mapping)]
    fixed = sorted({kind for kind in kinds if kind.split(".")[0] in _CHATS})
    if not fixed:
        return ""
    return f"{', '.join(fixed)}: the chat template is the tokenizer's own here"


def _entry(item: Any, loss: str) -> dict[str, Any]:
    """Return our entry of a dataset.

    Raises:
        ValueError: If it cannot be expressed.
    """
    if not isinstance(item, Mapping) or not item.get("path"):
        raise ValueError(f"an entry needs a path, got {item!r}")
    item = {key: value for key, value in item.items() if value is not None}
    path = str(item["path"])
    unknown = [key for key in item if key not in _KNOWN]
    if unknown:
        raise ValueError(f"{path}: {unknown[0]} has no counterpart here; {_BY_HAND}")
    if item.get("revision", "main") != "main":
        raise ValueError(f"{path}: revision cannot be chosen; download it, and name the folder")
    if any(item.get(key) for key in ("shards", "shards_idx", "preprocess_shards")):
        raise ValueError(f"{path}: for a part of the rows use split: train[:10%] instead of shards")
    entry = {"path": path} | {key: item[key] for key in ("name", "split") if key in item}
    if "data_files" in item:
        files = item["data_files"]
        entry["data_files"] = files[0] if isinstance(files, list) and len(files) == 1 else files
    return entry | _columns_of(path, item, "kto" if loss == "kto" else "paired")


def _columns_of(path: str, item: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return which columns to read, and what they become, by the type of a dataset."""
    name = item.get("type") or ""
    if isinstance(name, Mapping):
        return _of_fields(path, name, kind)
    family, _, variant = str(name).partition(".")
    if not name or name == "passthrough" or family == "passthrough":
        return {}
    if family == "chat_template":
        return _of_chat(path, item, variant or "default", kind)
    if family in _CHATS and variant in _PROMPTS:
        prompt = _PROMPTS[variant]
        return {} if prompt == "instruction" else {"rename": {prompt: "instruction"}}
    if family in _CHATS and variant == "ultra":
        return {"rename": {"prompt": "instruction"}} if kind == "kto" else {}
    if family in _CHATS and variant == "argilla_chat":
        if kind == "kto":
            return {"columns": ["label"], "rename": {"completion": "messages"}}
        return {"columns": ["chosen", "rejected"]}
    raise ValueError(f"{path}: the type {name} is not known; {_BY_HAND}")


def _of_chat(path: str, item: Mapping[str, Any], variant: str, kind: str) -> dict[str, Any]:
    """Return the columns of messages."""
    _check_messages(path, item)
    chosen = item.get("field_chosen", "chosen")
    rejected = item.get("field_rejected", "rejected")
    renamed = {a: b for a, b in ((chosen, "chosen"), (rejected, "rejected")) if a != b}
    if kind == "kto" or variant not in ("default", "argilla", "argilla_chat"):
        raise ValueError(f"{path}: the type chat_template.{variant} is not known; {_BY_HAND}")
    if variant == "default":
        messages = item.get("field_messages", "messages")
        renamed[messages] = "instruction"
        return {"columns": [messages, chosen, rejected], "rename": renamed}
    return {"columns": [chosen, rejected]} | ({"rename": renamed} if renamed else {})


def _check_messages(path: str, item: Mapping[str, Any]) -> None:
    """Check that messages and roles are called what is read here too.

    Raises:
        ValueError: If one is not.
    """
    keys = item.get("message_property_mappings") or {}
    pair = (
        keys.get("role") or item.get("message_field_role", "role"),
        keys.get("content") or item.get("message_field_content", "content"),
    )
    if pair not in _MESSAGE_KEYS:
        raise ValueError(
            f"{path}: messages have the keys {' and '.join(pair)}; here they have role and "
            "content, or from and value: rename them in the data"
        )
    for role, called in (item.get("roles") or {}).items():
        for name in [called] if isinstance(called, str) else called:
            if known_role(str(name)) != role:
                raise ValueError(
                    f"{path}: the {role} is called {name!r}, which is not known here: rename it "
                    f"to {role} in the data"
                )


def _of_fields(path: str, fields: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return the columns of a type that names fields, with text that is used as it stands."""
    parts = ("prompt", "completion") if kind == "kto" else ("prompt", "chosen", "rejected")
    for part in parts:
        written = fields.get(f"{part}_format") or f"{{{part}}}"
        if written != f"{{{part}}}":
            raise ValueError(
                f"{path}: {part}_format {written!r} is a chat template of its own; {_BY_HAND}, and "
                "the tokenizer's chat template writes it"
            )
    parts = (*parts, "label") if kind == "kto" else parts
    theirs = {fields.get(f"field_{part}") or part: part for part in parts}
    renamed = {name: part for name, part in theirs.items() if name != part}
    return {"columns": list(theirs)} | ({"rename": renamed} if renamed else {})
