"""What `import prefopt` gives and costs, and what the installed distribution says about itself."""

import re
import runpy
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import tomllib

import prefopt

ROOT = Path(__file__).parent.parent
PACKAGES = [
    "compare",
    "data",
    "engine",
    "evaluation",
    "losses",
    "objective",
    "reference",
    "toy",
    "training",
]


def run_python(code: str) -> str:
    """Return what the code prints in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout.strip()


def test_importing_the_package_imports_no_heavy_library():
    heavy = "{'torch', 'transformers', 'datasets', 'numpy', 'trl', 'peft', 'accelerate', 'rich'}"
    assert run_python(f"import sys, prefopt; print(sorted({heavy} & set(sys.modules)))") == "[]"


def test_evaluating_plain_numbers_imports_no_library_of_models():
    heavy = "{'transformers', 'datasets', 'trl', 'peft', 'accelerate'}"
    code = f"import sys, prefopt.evaluation; print(sorted({heavy} & set(sys.modules)))"
    assert run_python(code) == "[]"


def test_importing_the_package_opens_no_file_beyond_its_own_source():
    code = (
        "import sys, importlib, importlib.metadata\n"
        "opened = []\n"
        "sys.addaudithook(lambda e, a: opened.append(str(a[0])) if e == 'open' else None)\n"
        "import prefopt\n"
        "print([p for p in opened if '__init__' not in p and 'typing' not in p])"
    )
    assert run_python(code) == "[]"


@pytest.mark.parametrize("name", sorted(set(prefopt.__all__)))
def test_a_public_name_resolves(name):
    assert getattr(prefopt, name) is not None
    assert name in dir(prefopt)


def test_a_package_is_an_attribute_after_importing_prefopt_alone():
    """Each is asked of a new ``prefopt``: what another has imported is no attribute of that."""
    code = (
        "import sys, prefopt\n"
        "assert 'torch' not in sys.modules\n"
        f"for name in {PACKAGES}:\n"
        "    for own in [it for it in sys.modules if it.split('.')[0] == 'prefopt']:\n"
        "        del sys.modules[own]\n"
        "    import prefopt\n"
        "    print(getattr(prefopt, name).__name__)\n"
    )
    assert run_python(code).split() == [f"prefopt.{name}" for name in PACKAGES]
    assert {*PACKAGES} <= {*dir(prefopt)}


def test_the_packages_tested_above_are_all():
    folders = {path.parent.name for path in Path(prefopt.__file__).parent.glob("*/__init__.py")}
    assert folders - {"cli"} <= {*PACKAGES}


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Trainer'"):
        prefopt.Trainer  # noqa: B018 - the access is what is tested


def test_every_lazy_name_is_public():
    assert {*prefopt._HOMES, "__version__"} == set(prefopt.__all__)


def test_the_package_ships_its_types():
    assert (Path(prefopt.__file__).parent / "py.typed").is_file()


def test_the_distribution_has_the_version_of_the_package():
    assert metadata.version("prefopt") == prefopt.__version__


def test_the_console_script_is_the_command_line():
    scripts = metadata.entry_points(group="console_scripts", name="prefopt")
    assert [script.value for script in scripts] == ["prefopt.cli:main"]


def test_the_changelog_knows_the_version():
    changelog = Path(__file__).parent.parent / "CHANGELOG.md"
    assert f"## {prefopt.__version__}" in changelog.read_text()


@pytest.mark.parametrize("name", ["CITATION.cff", "README.md", "pyproject.toml"])
def test_what_names_the_version_names_the_one_of_the_package(name):
    text = (ROOT / name).read_text()
    found = re.findall(r'^version(?: =|:) "?([0-9.]+)|prefopt-([0-9.]+)-py3', text, re.MULTILINE)
    assert {own or wheel for own, wheel in found} == {prefopt.__version__}


def test_files_that_are_no_modules_are_in_the_wheel():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "package-data"
    ]["prefopt"]
    package = Path(prefopt.__file__).parent
    listed = {path for pattern in patterns for path in package.glob(pattern)}
    others = {path for path in package.rglob("*.*") if path.suffix not in (".py", ".pyc")}
    assert package / "compare" / "report" / "page.css" in others
    assert others <= listed


def test_the_oldest_versions_are_the_highest_of_the_bounds_of_the_extras(tmp_path):
    tool = runpy.run_path(str(ROOT / ".ci" / "versions.py"))
    wheel = tmp_path / "a.whl"
    needs = ("torch>=2.8", "rich", "datasets>=4.0", "datasets>=4.7; extra == 'cli'", "optuna<5,>=4")
    brings = "Requires-Dist: a[cli]; extra == 'all'\n"
    with zipfile.ZipFile(wheel, "w") as archive:
        text = "".join(f"Requires-Dist: {need}\n" for need in needs)
        archive.writestr("a-1.dist-info/METADATA", f"Name: a\n{text}{brings}")
    plain = {"torch": "torch==2.8", "datasets": "datasets==4.0", "optuna": "optuna==4"}
    assert tool["bounds"](wheel) == plain
    assert tool["bounds"](wheel, "all") == plain | {"datasets": "datasets==4.7"}


def test_every_package_that_the_wheel_needs_has_a_lower_bound():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    shipped = [extras[name] for name in extras if name not in ("test", "lint", "docs", "dev")]
    needs = [need for group in (project["dependencies"], *shipped) for need in group]
    assert [need for need in needs if ">=" not in need and not need.startswith("prefopt[")] == []
