"""``prefopt cache info``, ``verify`` without a model, ``prune``, ``export`` and ``import``."""

import argparse
import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from rich.status import Status

from prefopt.cli.cache.store import folder_of, store_errors
from prefopt.cli.cache.text import (
    count_of,
    describe,
    print_references,
    print_store,
    printable,
    size_text,
)
from prefopt.cli.errors import UserError
from prefopt.reference.store.database import Database
from prefopt.reference.store.logp_store import FILE_NAME
from prefopt.reference.store.maintain import (
    ReferenceInfo,
    choose_to_prune,
    delete_reference,
    describe_store,
    find_reference,
    open_store,
    references_of,
    shrink,
)
from prefopt.reference.store.transfer import export_store, import_store, parquet_files
from prefopt.reference.store.verify import check_store


def info(options: argparse.Namespace) -> int:
    """Print what the store holds; return the exit code."""
    folder = folder_of(options.cache_dir)
    with store_errors(folder):
        found = describe_store(open_store(folder, readonly=True))
    if options.json:
        print(json.dumps(describe(found), indent=2))
    else:
        print_store(found)
    return 0


def verify(options: argparse.Namespace) -> int:
    """Check every value of the store against its checksum; return 1 if anything is damaged."""
    folder = folder_of(options.cache_dir)
    with store_errors(folder), _status("reading the store"):
        found = check_store(open_store(folder, readonly=True))
    for problem in found.problems:
        print(printable(problem))
    for fingerprint, count in found.damaged.items():
        print(f"{fingerprint}: {count:,} completions do not have their checksum")
    print(f"{found.completions:,} completions read: {'all good' if found.is_intact else 'damaged'}")
    if not found.is_intact:
        print("What is damaged counts as missing: the next run that needs it computes it again.")
        return 1
    print("To compute some again and compare, add --model, --dataset and the run's other options.")
    return 0


def prune(options: argparse.Namespace) -> int:
    """Delete references from the store, or say which would be deleted; return the exit code."""
    if not options.reference and options.unused_days is None and options.max_bytes is None:
        raise UserError("say what to prune: --reference, --unused-days or --max-bytes")
    folder = folder_of(options.cache_dir)
    with store_errors(folder):
        database = open_store(folder)
        references = references_of(database)
        chosen = choose_to_prune(
            references,
            prefixes=options.reference,
            unused_days=options.unused_days,
            max_bytes=options.max_bytes,
        )
        if not chosen:
            print("Nothing to prune.")
            return 0
        verb = "Deleted" if options.yes else "Would delete"
        print_references(
            chosen, f"{verb} {len(chosen)} of {count_of(len(references), 'reference')}"
        )
        if options.yes:
            _delete(database, chosen)
        else:
            print("Nothing was done; --yes does it.")
    return 0


def _delete(database: Database, chosen: Sequence[ReferenceInfo]) -> None:
    before = database.path.stat().st_size
    for reference in chosen:
        delete_reference(database, reference)
    try:
        after = shrink(database)
    except sqlite3.OperationalError as error:
        raise UserError(
            f"deleted, but {database.path} could not be made smaller ({error}): that needs free "
            "disk space of up to twice what is left. The free part of the file is used before it "
            "grows"
        ) from error
    print(f"{database.path}: {size_text(before)} -> {size_text(after)}")


def export(options: argparse.Namespace) -> int:
    """Write log-probs to a parquet file; return 1 if damaged ones were left out."""
    folder = folder_of(options.cache_dir)
    with store_errors(folder), _status("exporting"):
        database = open_store(folder, readonly=True)
        references = references_of(database)
        if options.reference:
            found = [find_reference(references, prefix) for prefix in options.reference]
            references = [reference for reference in references if reference in found]
        done = export_store(database, references, options.path)
    print(
        f"{options.path}: {count_of(done.completions, 'completion')} of "
        f"{count_of(len(references), 'reference')}, {size_text(done.size_bytes)}"
    )
    if done.damaged:
        print(f"{done.damaged:,} completions were left out: they do not have their checksum")
    return 1 if done.damaged else 0


def import_(options: argparse.Namespace) -> int:
    """Add log-probs from parquet files to the store; return 1 if rows were refused."""
    folder = folder_of(options.cache_dir)
    with store_errors(folder), _status("importing"):
        parquet_files(options.path)  # an error here makes no empty store
        folder.mkdir(parents=True, exist_ok=True)
        done = import_store(Database(folder / FILE_NAME), options.path)
    print(
        f"{done.added:,} completions added, {done.known:,} known already and left as they are, "
        f"{done.refused:,} refused; {count_of(len(done.references), 'reference')}, "
        f"in {folder / FILE_NAME}"
    )
    if done.refused:
        print("Refused rows do not have their checksum, or are no rows of an export.")
    return 1 if done.refused else 0


# By the name on the command line.
COMMANDS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "info": info,
    "verify": verify,
    "prune": prune,
    "export": export,
    "import": import_,
}


def _status(text: str) -> Status:
    return Console(stderr=True).status(text)
