"""``prefopt cache``: fill, look at, verify, prune and share the store of reference log-probs."""

import argparse
import json
import re
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from prefopt.cli.errors import UserError, user_errors

if TYPE_CHECKING:
    from prefopt.reference.store.maintain import ReferenceInfo, StoreInfo

_DESCRIPTION = """\
Reference log-probs are computed once and kept in a store that all runs share.

  prefopt cache fill --model MODEL --dataset DATA     compute them ahead of training
  prefopt cache info                                  what the store holds
  prefopt cache verify                                is it whole?
  prefopt cache verify --model MODEL --dataset DATA   compute a sample again and compare
  prefopt cache prune --unused-days 90 --yes          delete what no run has asked for
  prefopt cache export logps.parquet                  to be shared, and back with import
"""

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY_UNITS = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def main(argv: Sequence[str]) -> int:
    """Run one of the commands on the store; return the exit code.

    Args:
        argv: Options of the command.
    """
    name, rest = "".join(argv[:1]), argv[1:]
    if name == "fill" or (name == "verify" and _names_a_model(rest)):
        from prefopt.cli.cache.runs import fill, verify

        return fill(rest) if name == "fill" else verify(rest)
    options = make_parser().parse_args(list(argv))
    code: int = options.command(options)
    return code


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the commands; those that make a trainer have ``prefopt train``'s."""
    parser = argparse.ArgumentParser(
        prog="prefopt cache",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    commands.add_parser("fill", help="compute what a training run would look up; its options")

    info = _add(commands, "info", "show what the store holds, by reference", _info)
    info.add_argument("--json", action="store_true", help="print JSON for programs")

    _add(
        commands,
        "verify",
        "read all and check it; with --model and the options of `prefopt train`, compute a sample "
        "of the run's log-probs again (--sample N, default 100) and compare",
        _check,
    )

    prune = _add(commands, "prune", "delete references, and give their space back", _prune)
    _add_reference(prune, "delete this one")
    prune.add_argument(
        "--unused-days", type=_days, metavar="DAYS", help="what no run has asked for in so long"
    )
    prune.add_argument(
        "--max-bytes",
        type=_size,
        metavar="SIZE",
        help="the longest unused, until the rest takes no more than this: 500M, 2G, ...",
    )
    prune.add_argument("--yes", action="store_true", help="do it; without, only say what would go")

    export = _add(commands, "export", "write log-probs to a parquet file", _export)
    export.add_argument("path", type=Path, help="the file to write")
    _add_reference(export, "only this one")

    load = _add(commands, "import", "add log-probs from parquet files", _import)
    load.add_argument("path", type=Path, help="a file, or a folder with some")
    return parser


def _add(commands: Any, name: str, text: str, command: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text.split(";")[0], description=f"{text[0].upper()}{text[1:]}."
    )
    parser.add_argument(
        "--cache-dir",
        "--cache_dir",
        "--reference_cache_dir",
        type=Path,
        help="folder of the store; default: PREFOPT_CACHE, else prefopt in the user's cache folder",
    )
    parser.set_defaults(command=command)
    return parser


def _add_reference(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument(
        "--reference",
        action="append",
        default=[],
        metavar="F",
        help=f"{text}: the beginning of its fingerprint; may be given several times",
    )


@contextmanager
def store_errors(folder: Path) -> Iterator[None]:
    """Turn what can be wrong with a store or with input into ``UserError``.

    Args:
        folder: Of the store.

    Raises:
        UserError: For these.
    """
    from prefopt.reference.store.database import DatabaseError
    from prefopt.reference.store.logp_store import FILE_NAME
    from prefopt.reference.store.maintain import explain

    try:
        with user_errors():
            yield
    except (DatabaseError, sqlite3.Error) as error:
        raise UserError(explain(error, folder / FILE_NAME)) from error


def folder_of(cache_dir: str | Path | None) -> Path:
    """Return where the store lies, as the trainer would find it.

    Args:
        cache_dir: What was asked for; None for the default.
    """
    from prefopt.reference import default_folder

    return default_folder() if cache_dir is None else Path(cache_dir)


# Commands -----------------------------------------------------------------------------------------


def _info(options: argparse.Namespace) -> int:
    from prefopt.reference.store.maintain import describe_store, open_store

    folder = folder_of(options.cache_dir)
    with store_errors(folder):
        info = describe_store(open_store(folder, readonly=True))
    if options.json:
        print(json.dumps(describe(info), indent=2))
    else:
        _print_store(info)
    return 0


def _check(options: argparse.Namespace) -> int:
    from prefopt.reference.store.maintain import open_store
    from prefopt.reference.store.verify import check_store

    folder = folder_of(options.cache_dir)
    with store_errors(folder), _console().status("reading the store"):
        found = check_store(open_store(folder, readonly=True))
    for problem in found.problems:
        print(printable(problem))
    for fingerprint, count in found.damaged.items():
        print(f"{fingerprint}: {count:,} completions do not have their checksum")
    print(f"{found.completions:,} completions read: {'all good' if found.is_whole else 'damaged'}")
    if not found.is_whole:
        print("What is damaged counts as missing: the next run that needs it computes it again.")
        return 1
    print("To compute some again and compare, add --model, --dataset and the run's other options.")
    return 0


def _prune(options: argparse.Namespace) -> int:
    from prefopt.reference.store.maintain import choose_to_prune, open_store, references_of

    if not options.reference and options.unused_days is None and options.max_bytes is None:
        raise UserError("say what to prune: --reference, --unused-days or --max-bytes")
    folder = folder_of(options.cache_dir)
    with store_errors(folder):
        database = open_store(folder)
        references = references_of(database)
        going = choose_to_prune(
            references,
            prefixes=options.reference,
            unused_days=options.unused_days,
            max_bytes=options.max_bytes,
        )
        if not going:
            print("Nothing to prune.")
            return 0
        verb = "Deleted" if options.yes else "Would delete"
        _print_references(going, f"{verb} {len(going)} of {len(references)} references")
        if options.yes:
            _delete(database, going)
        else:
            print("Nothing was done; --yes does it.")
    return 0


def _delete(database: Any, going: "Sequence[ReferenceInfo]") -> None:
    from prefopt.reference.store.maintain import delete_reference, shrink

    before = database.path.stat().st_size
    for info in going:
        delete_reference(database, info)
    try:
        after = shrink(database)
    except sqlite3.OperationalError as error:
        raise UserError(
            f"deleted, but {database.path} could not be made smaller ({error}): that takes free "
            "space for up to twice what is left. What was freed in it is used before it grows"
        ) from error
    print(f"{database.path}: {size_text(before)} -> {size_text(after)}")


def _export(options: argparse.Namespace) -> int:
    from prefopt.reference.store.maintain import find_reference, open_store, references_of
    from prefopt.reference.store.transfer import export_store

    folder = folder_of(options.cache_dir)
    with store_errors(folder), _console().status("exporting"):
        database = open_store(folder, readonly=True)
        references = references_of(database)
        if options.reference:
            found = [find_reference(references, prefix) for prefix in options.reference]
            references = [info for info in references if info in found]
        done = export_store(database, references, options.path)
    print(
        f"{options.path}: {done.completions:,} completions of {len(references)} references, "
        f"{size_text(done.size_bytes)}"
    )
    if done.damaged:
        print(f"{done.damaged:,} completions were left out: they do not have their checksum")
    return 1 if done.damaged else 0


def _import(options: argparse.Namespace) -> int:
    from prefopt.reference import Database
    from prefopt.reference.store.logp_store import FILE_NAME
    from prefopt.reference.store.transfer import import_store, parquet_files

    folder = folder_of(options.cache_dir)
    with store_errors(folder), _console().status("importing"):
        parquet_files(options.path)  # before a store is made for nothing
        folder.mkdir(parents=True, exist_ok=True)
        done = import_store(Database(folder / FILE_NAME), options.path)
    print(
        f"{done.added:,} completions added, {done.known:,} known already and left as they are, "
        f"{done.refused:,} refused; {len(done.references)} references, in {folder / FILE_NAME}"
    )
    if done.refused:
        print("Refused rows do not have their checksum, or are no rows of an export.")
    return 1 if done.refused else 0


# Output -------------------------------------------------------------------------------------------


def describe(info: "StoreInfo") -> dict[str, Any]:
    """Return what a program may want to know about a store.

    Args:
        info: What it holds.
    """
    return {
        "path": str(info.path),
        "bytes": info.size_bytes,
        "free_bytes": info.free_bytes,
        "schema_version": info.version,
        "references": [
            {
                "fingerprint": reference.fingerprint,
                **reference.facts,
                "completions": reference.completions,
                "tokens": reference.tokens,
                "bytes": reference.size_bytes,
                "created": _iso(reference.created),
                "used": _iso(reference.used),
                "origins": list(reference.origins),
            }
            for reference in info.references
        ],
        "set_aside": [str(path) for path in info.set_aside],
    }


def _print_store(info: "StoreInfo") -> None:
    print(f"{info.path}: {size_text(info.size_bytes)}, schema version {info.version}")
    if info.free_bytes:
        print(f"{size_text(info.free_bytes)} of it are free, and used before it grows")
    if info.references:
        _print_references(info.references, f"{len(info.references)} references")
        for reference in info.references:
            for origin in reference.origins:
                print(f"{reference.fingerprint[:12]}  {_origin_text(origin)}")
    for path in info.set_aside:
        print(f"Set aside as damaged, and may be deleted: {path}")


def _print_references(references: "Sequence[ReferenceInfo]", title: str) -> None:
    table = Table(title=title, title_justify="left", pad_edge=False)
    table.add_column("fingerprint", no_wrap=True)
    for heading in ("model", "computed in", "completions", "tokens", "about", "created", "used"):
        is_number = heading in ("completions", "tokens", "about")
        table.add_column(heading, justify="right" if is_number else "left", overflow="fold")
    for info in references:
        table.add_row(
            info.fingerprint[:12],
            printable(model_text(info.facts)),
            printable(_precision_text(info.facts)),
            f"{info.completions:,}",
            f"{info.tokens:,}",
            size_text(info.size_bytes),
            _iso(info.created)[:10],
            _iso(info.used)[:10],
        )
    # A pipe has no width of its own: give it one that folds nothing but the models.
    console = Console() if sys.stdout.isatty() else Console(width=140)
    console.print(table, markup=False)


def model_text(facts: dict[str, Any]) -> str:
    """Return which model a reference is, for people.

    Args:
        facts: Of the reference.
    """
    kind, name = facts.get("model", "unknown"), facts.get("name_or_path")
    adapters = [str(adapter.get("peft_type", "adapter")) for adapter in facts.get("adapters") or []]
    return " + ".join([f"{kind} ({name})" if name else str(kind), *adapters])


def _precision_text(facts: dict[str, Any]) -> str:
    parts = [str(facts.get("dtype", "unknown"))]
    if facts.get("autocast", "none") != "none":
        parts.append(f"autocast {facts['autocast']}")
    if facts.get("quantization"):
        parts.append(str(facts["quantization"].get("quant_method", "quantised")))
    return ", ".join(parts)


def _origin_text(origin: dict[str, Any]) -> str:
    facts = dict(origin)
    count = facts.pop("completions")
    versions = facts.pop("versions", None) or {}
    names = sorted(facts, key=lambda name: name != "device")  # the device first
    parts = [f"{name} {facts[name]}" for name in names]
    parts += [f"{name} {value}" for name, value in versions.items()]
    return printable(f"{count:,} on: {', '.join(parts)}")


def printable(text: str) -> str:
    """Return a text without control characters: facts may come from a file of somebody else.

    Args:
        text: Any.
    """
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def size_text(size_bytes: int) -> str:
    """Return a size for people.

    Args:
        size_bytes: The size.

    Examples:
        >>> size_text(999), size_text(12_345), size_text(2_500_000_000)
        ('999 B', '12.3 kB', '2.5 GB')
    """
    value, unit = float(size_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, tz=timezone.utc).isoformat(timespec="seconds")


def _console() -> Console:
    return Console(stderr=True)


# Input --------------------------------------------------------------------------------------------


def _names_a_model(argv: Sequence[str]) -> bool:
    names = {text.split("=")[0] for text in argv}
    return not names.isdisjoint({"--model", "--model_name_or_path", "--config"})


def _size(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?", text.strip().lower())
    units = _UNITS | _BINARY_UNITS
    if found is None or found[2] not in units:
        raise argparse.ArgumentTypeError(f"not a size such as 500M, 2G or 1GiB: {text!r}")
    return int(float(found[1]) * units[found[2]])


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = -1.0
    if not days >= 0:
        raise argparse.ArgumentTypeError(f"not a number of days: {text!r}")
    return days
