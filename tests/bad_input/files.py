"""Broken files and folders, and names of neither."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset

from prefopt.data import DataError, load_rows, report_for
from tests.bad_input.case import Case

ROWS = [{"prompt": f"p{n}", "chosen": f" a{n}", "rejected": f" b{n}"} for n in range(4)]
LINES = [json.dumps(row) for row in ROWS]
TEXT = "\n".join(LINES) + "\n"
CSV = "prompt,chosen,rejected\n" + "".join(f"p{n}, a{n}, b{n}\n" for n in range(4))


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def parquet(change: Callable[[bytes], bytes]) -> Callable[[Path], Any]:
    """Return what reads a damaged parquet file."""

    def read(folder: Path) -> Any:
        path = folder / "rows.parquet"
        Dataset.from_list(ROWS).to_parquet(str(path))
        path.write_bytes(change(path.read_bytes()))
        return load_rows(path)

    return read


def saved(change: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """Return what reads a damaged folder of ``save_to_disk``."""

    def read(folder: Path) -> Any:
        Dataset.from_list(ROWS).save_to_disk(str(folder / "saved"))
        change(folder / "saved")
        return load_rows(folder / "saved")

    return read


def arrow_of(folder: Path) -> Path:
    return next(folder.glob("*.arrow"))


def broken(name: str, content: str | bytes, says: str, what: str = "") -> Case:
    """Return the case of a file that is read to its end, as training would."""
    return Case(what or name, lambda folder: report_for(write(folder, name, content)), says)


def streamed(name: str, content: str | bytes, says: str) -> Case:
    return Case(
        f"stream of {name}",
        lambda folder: list(load_rows(write(folder, name, content), streaming=True)),
        says,
    )


def in_row(name: str, content: str, says: str, row: int, column: str | None) -> Case:
    """Return the case of a file with a wrong row."""
    return Case(name, lambda f: report_for(write(f, name, content)), says, DataError, row, column)


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :]


ZIPPED = gzip.compress((TEXT * 50).encode())

JSON = [
    broken("empty.jsonl", "", "empty.jsonl has no rows"),
    broken("blank.jsonl", "\n\n \n", "blank.jsonl has no rows"),
    broken("list.json", "[]", "list.json has no rows"),
    broken("object.json", "{}", "object.json has no rows"),
    broken("utf16.jsonl", TEXT.encode("utf-16"), "is in UTF-16; save it in UTF-8"),
    broken("utf16-le.jsonl", TEXT.encode("utf-16-le"), "is in UTF-16; save it in UTF-8"),
    broken("latin-1.jsonl", TEXT.replace("p2", "pé").encode("latin-1"), "line 3: is not in UTF-8"),
    broken("cut.jsonl", TEXT[:-20], "cut.jsonl, line 4: is no valid JSON"),
    broken("cut within.jsonl", LINES[0] + "\n" + LINES[1][:12] + "\n" + LINES[2], "line 2: is no"),
    broken("nul.jsonl", TEXT.replace("\n", "\0\n", 1), "line 1: is no valid JSON"),
    broken("control.jsonl", TEXT.replace("p1", "p\x01"), "line 2: .*Invalid control character"),
    broken(
        "twice.jsonl", TEXT + '{"prompt": "p", "chosen": "x", "chosen": " a"}', "'chosen' twice"
    ),
    broken("list row.jsonl", TEXT + "[1, 2]\n", "line 5, item 0: is a number; a row is an object"),
    broken("text row.jsonl", '"text"\n', "line 1: is text; a row is an object"),
    broken("number row.jsonl", TEXT + "5\n", "line 5: is a number"),
    broken("null row.jsonl", TEXT + "null\n", "line 5: is null"),
    broken("null.json", "null", "line 1: is null"),
    broken("true.json", "true", "line 1: is true or false"),
    broken("item.json", json.dumps([*ROWS, "x"]), "item 4: is text"),
    broken("null item.json", json.dumps([*ROWS, None]), "item 4: is null"),
    broken("lists.json", '[["a", "b"]]', "item 0: is a list"),
    broken("commas.jsonl", ",\n".join(LINES), "line 1: is no valid JSON"),
    broken("trailing.jsonl", TEXT.replace('"}', '",}'), "line 1: is no valid JSON"),
    broken("single quotes.jsonl", TEXT.replace('"', "'"), "line 1: is no valid JSON"),
    broken("cut.json", json.dumps(ROWS)[:-30], "cut.json, line 1: is no valid JSON"),
    broken("cut pretty.json", json.dumps(ROWS, indent=1)[:-40], "line 1[89]: is no valid JSON"),
    broken("half.jsonl", TEXT + '{"prompt": "\\udc00"}', "line 5: has half a character"),
    broken("digits.jsonl", TEXT.replace('"p1"', "1" * 40), "line 2: has a number of 40 digits"),
    broken("cut.jsonl.gz", gzip.compress(TEXT.encode())[:-12], "is cut off or damaged behind line"),
    broken("short.jsonl.gz", ZIPPED[:-3], "is cut off or damaged behind line 200"),
    broken("flipped.jsonl.gz", flipped(ZIPPED, 60), "is cut off or damaged"),
    broken("crc.jsonl.gz", flipped(ZIPPED, len(ZIPPED) - 6), "is cut off or damaged"),
    broken("plain.jsonl.gz", TEXT, "is not compressed, or damaged, though its name ends in .gz"),
    broken("garbage.jsonl.gz", gzip.compress(TEXT.encode()) + b"garbage", "cut off or damaged"),
    broken("cut.jsonl.bz2", bz2.compress(TEXT.encode())[:-5], "cut off or damaged"),
    broken("cut.jsonl.xz", lzma.compress(TEXT.encode())[:-5], "cut off or damaged"),
    broken("plain.jsonl.zst", TEXT, "is not compressed, or damaged, though .* .zst"),
    broken("nothing.jsonl.gz", b"", "has no rows"),
    streamed("cut.jsonl", TEXT[:-20], "line 4: is no valid JSON"),
    streamed("cut.jsonl.gz", ZIPPED[:-20], "is cut off or damaged behind line"),
    streamed("twice.jsonl", TEXT + '{"prompt": "p", "prompt": "x"}', "'prompt' twice"),
    streamed(
        "latin-1.jsonl", TEXT.replace("p2", "pé").encode("latin-1"), "line 3: is not in UTF-8"
    ),
    in_row("missing key.jsonl", TEXT + '{"prompt": "x", "chosen": " a"}', "is null", 4, "rejected"),
    in_row(
        "a number.jsonl",
        TEXT + '{"prompt": 5, "chosen": " a", "rejected": " b"}',
        "got int",
        4,
        "prompt",
    ),
    in_row(
        "an object.jsonl",
        TEXT + '{"prompt": {"a": 1}, "chosen": " a", "rejected": " b"}',
        "has no role",
        4,
        "prompt",
    ),
    in_row("NaN.jsonl", TEXT.replace('"p1"', "NaN"), "is null", 1, "prompt"),
    in_row(
        "Infinity.jsonl", TEXT.replace('"p1"', '"p1", "weight": Infinity'), "is inf", 1, "weight"
    ),
    in_row(
        "columns.json",
        json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]}),
        "message 0 is a str",
        0,
        "chosen",
    ),
    in_row(
        "nested.json",
        json.dumps({"data": ROWS}),
        "the columns data do not hold preferences",
        0,
        None,
    ),
]

TABLES = [
    broken("empty.csv", "", "empty.csv has no rows"),
    broken("header.csv", "prompt,chosen,rejected\n", "header.csv has no rows"),
    broken("short.csv", CSV + "p9, a9\n", "line 6: has 2 cells, and the header 3"),
    broken("long.csv", CSV + "p9, a9, b9, c9\n", "line 6: has 4 cells, and the header 3"),
    broken("commas.csv", CSV.replace("p1", "p1, q1"), "line 3: has 4 cells"),
    broken("commas everywhere.csv", CSV.replace("\np", "\nwell, p"), "line 2: has 4 cells"),
    broken("quote.csv", CSV + '"p9, a9, b9\n', "line 6: opens a quote"),
    broken("utf16.csv", CSV.encode("utf-16"), "is in UTF-16"),
    broken("latin-1.csv", CSV.replace("p1", "pé").encode("latin-1"), "line 3: is not in UTF-8"),
    broken("semicolons.csv", CSV.replace(",", ";"), "separated by ';'; use commas"),
    broken("tabs.csv", CSV.replace(",", "\t"), "separated by '.t'; use commas"),
    broken("twice.csv", "prompt,chosen,chosen\np,a,b\n", "has the column 'chosen' twice"),
    broken("blanks.csv", CSV.replace(",chosen", ", chosen"), "' chosen' begins or ends with a bl"),
    broken("cut.csv.gz", gzip.compress((CSV * 9).encode())[:-9], "cut off or damaged behind line"),
    streamed("long.csv", CSV + "p9, a9, b9, c9\n", "line 6: has 4 cells, and the header 3"),
    in_row("empty cell.csv", CSV.replace(" a1", ""), "is null", 1, "chosen"),
    in_row("words.csv", "prompt,completion,label\np, a,yes\nq, b,no\n", "got 'yes'", 0, "label"),
    in_row("no label.csv", "prompt,completion,label\np, a,1\nq, b,\n", "is null", 1, "label"),
    in_row(
        "no header.csv", "p,a,b\nq,c,d\n", "the columns a, b, p do not hold preferences", 0, None
    ),
    broken("rows.txt", TEXT, "is of no known type; known are .json"),
    broken("rows.tsv", CSV.replace(",", "\t"), "is of no known type"),
    broken("rows", TEXT, "is of no known type", "a file without a type"),
    broken("rows.jsonl.zip", b"PK", "is of no known type"),
    Case("a cut parquet file", parquet(lambda b: b[:-10]), "can't load .*rows.parquet"),
    Case("half a parquet file", parquet(lambda b: b[: len(b) // 2]), "can't load .*rows.parquet"),
    Case("an empty parquet file", parquet(lambda b: b""), "can't load .*rows.parquet"),
    Case("a parquet file of text", parquet(lambda b: TEXT.encode()), "can't load .*rows.parquet"),
    Case("a flipped parquet file", parquet(lambda b: flipped(flipped(b, 30), 31)), "can't load"),
    Case(
        "half an arrow file",
        saved(lambda f: arrow_of(f).write_bytes(arrow_of(f).read_bytes()[:400])),
        "can't load .*saved",
    ),
    Case("no arrow file", saved(lambda f: arrow_of(f).unlink()), "can't load .*saved"),
    Case("a broken state.json", saved(lambda f: write(f, "state.json", "{")), "can't load .*saved"),
]


def folder_of(**files: str) -> Callable[[Path], Any]:
    """Return what reads a folder of files; ``a_jsonl`` is ``a.jsonl``."""

    def read(folder: Path) -> Any:
        (folder / "data").mkdir()
        for name, content in files.items():
            write(folder / "data", name.replace("_", "."), content)
        return report_for(folder / "data")

    return read


def streamed_parquet(folder: Path) -> Any:
    Dataset.from_list(ROWS).to_parquet(str(folder / "rows.parquet"))
    content = (folder / "rows.parquet").read_bytes()
    return load_rows(write(folder, "rows.parquet", content[:-9]), streaming=True)


NAMES = [
    Case("a stream of a cut parquet file", streamed_parquet, "can't load .*rows.parquet"),
    *(
        Case(
            f"report with the tokenizer {name}",
            lambda f, name=name: report_for(write(f, "a.jsonl", TEXT), name),
            f"can't load the tokenizer {name}",
        )
        for name in ("./nowhere", "nobody/nothing")
    ),
    Case("a folder without data", folder_of(), "has no data files: .json"),
    Case("a folder with notes only", folder_of(notes_txt="x"), "has no data files: .json"),
    Case("a folder of two types", folder_of(a_jsonl=TEXT, b_csv=CSV), "a.jsonl and b.csv"),
    Case(
        "a folder, one file broken", folder_of(a_jsonl=TEXT, b_jsonl=TEXT[:-9]), "b.jsonl, line 4"
    ),
    Case(
        "a folder of two kinds",
        folder_of(a_jsonl=TEXT, b_jsonl='{"prompt": "q", "completion": " x", "label": true}'),
        "can't load .*data: CastError",
    ),
    *(
        Case(f"data {name!r}", lambda _, name=name: load_rows(name), says)
        for name, says in (
            ("", "a file, a folder or an id on the Hub, got ''"),
            (None, "a file, a folder or an id on the Hub, got None"),
            (5, "a file, a folder or an id on the Hub, got 5"),
            (["a.jsonl"], "a file, a folder or an id on the Hub"),
            ("nowhere.jsonl", "there is no file or folder nowhere.jsonl"),
            ("./nowhere", "there is no file or folder ./nowhere"),
            ("x" * 300, "can't load x"),
            ("nobody/nothing", "there is no such file or folder.*, and as an id on the Hub"),
        )
    ),
    *(
        Case(
            f"split {split!r}",
            lambda folder, split=split: load_rows(write(folder, "a.jsonl", TEXT), split),
            says,
        )
        for split, says in (
            ("test", "its only split is 'train', not 'test'"),
            ("train[:x]", "can't load .*a.jsonl: ValueError: .*train.:x."),
            ("train[:200%]", "can't load .*a.jsonl: ValueError: Percent"),
            (5, "its only split is 'train', not 5"),
        )
    ),
    Case(
        "a split of a saved folder",
        lambda folder: [
            Dataset.from_list(ROWS).save_to_disk(str(folder / "s")),
            load_rows(folder / "s", "test"),
        ],
        "has no splits; leave out the split 'test'",
    ),
    Case(
        "a split without rows",
        lambda folder: report_for(write(folder, "a.jsonl", TEXT), split="train[3:1]"),
        "has no rows",
    ),
]

CASES = [*JSON, *TABLES, *NAMES]
