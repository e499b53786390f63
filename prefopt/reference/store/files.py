"""What a model is loaded from, as a digest: a known model is recognised without being loaded.

A folder's digest is that of its files; each is digested once, and again only if its size, times or
inode changed. A model on the Hub is pinned by its commit.
"""

import json
import re
import time
from collections.abc import Mapping
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

from prefopt.reference.fingerprint import ENGINE_VERSION
from prefopt.reference.store.database import Database
from prefopt.versions import versions

# The files of a folder that make up a model.
_ENDINGS = (".safetensors", ".bin", ".pt", ".gguf", ".json", ".py")

# What may quantise a model while it is loaded.
_QUANTISERS = ("bitsandbytes", "optimum-quanto", "torchao", "hqq")

# A file that changes twice within a tick of the clock keeps its time, so the digest of a file that
# changed less than this ago is not kept.
_TICK_NS = 2_000_000_000


def source_digest(name: str, options: Mapping[str, Any], database: Database | None) -> str | None:
    """Return what a model by name will be when loaded, as a digest; None if nothing tells.

    The name is a folder, or an id on the Hub; ``options`` is everything else that decides what is
    loaded: dtype, quantisation, revision... Without a database all files are digested.
    """
    content = _content(name, options, database)
    if content is None:
        return None
    quantisers = _QUANTISERS if options.get("quantization_config") is not None else ()
    installed = versions("transformers", "torch", *quantisers)
    how = dict(options) | {"engine": ENGINE_VERSION}
    text = json.dumps([content, how, installed], sort_keys=True, default=str)
    return sha256(text.encode()).hexdigest()[:32]


def _content(name: str, options: Mapping[str, Any], database: Database | None) -> Any:
    folder = Path(name).expanduser()
    if folder.is_dir():
        folder /= options.get("subfolder") or ""
        files = sorted(
            file for file in folder.iterdir() if file.is_file() and file.suffix in _ENDINGS
        )
        if _has_code_elsewhere(folder / "config.json"):
            return None
        content = [(file.name, digest_of_file(file, database)) for file in files]
        return _with_base(folder, content, database)
    places = ("revision", "subfolder", "token", "cache_dir", "local_files_only")
    known = {key: options[key] for key in places if options.get(key)}
    config = _hub_file(name, "config.json", known)
    if config is None or _has_code_elsewhere(config):
        return None
    if _hub_file(name, "adapter_config.json", known) is not None:
        return None  # the commit does not determine the model under the adapter
    commit = re.search(r"/snapshots/([0-9a-f]{40})/", config.as_posix())
    return None if commit is None else [name, commit[1]]


def _hub_file(name: str, file: str, options: Mapping[str, Any]) -> Path | None:
    """Return where a small file of a model on the Hub lies; None if there is none, or no Hub."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, file, **options))
    except (OSError, ValueError):
        return None


def _has_code_elsewhere(config: Path) -> bool:
    """Whether a model's code may come from another place on the Hub than its weights."""
    try:
        code = json.loads(config.read_text()).get("auto_map") or {}
    except (OSError, ValueError):
        return False
    return "--" in json.dumps(code)


def _with_base(folder: Path, content: Any, database: Database | None) -> Any:
    """Return the content of a folder, and where it is an adapter, that of the model under it."""
    adapter = folder / "adapter_config.json"
    if not adapter.is_file():
        return content
    base = json.loads(adapter.read_text()).get("base_model_name_or_path")
    if base is None or Path(base).resolve() == folder.resolve():
        return None
    below = _content(base, {}, database)
    return None if below is None else [content, below]


def digest_of_file(file: Path, database: Database | None = None) -> str:
    """Return a digest of the content of a file, computed again only if it has changed.

    It is read at about a gigabyte a second; without a database no digest is kept.
    """
    file = file.resolve()
    stat = file.stat()
    # The time of the last change of the inode too: programs can set that of the content.
    mark = f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino} {stat.st_dev}"
    known = None if database is None else database.file_digest(str(file), mark)
    if known is not None:
        return known
    started = time.time_ns()
    content = blake2b(digest_size=16)
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            content.update(block)
    digest = content.hexdigest()
    settled = started - max(stat.st_mtime_ns, stat.st_ctime_ns) > _TICK_NS
    if database is not None and settled:
        database.remember_file(str(file), mark, digest)
    return digest
