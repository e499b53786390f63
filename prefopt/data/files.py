"""Rows of json and csv files, one by one: what is broken is said with its file and line."""

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from prefopt.data.errors import DataError

__all__ = ["BUILDERS", "COMPRESSIONS", "NO_VALUE", "builder_of", "iter_rows", "text_or_none"]

BUILDERS = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".parquet": "parquet",
}
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
# What stands in csv files for a missing number; text may be such a word.
NO_VALUE = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None")
_SEPARATORS = ";\t|"
_MAGIC: dict[bytes, tuple[str, Callable[[Path], Any]]] = {
    b"\x1f\x8b": (".gz", gzip.open),
    b"BZh": (".bz2", bz2.open),
    b"\xfd7zXZ": (".xz", lzma.open),
    b"\x28\xb5\x2f\xfd": (".zst", lambda path: _open_zstandard(path)),
}
_BROKEN = (OSError, EOFError, zlib.error, lzma.LZMAError)
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")

Row = dict[str, Any]


def builder_of(path: Path) -> str | None:
    """Return which builder of ``datasets`` reads a file; None if none does."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return BUILDERS.get(suffixes[-1] if suffixes else "")


def iter_rows(path: str | Path, text_columns: Sequence[str] = ()) -> Iterator[Row]:
    """Yield the rows of a json, jsonl or csv file, compressed or not.

    Args:
        path: The file.
        text_columns: Columns of a csv file that hold text, also where it looks like a number.

    Raises:
        DataError: If the file is cut off, not in UTF-8, or not rows from beginning to end; it says
            in which line.
    """
    path = Path(path)
    if builder_of(path) == "csv":
        yield from _csv_rows(path, text_columns)
    else:
        yield from _json_rows(path)


def text_or_none(cell: str) -> str | None:
    """Return the text of a cell as it is, None for an empty one."""
    return cell or None


# Lines of text ---------------------------------------------------------------------------------


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file with their ends, which are as they are."""
    number = 0
    try:
        with _open(path) as file:
            for number, line in enumerate(file, 1):
                if number == 1:
                    if line[:2] in _UTF_16 or b"\0" in line[:4]:
                        raise DataError(f"{path} is in UTF-16; save it in UTF-8")
                    line = line.removeprefix(b"\xef\xbb\xbf")
                yield line.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}, line {number}: is not in UTF-8 (byte {error.object[error.start]:#x}); "
            "save the file in UTF-8"
        ) from None
    except _BROKEN as error:
        raise DataError(
            f"{path}: is cut off or damaged behind line {number} ({error}); fetch it again"
        ) from None


def _open(path: Path) -> Any:
    """Open a file by how it begins, whatever its name says."""
    with path.open("rb") as file:
        start = file.read(8)
    for magic, (_, opener) in _MAGIC.items():
        if start.startswith(magic):
            return opener(path)
    suffix = path.suffix.lower()
    if start and suffix in COMPRESSIONS:
        raise DataError(f"{path}: is not compressed, or damaged, though its name ends in {suffix}")
    return path.open("rb")


def _open_zstandard(path: Path) -> Any:
    try:
        zstandard = import_module("zstandard")
    except ImportError:
        raise DataError(f"{path}: zst files need the package zstandard") from None
    return io.BufferedReader(zstandard.open(path, "rb"))


# JSON ------------------------------------------------------------------------------------------


def _json_rows(path: Path) -> Iterator[Row]:
    lines = _lines(path)
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line, object_pairs_hook=_object, parse_int=_integer)
            if "\\ud" in line.lower():
                _check_halves(value)
        except json.JSONDecodeError:  # not one value a line, or broken
            yield from _json_values(path, line + "".join(lines), number)
            return
        except ValueError as error:
            raise _wrong_line(path, number, error) from None
        yield from _objects(path, value, number)


def _json_values(path: Path, text: str, first: int) -> Iterator[Row]:
    """Yield the rows of JSON that does not keep to lines, from this line on."""
    decoder = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer)
    place = 0
    try:
        while rest := text[place:].lstrip():
            place = len(text) - len(rest)
            value, place = decoder.raw_decode(text, place)
            _check_halves(value)
            yield from _objects(path, value, first + text.count("\n", 0, place))
    except json.JSONDecodeError as error:
        raise _wrong_line(path, first + error.lineno - 1, error) from None
    except ValueError as error:
        raise _wrong_line(path, first + text.count("\n", 0, place), error) from None


def _objects(path: Path, value: Any, number: int) -> Iterator[Row]:
    """Yield the object that a value is, or those that it lists."""
    for place, item in enumerate(value if isinstance(value, list) else [value]):
        if not isinstance(item, dict):
            where = f"line {number}" + (f", item {place}" if isinstance(value, list) else "")
            raise DataError(
                f"{path}, {where}: is {_what(item)}; a row is an object such as "
                '{"prompt": ..., "chosen": ..., "rejected": ...}'
            )
        yield item


def _check_halves(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"has half a character, {error.object[error.start]!a}") from None


def _wrong_line(path: Path, number: int, error: ValueError) -> DataError:
    what = f"is no valid JSON: {error.msg}" if isinstance(error, json.JSONDecodeError) else error
    return DataError(f"{path}, line {number}: {what}")


def _what(value: Any) -> str:
    names = {type(None): "null", str: "text", list: "a list", bool: "true or false"}
    return names.get(type(value), "a number")


def _object(pairs: list[tuple[str, Any]]) -> Row:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"has the key {next(n for n in names if names.count(n) > 1)!r} twice")
    return made


def _integer(text: str) -> int:
    if len(text) > 18 and not -(2**63) <= int(text) < 2**63:
        raise ValueError(f"has a number of {len(text)} digits; make it text")
    return int(text)


# CSV -------------------------------------------------------------------------------------------


def _csv_rows(path: Path, text_columns: Sequence[str]) -> Iterator[Row]:
    limit = csv.field_size_limit(sys.maxsize)
    try:
        held = list[str]()  # lines of the row that is read
        parts = (part for line in _lines(path) for part in re.split(r"(?<=\r)(?!\n)", line) if part)
        reader = csv.reader(_kept(parts, held))
        header = next(reader, [])
        _check_header(path, header)
        held.clear()
        for cells in reader:
            _check_closed(path, held, reader.line_num)
            held.clear()
            if cells and len(cells) != len(header):
                raise DataError(
                    f"{path}, line {reader.line_num}: has {len(cells)} cells, and the header "
                    f"{len(header)}; text with a comma or a line break stands in quotes"
                )
            if cells:
                yield {
                    name: text_or_none(cell) if name in text_columns else _cell(cell)
                    for name, cell in zip(header, cells, strict=True)
                }
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}") from None
    finally:
        csv.field_size_limit(limit)


def _kept(lines: Iterable[str], held: list[str]) -> Iterator[str]:
    """Yield lines, and keep each."""
    for line in lines:
        held.append(line)
        yield line


def _check_closed(path: Path, lines: Sequence[str], last: int) -> None:
    """Raise where a quote that opens in the last row of a file is never closed."""
    if sum(line.count('"') for line in lines) % 2:
        try:
            list(csv.reader(lines, strict=True))
        except csv.Error as error:
            if "unexpected end" in str(error):
                first = last - len(lines) + 1
                raise DataError(
                    f"{path}, line {first}: opens a quote that no line closes"
                ) from None


def _check_header(path: Path, header: list[str]) -> None:
    for name in header:
        if header.count(name) > 1:
            raise DataError(f"{path}: has the column {name!r} twice")
        if name != name.strip():
            raise DataError(f"{path}: the column {name!r} begins or ends with a blank; remove it")
    if len(header) == 1 and (found := [sign for sign in _SEPARATORS if sign in header[0]]):
        raise DataError(f"{path}: its cells are separated by {found[0]!r}; use commas")


def _cell(text: str) -> Any:
    """Return the number or switch that a cell holds, else its text."""
    if text in NO_VALUE:
        return None
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
