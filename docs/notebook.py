"""Make a notebook of a Python file in cells (``# %%``), so that what is reviewed is code.

    python docs/notebook.py docs/examples/notebook/two_losses.py

writes ``two_losses.ipynb`` beside it. The cells have no outputs: a test runs them.
"""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

MARK = "# %%"


class Cell(NamedTuple):
    """A cell.

    Attributes:
        is_code: Whether it is run; else it is Markdown.
        text: What it holds.
    """

    is_code: bool
    text: str


def cells_of(source: str) -> list[Cell]:
    """Return the cells of a file."""
    cells = []
    for part in source.split(f"\n{MARK}" if not source.startswith(MARK) else MARK):
        head, _, body = part.partition("\n")
        if not body.strip():
            continue
        is_code = "[markdown]" not in head
        lines = body.strip("\n").splitlines()
        text = lines if is_code else [line.removeprefix("#").removeprefix(" ") for line in lines]
        cells.append(Cell(is_code, "\n".join(text).strip("\n")))
    return cells


def notebook_of(source: str) -> dict[str, Any]:
    """Return a notebook, of version 4.5 of the format, of the cells of a file."""
    cells = []
    for number, cell in enumerate(cells_of(source)):
        lines = cell.text.splitlines(keepends=True)
        of_kind: dict[str, Any] = {"cell_type": "markdown"}
        if cell.is_code:
            of_kind = {"cell_type": "code", "execution_count": None, "outputs": []}
        cells.append({"id": f"cell-{number}", "metadata": {}, "source": lines, **of_kind})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def main() -> None:
    for name in sys.argv[1:]:
        path = Path(name)
        notebook = notebook_of(path.read_text(encoding="utf-8"))
        target = path.with_suffix(".ipynb")
        target.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", "utf-8")
        print(f"{target}: {len(notebook['cells'])} cells")


if __name__ == "__main__":
    main()
