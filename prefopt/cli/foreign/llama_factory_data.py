"""LLaMA-Factory's data: the entries of ``dataset_info.json``, and keys about them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefopt.cli.foreign.conversion import (
    Conversion,
    Key,
    cannot,
    differs,
    names,
    nothing,
    number,
    same,
    together,
    whole,
    words,
)
from prefopt.data.roles import known_role

INFO = "dataset_info.json"
TEMPLATE = "the chat template is the tokenizer's own here"
_CUT = (
    "what is too long is cut at the end of the completion, a row whose prompt leaves no room is "
    "set aside; there prompt and completion are cut in proportion"
)
_WEIGHTS = "give each entry of datasets a weight instead (how often each row is used in an epoch)"
_ENTRY = (
    "write the entry by hand: `datasets: [{path: FILE OR HUB ID, columns: [...], rename: {theirs: "
    "prompt}}]`"
)

DATA_KEYS: dict[str, Key] = {
    "dataset": together("datasets", "each as dataset_info.json describes it"),
    "eval_dataset": together("eval_datasets"),
    "dataset_dir": together("datasets", "where dataset_info.json is", default="data"),
    "max_samples": together("datasets", "limit of each"),
    "val_size": together("eval_fraction, eval_rows", "a share, or from 1 on a number"),
    "streaming": together("dataset_streaming", "with one dataset"),
    "cutoff_len": differs("max_length", _CUT, default=2048),
    "template": differs("", TEMPLATE),
    "preprocessing_num_workers": same("dataset_num_proc"),
    "mix_strategy": cannot(_WEIGHTS, "concat"),
    "interleave_probs": cannot(_WEIGHTS),
    "default_system": cannot("put it into a column `system` of the data", ""),
    "enable_thinking": cannot(
        "give rows a column chat_template_kwargs with {enable_thinking: false}", True
    ),
    "preserve_thinking": cannot("the chat template decides what it keeps", False),
    "eval_on_each_dataset": cannot("in Python: eval_dataset={name: rows}", False),
    "packing": nothing("nothing is padded here"),
    "neat_packing": nothing("nothing is padded here"),
    **dict.fromkeys(
        words(
            "overwrite_cache preprocessing_batch_size tokenized_path data_shared_file_system "
            "buffer_size media_dir eval_num_beams ignore_pad_token_for_loss tool_format"
        ),
        nothing("of preparing the data, which is done anew here"),
    ),
}

# Columns by what they are there, and what we call them.
_ALPACA = {
    "prompt": "instruction",
    "query": "input",
    "history": "history",
    "response": "output",
    "system": "system",
    "tools": "tools",
    "chosen": "chosen",
    "rejected": "rejected",
    "kto_tag": "label",
}
_MEDIA = ("images", "videos", "audios")
_TAGS = {
    "user_tag": ("user", "human"),
    "assistant_tag": ("assistant", "gpt"),
    "observation_tag": ("tool", "observation"),
    "function_tag": ("assistant", "function_call"),
    "system_tag": ("system", "system"),
}
_MESSAGE_KEYS = (("from", "value"), ("role", "content"))
_KNOWN = frozenset(
    words(
        "hf_hub_url ms_hub_url om_hub_url script_url cloud_file_name file_name formatting ranking "
        "subset split folder num_samples columns tags file_sha1"
    )
)


def put_data(conversion: Conversion, stage: str, folder: Path) -> None:
    """Convert the datasets to train and to evaluate on."""
    given = conversion.given
    if "dataset" not in given:
        conversion.refuse("dataset", "is missing: the names of datasets to train on")
    for key, option in (("dataset", "datasets"), ("eval_dataset", "eval_datasets")):
        if key not in given:
            continue
        try:
            infos = _read_infos(given.get("dataset_dir", "data"), folder)
            entries = [_entry(conversion, name, infos, stage) for name in names(given[key])]
        except ValueError as error:
            conversion.refuse(key, str(error))
        else:
            _put_entries(conversion, key, option, entries)
    size = number(given.get("val_size", 0.0), "val_size")
    if size >= 1:
        conversion.put("eval_rows", int(size), "val_size")
    elif size > 1e-6:
        conversion.put("eval_fraction", size, "val_size")


def _put_entries(
    conversion: Conversion, key: str, option: str, entries: list[dict[str, Any]]
) -> None:
    keys = (key, "dataset_dir", "max_samples")
    if not conversion.given.get("streaming"):
        conversion.put(option, entries, *keys)
        return
    (entry, *more) = entries
    if more or option != "datasets" or set(entry) - {"path", "name", "split"}:
        conversion.refuse(
            "streaming", "a stream is one dataset, with columns of our names; leave it out instead"
        )
        return
    ours = {"path": "dataset_name", "name": "dataset_config", "split": "dataset_train_split"}
    for name, value in entry.items():
        conversion.put(ours[name], value, *keys)
    conversion.put("dataset_streaming", True, "streaming")


class _Infos:
    """What ``dataset_info.json`` says; None if datasets are ids on the Hub."""

    def __init__(self, folder: Path, infos: Mapping[str, Any] | None) -> None:
        self.folder = folder
        self.infos = infos


def _read_infos(dataset_dir: Any, folder: Path) -> _Infos:
    """Read the file that describes datasets, in a folder that is looked for beside the YAML too.

    Raises:
        ValueError: If there is none, or it is not JSON.
    """
    if isinstance(dataset_dir, Mapping):
        return _Infos(Path("."), dataset_dir)
    if dataset_dir == "ONLINE":
        return _Infos(Path("."), None)
    if not isinstance(dataset_dir, str):
        raise ValueError(f"dataset_dir must be a folder, got {dataset_dir!r}")
    places = [Path(dataset_dir).expanduser(), folder / dataset_dir, folder]
    found = next((place for place in places if (place / INFO).is_file()), None)
    if found is None:
        raise ValueError(f"there is no {places[0] / INFO}, which describes it; {_ENTRY}")
    try:
        infos = json.loads((found / INFO).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{found / INFO} cannot be read: {error}") from None
    if not isinstance(infos, Mapping):
        raise ValueError(f"{found / INFO} must map names of datasets to what they are")
    return _Infos(found, infos)


def _entry(conversion: Conversion, name: str, infos: _Infos, stage: str) -> dict[str, Any]:
    """Return our entry of a dataset.

    Raises:
        ValueError: If it is not described, or cannot be expressed.
    """
    if infos.infos is None:
        return _limited(conversion, {"path": name, "split": "train"}, {})
    info = infos.infos.get(name)
    if not isinstance(info, Mapping):
        known = ", ".join(list(infos.infos)[:10])
        raise ValueError(f"{INFO} in {infos.folder} has no dataset {name!r}; it has {known}")
    unknown = [key for key in info if key not in _KNOWN]
    if unknown:
        raise ValueError(f"{INFO}: {name} has a key {unknown[0]!r}, which is not known; {_ENTRY}")
    ranking = bool(info.get("ranking", False))
    if ranking != (stage == "dpo"):
        raise ValueError(
            f"{INFO}: {name} has ranking {str(ranking).lower()}, which LLaMA-Factory refuses in "
            f"the stage {stage} too"
        )
    entry = _source(name, info, infos.folder)
    formatting = info.get("formatting", "alpaca")
    columns = info.get("columns") or {}
    if formatting not in ("alpaca", "sharegpt", "openai"):
        raise ValueError(f"{INFO}: {name} has formatting {formatting!r}, which is not known")
    if any(columns.get(kind) for kind in _MEDIA):
        raise ValueError(f"{INFO}: {name} has images, audio or video, which cannot be trained on")
    ours = _columns(name, formatting, columns, stage)
    if formatting != "alpaca":
        _check_tags(name, info.get("tags") or {}, formatting)
    entry["columns"] = list(ours)
    renamed = {theirs: to for theirs, to in ours.items() if theirs != to}
    if renamed:
        entry["rename"] = renamed
    return _limited(conversion, entry, info)


def _source(name: str, info: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return where the rows of a dataset are."""
    if info.get("hf_hub_url"):
        entry: dict[str, Any] = {"path": info["hf_hub_url"], "split": info.get("split", "train")}
        entry |= {"name": info["subset"]} if info.get("subset") else {}
        return entry | ({"data_dir": info["folder"]} if info.get("folder") else {})
    if not info.get("file_name"):
        raise ValueError(
            f"{INFO}: {name} is neither a file nor on the Hub of Hugging Face; download it, and "
            + _ENTRY
        )
    return {"path": str(folder / info["file_name"])}


def _limited(
    conversion: Conversion, entry: dict[str, Any], info: Mapping[str, Any]
) -> dict[str, Any]:
    given = (info.get("num_samples"), conversion.given.get("max_samples"))
    limits = [whole(value, "max_samples") for value in given if value]
    return entry | ({"limit": min(limits)} if limits else {})


def _columns(name: str, formatting: str, columns: Mapping[str, str], stage: str) -> dict[str, str]:
    """Return what each column becomes, by its name in the data.

    Raises:
        ValueError: If one is missing that the stage needs.
    """
    needed = ("chosen", "rejected") if stage == "dpo" else ("kto_tag",)
    missing = [column for column in needed if not columns.get(column)]
    if missing:
        raise ValueError(
            f"{INFO}: the columns of {name} do not name {missing[0]}, which the stage {stage} needs"
        )
    if formatting == "alpaca":
        ours = dict(_ALPACA)
        if not columns.get("prompt"):  # then the user says what `query` holds
            ours["query"] = "instruction"
        if stage == "kto" and not columns.get("response"):
            raise ValueError(f"{INFO}: the columns of {name} do not name response")
    else:
        ours = {"messages": "prompt" if stage == "dpo" else "messages"}
        ours |= {key: _ALPACA[key] for key in ("system", "tools", *needed)}
        columns = {"messages": "conversations", **columns}
    if stage == "dpo":
        ours.pop("response", None)
    given = {key: columns[key] for key in ours if columns.get(key)}
    if formatting == "alpaca" and "instruction" not in [ours[key] for key in given]:
        raise ValueError(f"{INFO}: the columns of {name} name neither prompt nor query")
    return {theirs: ours[key] for key, theirs in given.items() if key not in other_stage(stage)}


def other_stage(stage: str) -> tuple[str, ...]:
    """Return the columns that a stage does not read."""
    return ("kto_tag",) if stage == "dpo" else ("chosen", "rejected")


def _check_tags(name: str, tags: Mapping[str, str], formatting: str) -> None:
    """Check that messages and roles are called what is read here too.

    Raises:
        ValueError: If one is not.
    """
    pair = (tags.get("role_tag", "from"), tags.get("content_tag", "value"))
    if pair not in _MESSAGE_KEYS:
        raise ValueError(
            f"{INFO}: messages of {name} have the keys {' and '.join(pair)}; here they have role "
            "and content, or from and value: rename them in the data"
        )
    for tag, (role, default) in _TAGS.items():
        called = tags.get(tag) or default
        if known_role(called) != role:
            raise ValueError(
                f"{INFO}: {name} calls the {role} {called!r} ({tag}), which is not known here: "
                f"rename it to {role} in the data"
            )
