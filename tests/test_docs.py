"""The documentation keeps up with the code: pages, tables and the code that readers paste."""

import importlib
import inspect
import json
import pkgutil
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import prefopt
from prefopt.losses import list_losses

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
BUILT_IN = [loss for loss in list_losses() if loss.built_in]


@pytest.fixture(scope="module")
def generate():
    """The module that makes pages from code; it lies in docs/, outside the package."""
    return docs_module("generate")


@pytest.fixture(scope="module")
def tables():
    """The module that fills tables into pages."""
    return docs_module("page_tables")


def docs_module(name: str):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DOCS)
        return importlib.import_module(name)


def public_packages() -> list[str]:
    """Return the packages of prefopt that users import from: those with an ``__all__``."""
    names = [module.name for module in pkgutil.iter_modules(prefopt.__path__) if module.ispkg]
    modules = [importlib.import_module(f"prefopt.{name}") for name in names if name != "cli"]
    return [module.__name__ for module in modules if getattr(module, "__all__", None)]


def field_names(dataclass: type) -> set[str]:
    """Return the names of a dataclass's fields."""
    return {item.name for item in fields(dataclass)}


def python_blocks(text: str) -> list[str]:
    """Return the Python code blocks of a Markdown text."""
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("package", public_packages())
def test_every_public_package_has_an_api_page(package):
    pages = [path.read_text() for path in (DOCS / "api").glob("*.md")]
    directives = [*pages, docs_module("page_tables").losses_api()]
    assert any(f"automodule:: {package}\n   :members:" in text for text in directives)


@pytest.mark.parametrize("package", public_packages())
def test_every_public_name_has_a_docstring_of_its_own(package):
    module = importlib.import_module(package)
    objects = {name: getattr(module, name) for name in module.__all__}
    bare = [
        name
        for name, value in objects.items()
        if (inspect.isclass(value) or inspect.isroutine(value)) and not value.__doc__
    ]
    assert bare == []  # autodoc would leave them out


@pytest.mark.parametrize("name", sorted(set(prefopt.__all__) - {"__version__"}))
def test_every_name_of_the_top_level_is_on_an_api_page(name):
    pages = "".join(path.read_text() for path in (DOCS / "api").glob("*.md"))
    assert re.search(rf"\b{name}\b", pages)


def test_every_guide_is_in_the_table_of_contents():
    listed = set(re.findall(r"^([\w/]+)$", (DOCS / "index.md").read_text(), re.MULTILINE))
    assert {path.stem for path in DOCS.glob("*.md")} - {"index"} <= listed


def test_every_loss_gets_a_page_and_stale_pages_go(generate, tmp_path):
    (tmp_path / "gone.md").write_text("# gone")
    generate.write_loss_pages(tmp_path)
    expected = {f"{loss.name}.md" for loss in list_losses()} | {"index.md"}
    assert {path.name for path in tmp_path.iterdir()} == expected


@pytest.mark.parametrize("loss", BUILT_IN, ids=lambda loss: loss.name)
def test_the_page_of_a_loss_says_what_it_needs(generate, loss):
    page = generate.loss_page(loss)
    arxiv = re.search(r"arXiv:(\d{4}\.\d{5})", loss.source)
    assert arxiv or "joschu.net/blog/" in loss.source  # of all, one comes from a note
    assert arxiv is None or f"https://arxiv.org/abs/{arxiv[1]}" in page
    assert "not stated" not in page
    assert re.search(r"## Formula\n\n\$\$\n\\ell\S* = ", page)
    assert all(f"`{name}`" in page for name in loss.inputs)
    for name, default in loss.hyperparameters.items():
        cells = rf"^\| `{name}` \| `{re.escape(repr(default))}` \| ([^|]*) \| (.*) \|$"
        row = re.search(cells, page, re.M)
        assert row, name
        assert bool(row[1]) == (name in loss.published)
        assert len(row[2]) > 10, f"{name} is not described"


def test_the_formula_in_the_docstring_is_typeset_and_the_code_shown(generate):
    def typeset_loss(chosen_logps, rejected_logps):
        r"""Sum: of two.

        Source: arXiv:1234.56789. Departures from it: none.

        .. math::
            a + b

        Afterwards.
        """
        return chosen_logps + rejected_logps

    loss = prefopt.Loss("typeset", typeset_loss)
    assert generate.formula(loss).startswith("$$\na + b\n$$\n\nAfterwards.\n\n")
    assert generate.notes(loss) == "Afterwards."
    typeset_loss.__doc__ = "Sum: of two."
    assert generate.formula(loss) == "```python\nreturn chosen_logps + rejected_logps\n```"


def test_the_table_of_the_configuration_has_every_own_field(tables):
    from transformers import TrainingArguments

    own = field_names(prefopt.PreferenceConfig) - field_names(TrainingArguments)
    described = set(re.findall(r"^\| `(\w+)` \| .* \| \S.* \|$", tables.config_table(), re.M))
    assert own <= described
    assert "learning_rate" in described  # inherited, with another default


def test_the_migration_table_has_every_field_of_trl(tables):
    trl = pytest.importorskip("trl")
    from transformers import TrainingArguments

    theirs = field_names(trl.DPOConfig) | field_names(trl.KTOConfig)
    listed = set(re.findall(r"^\| `(\w+)` \|", tables.trl_table(), re.M))
    assert theirs - field_names(TrainingArguments) <= listed


def test_markers_of_tables_are_filled(tables):
    filled = set()
    for path in [*DOCS.glob("*.md"), *DOCS.glob("api/*.md")]:
        source = [path.read_text()]
        filled |= set(re.findall(r"\{\{ (\w+) \}\}", source[0]))
        tables.fill_tables(None, path.stem, source)
        assert "{{" not in source[0], path
    assert filled == set(tables.TABLES)


def test_what_the_readme_reads_from_elsewhere_is_up_to_date(generate, tmp_path):
    (tmp_path / "README.md").write_text((ROOT / "README.md").read_text())
    generate.write_readme(tmp_path / "README.md")
    assert (tmp_path / "README.md").read_text() == (ROOT / "README.md").read_text(), (
        "run: python docs/generate.py"
    )


def test_only_the_parts_between_comments_are_rewritten(generate, tmp_path, monkeypatch):
    parts = {"one": lambda: "new", "two": lambda: "newer"}
    monkeypatch.setattr(generate, "README_PARTS", parts)
    path = tmp_path / "README.md"
    part = "{}<!-- Made by `make docs`: {} -->\nold\n<!-- End -->\n{}"
    path.write_text(part.format("a\n", "one", "b\n") + part.format("", "two", "c\n"))
    generate.write_readme(path)
    lines = [line for line in path.read_text().splitlines() if line and "<!--" not in line]
    assert lines == ["a", "new", "b", "newer", "c"]
    path.write_text("no table\n")
    with pytest.raises(ValueError, match="not enough values"):
        generate.write_readme(path)
    assert path.read_text() == "no table\n"


def test_the_table_of_losses_has_each_once(generate):
    table = generate.readme_table()
    assert sorted(re.findall(r"`(\w+)`", table)) == [loss.name for loss in BUILT_IN]


def test_the_table_of_speed_is_what_was_measured():
    measured = docs_module("measured")
    rows = {row[0]: row[1:] for row in measured.speed_rows()}
    results = ROOT / "benchmarks" / "results" / "throughput_135m_dpo_hh.json"
    (found,) = json.loads(results.read_text())["results"]
    seconds = {
        side: sum(step["seconds"] for step in steps[found["warmup"] :])
        for side, steps in found["measured"].items()
    }
    ours, theirs, ratio, *_ = rows["DPO, shape of SmolLM2-135M"]
    assert ours == f"{8 * 8 / seconds['prefopt']:.2f}"  # 8 steps of 8 pairs
    assert theirs == f"{8 * 8 / seconds['trl']:.2f}"
    assert ratio == f"{seconds['trl'] / seconds['prefopt']:.1f}x"
    assert re.search(
        r"on 21 November 2026 on an Intel Xeon Processor, 2 ", measured.speed_caption()
    )


def test_numbers_that_pages_state_are_counted(generate):
    found = docs_module("measured").counts()
    assert found["losses"] == len(BUILT_IN)
    assert f"each of the {len(BUILT_IN)} is" in generate.readme_counts()
    changelog = (ROOT / "CHANGELOG.md").read_text()
    said = re.search(r"one trainer for (\d+) offline preference losses", changelog)
    assert said is None or int(said[1]) <= len(BUILT_IN)
    for path in (ROOT / "README.md", *DOCS.glob("*.md")):
        text = path.read_text()
        assert "every offline preference loss" not in text, path
        assert "no download" not in text, path


@pytest.mark.slow
def test_the_readme_runs_when_pasted(tmp_path):
    (code,) = python_blocks((ROOT / "README.md").read_text())
    assert len([line for line in code.splitlines() if line.strip()]) <= 11
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[-1]) > 0.6


def test_every_repository_path_that_the_readme_links_to_exists():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / "README.md").read_text())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.fixture
def built(tmp_path):
    """The documentation, as `make docs` built it if nothing is newer, or built now."""
    made = DOCS / "_build" / "html"
    parts = ("prefopt/**/*.py", "docs/*.md", "docs/*.py", "docs/api/*.md")
    newest = max(path.stat().st_mtime for part in parts for path in ROOT.glob(part))
    if (made / "index.html").is_file() and (made / "index.html").stat().st_mtime > newest:
        return made
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", str(DOCS), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return tmp_path


@pytest.mark.slow
def test_the_documentation_builds_without_warnings_and_has_every_public_name(built):
    api = "".join(path.read_text() for path in (built / "api").glob("*.html"))
    functions = {loss.function.__name__ for loss in BUILT_IN}  # a table, linked to their pages
    for package in public_packages():
        for name in importlib.import_module(package).__all__:
            wanted = f">{package}.{name}<" if name in functions else f'id="{package}.{name}"'
            assert wanted in api, f"{package}.{name}"
    assert 'id="prefopt.PreferenceTrainer"' in api
    assert 'id="prefopt.PreferenceConfig"' in api
    for loss in list_losses():
        assert (built / "losses" / f"{loss.name}.html").is_file()
