"""A loss added in the four places of CONTRIBUTING.md, and in no other, is everywhere.

The template of CONTRIBUTING.md is put into a copy of the repository; each place where a user meets
a loss is then asked for it, in a process of its own.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from prefopt.losses.registry import list_losses
from tests.conftest import ROOT
from tests.losses.test_template import blocks

pytestmark = pytest.mark.slow  # processes, a training run, a page built by Sphinx

TRAIN = """
from datasets import Dataset
from prefopt import PreferenceConfig, PreferenceTrainer
from prefopt.toy import build_model, build_tokenizer, sample_pairs

tokenizer = build_tokenizer()
args = PreferenceConfig(
    "out", loss_type="square", max_steps=3, logging_steps=1, report_to="none", use_cpu=True
)
rows = Dataset.from_list(sample_pairs(24))
trainer = PreferenceTrainer(build_model(tokenizer), None, args, None, rows, None, tokenizer)
trainer.train()
print(*[entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A copy of the repository in which the loss of the template was added."""
    folder = tmp_path_factory.mktemp("copy")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file() and not name.endswith(".png"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    add_loss(folder)
    return folder


def add_loss(folder: Path) -> None:
    """Add the loss of the template in the four places."""
    loss, test = blocks()
    (folder / "prefopt" / "losses" / "square.py").write_text(loss)
    (folder / "tests" / "losses" / "test_square.py").write_text(test)
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    (line,) = re.findall(r"^ +(from prefopt\.losses\.square import \w+ as \w+\n)", guide, re.M)
    exports = folder / "prefopt" / "losses" / "__init__.py"
    exports.write_text(re.sub(r"^from ", f"{line}from ", exports.read_text(), count=1, flags=re.M))
    changes = folder / "CHANGELOG.md"
    changes.write_text(changes.read_text().replace("\n- ", "\n- The loss `square`.\n- ", 1))


@pytest.fixture(scope="module")
def run(copy):
    """Run Python in the copy: what it prints, on success."""

    def run(*argv: str) -> str:
        done = subprocess.run(
            [sys.executable, *argv],
            env={**os.environ, "PYTHONPATH": str(copy), "HF_HUB_OFFLINE": "1"},
            cwd=copy,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_the_registry_has_it_and_the_package_exports_it(run, copy):
    code = "import prefopt; from prefopt.losses import *; print(prefopt.__file__, square_loss)"
    assert run("-c", code).startswith(f"{copy}/prefopt/__init__.py <function square_loss")
    assert run("-m", "prefopt", "losses", "square").startswith("square\n  SQUARE: draws the reward")


def test_the_guide_says_when_to_use_it(run):
    shown = run("-m", "prefopt", "losses", "--why")
    family = shown.split("Pairs: a function of the reward margin")[1].split("\nPairs: ")[0]
    assert re.search(r"│square +│ the margin should neither stay small nor grow", family)


def test_the_table_of_the_readme_has_it_and_nothing_else_changed(run, copy):
    run("docs/generate.py")  # as `make docs` does
    old, new = [(folder / "README.md").read_text().splitlines() for folder in (ROOT, copy)]
    changed = [pair for pair in zip(old, new, strict=True) if pair[0] != pair[1]]
    count = len(list_losses())
    for (before, after), (word, its) in zip(
        changed,
        [("`robust`", "`robust`, `square`"), (f" {count} ", f" {count + 1} ")],
        strict=True,
    ):
        assert word in before
        assert after == before.replace(word, its)


def test_the_documentation_has_a_page_with_its_picture(run, copy):
    only = ("-D", "root_doc=losses/square", "-D", "include_patterns=losses/square.md")
    quiet = ("-D", "suppress_warnings=myst.xref_missing")  # links to pages that are left out
    run("-m", "sphinx", "-q", "-W", *only, *quiet, "-b", "html", "docs", "built")
    page = (copy / "built" / "losses" / "square.html").read_text()
    assert "Use it when the margin should neither stay small nor grow without bound." in page
    assert "TRL 1.16 averages log-ratios over tokens." in page
    assert "_images/square.svg" in page
    assert "[`square`](losses/square.md)" in run("-c", CHOOSING)


CHOOSING = (
    "import sys; sys.path.insert(0, 'docs'); import page_tables as p; print(p.advice_tables())"
)


def test_a_model_trains_with_it(run):
    losses = [float(loss) for loss in run("-c", TRAIN).splitlines()[-1].split()]
    assert len(losses) == 3
    assert losses[0] == pytest.approx(1, abs=1e-5)  # margin 0, a distance of 1 from the target
    assert losses[2] != losses[0]


def test_its_tests_and_those_over_the_registry_pass(run):
    run("docs/generate.py")
    files = (
        "losses/test_square.py",
        "losses/test_contract.py",
        "test_docs.py",
        "cli/test_guide.py",
    )
    only = "square or readme_is_up or guide or family"
    shown = run("-m", "pytest", "-q", "-k", only, *(f"tests/{name}" for name in files))
    assert " passed" in shown
