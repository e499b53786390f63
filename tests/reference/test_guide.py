"""What docs/reference.md says of the store's schema and commands is so."""

import re
from pathlib import Path

import numpy as np
import pytest

from prefopt.cli import cache
from prefopt.reference import default_folder
from prefopt.reference.store.database import Database

DOCS = Path(__file__).parents[2] / "docs"
GUIDE = (DOCS / "reference.md").read_text()


@pytest.fixture
def connection(tmp_path):
    """A connection to a store with two references, one of which has no completion."""
    database = Database(tmp_path / "reference.sqlite")
    reference = database.reference("f" * 32, {"name_or_path": "org/model"})
    database.reference("e" * 32, {"name_or_path": "org/other"})
    origin = database.origin({"device": "cpu"})
    values = [(bytes([i]) * 16, np.zeros(300 + i, dtype=np.float32)) for i in range(2)]
    database.put(reference, "f" * 32, origin, values)
    return database.connection


def test_the_query_of_the_guide_says_what_a_store_holds(connection):
    (query,) = re.findall(r"```sql\n(.*?)```", GUIDE, re.DOTALL)
    rows = connection.execute(query).fetchall()
    assert rows == [("f" * 32, "org/model", "cpu", 2, 601)]


def test_the_guide_lists_all_tables_with_their_columns(connection):
    section = GUIDE.split("\n## The schema\n")[1]
    told = {
        name: re.findall(r"`(\w+)`", columns)
        for name, columns in re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.M)
    }
    tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    assert told == {
        name: [column for _, column, *_ in connection.execute(f"PRAGMA table_info({name})")]
        for (name,) in tables
    }


def test_pieces_are_as_long_as_the_guide_says(connection):
    (tokens,) = re.findall(r"up to (\d+) float32", GUIDE)
    longest = connection.execute("SELECT max(length(logps)) FROM piece").fetchone()
    assert longest == (4 * int(tokens),)


def test_the_guide_shows_every_command(capsys):
    shown = set(re.findall(r"^prefopt cache (\w+)", GUIDE, re.M))
    with pytest.raises(SystemExit):
        cache.make_parser().parse_args(["--help"])
    listed = re.findall(r"^    (\w+) ", capsys.readouterr().out, re.M)
    assert shown == set(listed)


def test_the_example_of_the_api_page_runs(tmp_path, monkeypatch, capsys):
    default_folder().mkdir(parents=True, exist_ok=True)
    database = Database(default_folder() / "reference.sqlite")
    reference = database.reference("f" * 32, {"name_or_path": "org/model"})
    origin = database.origin({"device": "cpu"})
    database.put(reference, "f" * 32, origin, [(b"k" * 16, np.zeros(3, dtype=np.float32))])
    database.close()
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(
        r"```python\n(.*?)```", (DOCS / "api" / "reference.md").read_text(), re.S
    )
    exec(example, {})
    assert capsys.readouterr().out == "ffffffffffff org/model 1\nTrue\n"
    assert (tmp_path / "logps.parquet").is_file()
