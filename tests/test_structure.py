"""How the package is built, read from its source: no circles, no mixins, a test for each module."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_layers import PACKAGE, Import, imports_of

TESTS = PACKAGE.parent / "tests"
# The collator makes batches, and the trainer hands them to transformers: in a dictionary.
DOORS = ("data/collate.py", "training/trainer.py")


def modules() -> dict[str, Path]:
    """Return every module of the package by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported_modules(item: Import, known: set[str]) -> Iterator[str]:
    """Yield the modules that an import statement loads from the package."""
    if item.name is not None and f"{item.module}.{item.name}" in known:
        yield f"{item.module}.{item.name}"
    elif item.module in known:
        yield item.module


def import_graph(sources: dict[str, str], packages: set[str]) -> dict[str, set[str]]:
    """Return which modules each module imports, inside functions too.

    A package's own ``__init__`` imports its modules; that these name the package is no circle, as
    long as they import from its modules and not from ``__init__``.
    """
    known = set(sources)
    return {
        name: {
            target
            for item in imports_of(source, name, name in packages, name)
            for target in imported_modules(item, known)
        }
        - {name}
        for name, source in sources.items()
    }


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Return the modules of one import circle, or an empty list."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return []
        for target in sorted(graph[name]):
            if found := visit(target, [*path, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(graph) if (found := visit(name, []))), [])


def package_graph() -> dict[str, set[str]]:
    """Return the import graph of the package; the lazy names of ``prefopt`` itself are left out."""
    paths = modules()
    packages = {name for name, path in paths.items() if path.name == "__init__.py"}
    sources = {name: path.read_text() for name, path in paths.items() if name != "prefopt"}
    return import_graph(sources, packages)


def classes() -> Iterator[tuple[str, ast.ClassDef]]:
    """Yield every class of the package, with the file it is in."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                yield str(path.relative_to(PACKAGE)), node


def bases(node: ast.ClassDef) -> list[str]:
    """Return the names of the bases of a class, without parameters."""
    return [re.sub(r"\[.*", "", ast.unparse(base)) for base in node.bases]


def test_no_modules_import_each_other_in_a_circle():
    assert circle(package_graph()) == []


def test_a_circle_is_seen_also_through_a_function():
    sources = {
        "p": "from p.a import x",
        "p.a": "def f():\n    from p import b",
        "p.b": "import p.c",
        "p.c": "from p.a import f",
    }
    assert circle(import_graph(sources, {"p"})) == ["p.a", "p.b", "p.c"]
    assert circle(import_graph(sources | {"p.c": ""}, {"p"})) == []


def test_one_class_is_a_transformers_trainer():
    trainers = [node.name for _, node in classes() if "Trainer" in bases(node)]
    assert trainers == ["PreferenceTrainer"]


def test_no_class_is_a_mixin():
    """A class has one base of the package at most, and declares no method that it does not have."""
    own = {node.name for _, node in classes()}
    kinds = {"ABC", "Protocol", "Generic", "NamedTuple"}
    for file, node in classes():
        its = set(bases(node)) - kinds
        assert len(its) <= 1 or not its & {*own, "Trainer"}, f"{file}: {node.name}"
        is_record = "NamedTuple" in bases(node) or any(
            "dataclass" in ast.unparse(decorator) for decorator in node.decorator_list
        )
        stand_ins = [
            ast.unparse(part)
            for part in node.body
            if isinstance(part, ast.AnnAssign) and "Callable" in ast.unparse(part.annotation)
        ]
        assert is_record or not stand_ins, f"{file}: {node.name}"


def test_every_module_has_a_test_at_the_mirrored_place():
    wanted = [
        path.relative_to(PACKAGE)
        for path in modules().values()
        if path.name not in ("__init__.py", "__main__.py")
    ]
    missing = [
        str(path) for path in wanted if not (TESTS / path.parent / f"test_{path.name}").is_file()
    ]
    assert missing == []


def test_no_function_body_is_longer_than_50_lines():
    long = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and (
                body := node.body[ast.get_docstring(node) is not None :]
            ):
                lines = (body[-1].end_lineno or 0) - body[0].lineno + 1
                long += [f"{path.name}: {node.name} has {lines}"] if lines > 50 else []
    assert long == []


# What of a batch was once read by such keys; the names of a loss's inputs are another matter.
KEYS = (
    "kl|continuation|parts|counts|denominators|kl_estimate|running_means|pooled|unknown|segments|"
    "ref_per_token_logps|input_ids|attention_mask|predict_positions|target_ids|token_index|"
    "completion_index|hidden_positions|sequence_tokens|examples|rankings|of_kind|chosen_index|"
    "rejected_index|labelled_index|preferred_index"
)
ACCESS = re.compile(rf"\b(?:batch|part|views|inputs)(?:\[|\.get\()[\"'](?:{KEYS})[\"']")


def test_batches_are_records_and_no_dictionaries():
    found = [
        f"{path.relative_to(PACKAGE)}: {line.strip()}"
        for path in PACKAGE.rglob("*.py")
        if str(path.relative_to(PACKAGE)) not in DOORS
        for line in path.read_text().splitlines()
        if ACCESS.search(line)
    ]
    # What a model's own forward takes is named as transformers names it.
    assert [line for line in found if not line.startswith("engine/")] == []


@pytest.mark.parametrize("asked", [r"\.(?:ends|starts)with\(", r"\.remove(?:pre|suf)fix\("])
def test_nothing_asks_the_name_of_an_input_what_it_is(asked):
    """A record of the vocabulary says it."""
    found = [
        f"{path.name}: {line.strip()}"
        for folder in ("losses", "objective")
        for path in (PACKAGE / folder).rglob("*.py")
        for line in path.read_text().splitlines()
        if re.search(asked + r".*(?:logps|ref_|lengths|divergences|ranked|chosen|rejected)", line)
    ]
    assert found == []
