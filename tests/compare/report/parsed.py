"""Tables and texts of a page, read with Python's own HTML parser."""

from html.parser import HTMLParser
from typing import NamedTuple


class Cell(NamedTuple):
    """A cell: its ``data-value``, classes, and text."""

    value: str
    marks: str
    text: str


class Page(HTMLParser):
    """A page.

    Attributes:
        tables: Rows of the tables that have an id, each a list of cells.
        text: All text outside scripts and styles.
        tags: Every element, as (tag, attributes).
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[Cell]]] = {}
        self.text = ""
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._table = ""
        self._silent = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        own = dict(attrs)
        self.tags.append((tag, own))
        self._silent = tag in ("script", "style")
        if tag == "table":
            self._table = own.get("id") or ""
            self.tables.setdefault(self._table, [])
        elif tag == "tr":
            self.tables[self._table].append([])
        elif tag in ("td", "th"):
            cell = Cell(own.get("data-value") or "", own.get("class") or "", "")
            self.tables[self._table][-1].append(cell)

    def handle_endtag(self, tag: str) -> None:
        """Leave a script."""
        self._silent = False

    def handle_data(self, data: str) -> None:
        """Note text."""
        if self._silent:
            return
        self.text += data
        rows = self.tables.get(self._table)
        if rows and rows[-1]:
            cell = rows[-1][-1]
            rows[-1][-1] = cell._replace(text=f"{cell.text} {data.strip()}".strip())

    def table(self, name: str) -> dict[str, dict[str, Cell]]:
        """Return a table's cells by row and column, both by their heads' first words."""
        heads, *rows = self.tables[name]
        columns = [head.text.split("  ")[0] for head in heads]
        return {row[0].text: dict(zip(columns, row, strict=True)) for row in rows if len(row) > 1}
