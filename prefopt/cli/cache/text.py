"""What ``prefopt cache`` prints: stores and references as tables, as JSON, in words."""

import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from rich.console import Console
from rich.table import Table

from prefopt.reference.store.maintain import ReferenceInfo, StoreInfo


def describe(info: StoreInfo) -> dict[str, Any]:
    """Return what a program may want to know about a store."""
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


def count_of(number: int, what: str) -> str:
    """Return a number and what it counts.

    Examples:
        >>> count_of(1, "reference"), count_of(1200, "reference")
        ('1 reference', '1,200 references')
    """
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def print_store(info: StoreInfo) -> None:
    """Print what a store holds."""
    print(f"{info.path}: {size_text(info.size_bytes)}, schema version {info.version}")
    if info.free_bytes:
        print(f"{size_text(info.free_bytes)} of it are free, and used before it grows")
    if info.references:
        print_references(info.references, count_of(len(info.references), "reference"))
        for reference in info.references:
            for origin in reference.origins:
                print(f"{reference.fingerprint[:12]}  {_origin_text(origin)}")
    for path in info.set_aside:
        print(f"Set aside as damaged, and may be deleted: {path}")


def print_references(references: Sequence[ReferenceInfo], title: str) -> None:
    """Print a table of references, one row each."""
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
    """Return which model a reference with these facts is, for people."""
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
    """Return a text without control characters: facts may come from another person's file."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def size_text(size_bytes: int) -> str:
    """Return a size for people.

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
