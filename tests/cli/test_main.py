"""The program: its commands, its help, and what it makes of mistakes."""

import os
import subprocess
import sys

import pytest

import prefopt as package
from prefopt.cli import COMMANDS, main
from prefopt.cli.errors import UserError


def test_help_lists_every_command_and_imports_nothing_heavy():
    code = (
        "import sys; from prefopt.cli import main; code = main(['--help']);"
        "print(code, sorted({'torch', 'transformers', 'trl', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "0 []"
    assert all(f"\n  {name} " in done.stdout for name in COMMANDS)


def test_what_fails_within_two_seconds_shows_no_progress_bar():
    code = (
        "from prefopt.cli import main; main(['--version']);"
        "from tqdm.auto import tqdm; print(tqdm(range(2)).delay, [*tqdm(range(2))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "2.0 [0, 1]"
    assert done.stderr == ""


@pytest.mark.parametrize(
    "command",
    [pytest.param(it, marks=() if it == "score" else pytest.mark.slow) for it in COMMANDS],
)
def test_libraries_say_nothing_while_they_are_imported(command):
    done = subprocess.run(
        [sys.executable, "-m", "prefopt", command, "--help"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert f"prefopt {command}" in done.stdout
    assert done.stderr == ""


def test_garbage_is_collected_again_when_a_command_is_imported_but_libraries_are_not():
    code = (
        "import gc; from prefopt.cli import main; main(['losses', 'dpo']);"
        "print(gc.isenabled(), gc.get_freeze_count() > 100_000, len(gc.get_objects()) < 50_000)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "True True True"


@pytest.mark.parametrize("launch", [["-m", "prefopt"], ["-m", "prefopt.__main__"]])
def test_the_module_is_the_program(launch):
    done = subprocess.run(
        [sys.executable, *launch, "--version"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, f"prefopt {package.__version__}\n")


def test_a_command_does_not_warn_of_kernels_that_nobody_asked_for():
    pytest.importorskip("bitsandbytes")
    code = "from prefopt.cli import main; main(['losses', 'dpo']); import bitsandbytes"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "gemm_4bit" not in done.stderr


def test_no_command_is_wrong_usage(prefopt):
    result = prefopt()
    assert result.code == 2
    assert "usage: prefopt COMMAND" in result.err


def test_an_unknown_command_names_the_nearest(prefopt):
    result = prefopt("trian")
    assert result.code == 2
    assert result.err.startswith("prefopt: error: unknown command 'trian'; did you mean 'train'?")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(prefopt, command):
    result = prefopt(command, "--help")
    assert result.code == 0
    assert f"usage: prefopt {command}" in result.out


def test_the_debug_variable_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("PREFOPT_DEBUG", "1")
    with pytest.raises(UserError):
        main(["trian"])


def test_a_reader_that_leaves_early_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m prefopt losses --json | head -1; echo ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert done.stdout.splitlines() == ["[", "0"]
    assert done.stderr == ""
