"""The order of the layers in DESIGN.md, read from the import statements, inside functions too."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import prefopt

PACKAGE = Path(prefopt.__file__).parent
LAYERS = (
    ("records", "migration", "versions"),
    ("losses",),
    ("objective", "engine"),
    ("batch",),
    ("data",),
    ("reference",),
    ("config_checks",),
    ("config",),
    ("training",),
    ("trl",),
    ("evaluation", "compare", "toy"),
    ("cli", "__main__"),
)
RANK = {unit: rank for rank, layer in enumerate(LAYERS) for unit in layer}
TRL_HELPERS = {"TrlParser", "ModelConfig", "get_peft_config", "get_quantization_config"}


class Import(NamedTuple):
    """One imported module or name, with the file and line that import it."""

    unit: str  # the part of prefopt that imports: "losses", "trainer", ...
    module: str  # dotted and absolute
    name: str | None  # what is taken from the module, None for `import module`
    where: str


def imports_of(source: str, module: str, is_package: bool, where: str) -> Iterator[Import]:
    """Yield every import in the source of the module with this dotted name."""
    parts = module.split(".")
    unit = parts[1] if len(parts) > 1 else "prefopt"
    for node in ast.walk(ast.parse(source)):
        place = f"{where}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(unit, alias.name, None, place)
        elif isinstance(node, ast.ImportFrom):
            base = parts[: len(parts) + is_package - node.level] if node.level else []
            target = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield Import(unit, target, alias.name, place)
        elif (
            isinstance(node, ast.Call)
            and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module"
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield Import(unit, str(node.args[0].value), None, place)


def all_imports() -> list[Import]:
    """Return the imports of every file of the package."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE.parent)
        parts = relative.with_suffix("").parts
        is_package = parts[-1] == "__init__"
        module = ".".join(parts[:-1] if is_package else parts)
        found += imports_of(path.read_text(), module, is_package, str(relative))
    return found


def imported_unit(item: Import) -> str | None:
    """Return the part of prefopt that is imported, or None for what is not prefopt's."""
    if item.module.split(".")[0] != "prefopt":
        return None
    if "." in item.module:
        return item.module.split(".")[1]
    if item.name is None or item.name == "__version__":
        return "prefopt"
    home = prefopt._HOMES.get(item.name, f"prefopt.{item.name}")
    return home.split(".")[1]


def order_violations(items: list[Import]) -> list[str]:
    """Return what breaks the order: imports that point up, and units that import each other."""
    found, edges = [], set()
    for item in items:
        unit = imported_unit(item)
        if item.unit == "prefopt" or unit in (None, "prefopt", item.unit):
            continue
        if item.unit not in RANK or unit not in RANK:
            found.append(f"{item.where}: {unit if item.unit in RANK else item.unit} has no layer")
        elif RANK[unit] > RANK[item.unit]:
            found.append(f"{item.where}: {item.unit} imports {unit}, which lies above it")
        else:
            edges.add((item.unit, unit))
    mutual = sorted(edge for edge in edges if edge[::-1] in edges and edge[0] < edge[1])
    return found + [f"{a} and {b} import each other" for a, b in mutual]


def trl_violations(items: list[Import]) -> list[str]:
    """Return the imports of TRL where there must be none, or beside its public helpers."""
    found = []
    for item in items:
        if item.module.split(".")[0] != "trl":
            continue
        if item.unit == "trl" and item.name is None:
            continue  # hands on other names of TRL when they are asked for: tests/test_trl.py
        if item.unit not in ("cli", "compare"):
            found.append(f"{item.where}: {item.unit} imports trl")
        elif item.unit == "cli" and (item.module != "trl" or item.name not in TRL_HELPERS):
            found.append(f"{item.where}: {item.module}.{item.name} is not a stable helper of trl")
    return found


def torch_only_violations(items: list[Import]) -> list[str]:
    """Return what the losses import beyond torch and the standard library."""
    allowed = {*sys.stdlib_module_names, "torch", "prefopt"}
    return [
        f"{item.where}: losses import {item.module}"
        for item in items
        if item.unit == "losses" and item.module.split(".")[0] not in allowed
    ]


def test_imports_point_down_the_layers():
    assert order_violations(all_imports()) == []


def test_trl_is_imported_by_the_command_line_and_comparisons_only():
    assert trl_violations(all_imports()) == []


def test_losses_import_torch_only():
    assert torch_only_violations(all_imports()) == []


@pytest.mark.parametrize(
    ("module", "source", "violations"),
    [
        ("prefopt.losses.dpo", "def f():\n    from prefopt.data import x", order_violations),
        ("prefopt.data.formats", "from .. import training", order_violations),
        ("prefopt.data.formats", "from prefopt import PreferenceTrainer", order_violations),
        ("prefopt.data.formats", "import_module('prefopt.cli.train')", order_violations),
        ("prefopt.extra", "import prefopt.losses", order_violations),
        ("prefopt.training.trainer", "if True:\n    import trl.trainer", trl_violations),
        ("prefopt.cli.train", "from trl.scripts.utils import TrlParser", trl_violations),
        ("prefopt.losses.dpo", "import numpy", torch_only_violations),
    ],
)
def test_a_violation_is_seen(module, source, violations):
    assert violations(list(imports_of(source, module, False, "x.py")))


def test_an_engine_that_imports_data_is_an_error():
    one = list(imports_of("import prefopt.engine.layout", "prefopt.data.collate", False, "a.py"))
    other = list(imports_of("import prefopt.data.formats", "prefopt.engine.layout", False, "b.py"))
    assert order_violations(one) == []
    assert order_violations(one + other) == ["b.py:1: engine imports data, which lies above it"]
