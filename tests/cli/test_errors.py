"""Errors about input and limits of the machine become one message; faults of ours stay."""

import errno
import json

import pytest

from prefopt import cli
from prefopt.cli import main
from prefopt.cli.errors import LONGEST, MachineError, UserError, as_user_error, user_errors
from tests.processes import run_script


def raised(code, module, **names):
    """Return the error that code raises as part of a module."""
    space = {"__name__": module, **names}
    with pytest.raises(Exception) as caught:  # noqa: PT011 # any
        exec(code, space)
    # The last frame is that of the code, not this one's.
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        ValueError("bad"),
        FileNotFoundError("bad"),
        ImportError("bad"),
        EOFError("bad"),
        json.JSONDecodeError("bad", "{", 0),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    ],
)
def test_errors_about_input_become_user_errors(error):
    with pytest.raises(UserError, match="bad") as caught, user_errors():
        raise error
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyError("bug"), BrokenPipeError()])
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)), user_errors():
        raise error


@pytest.mark.parametrize(
    ("code", "module"),
    [
        ("list(zip([1], [], strict=True))", "prefopt.training.step"),
        ("int('x')", "prefopt.data.files"),
        ("{}['x']", "prefopt.training.trainer"),
        ("[].x", "prefopt.training.trainer"),
        ("raise KeyError('x')", "prefopt.training.trainer"),
        ("raise RuntimeError('x')", "prefopt.training.trainer"),
        ("import prefopt.no_such_part", "prefopt.cli.train"),
        ("len(5)", "prefopt.cli.train"),
        ("{}['x']", "transformers.trainer"),
        ("raise RuntimeError('size mismatch')", "torch.nn.functional"),
        ("raise ValueError('Caught KeyError in DataLoader worker process 0.')", "torch._utils"),
    ],
)
def test_a_fault_of_the_program_keeps_its_traceback(code, module):
    assert as_user_error(raised(code, module)) is None


@pytest.mark.parametrize(
    ("code", "module"),
    [
        ("raise ValueError('bad')", "prefopt.training.step"),
        ("raise TypeError('bad')", "prefopt.training.run"),
        ("raise ValueError('bad')", "torch.optim.adamw"),
        ("raise KeyError('bad')", "transformers.trainer"),
        ("raise RuntimeError('WandbCallback is bad')", "transformers.integrations"),
        ("raise AssertionError('bad')", "transformers.trainer_callback"),
        ("(lambda: 0)(bad=1)", "transformers.optimization"),
    ],
)
def test_what_libraries_and_checks_say_on_purpose_is_the_users(code, module):
    told = as_user_error(raised(code, module))
    assert type(told) is UserError
    assert "bad" in str(told)
    library = module.startswith("transformers")
    assert (f"in {module}; PREFOPT_DEBUG=1 shows all" in str(told)) == library


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "out/x"), "No space left on device.*x"),
        (MemoryError(), "not enough memory: MemoryError. Less is needed"),
        (RuntimeError("CUDA out of memory. Tried"), "not enough memory: CUDA .*max_length"),
        (
            RuntimeError("[enforce fail at inline_container.cc:659] . unexpected pos 64 vs 0"),
            "can't be written, the disk may be full: .*unexpected pos",
        ),
    ],
)
def test_a_limit_of_the_machine_is_told_and_is_no_mistake_of_the_user(error, says):
    with pytest.raises(MachineError, match=says) as caught, user_errors():
        raise error
    assert caught.value.exit_code == 1


def test_a_long_message_loses_its_middle():
    with pytest.raises(UserError) as caught, user_errors():
        raise ValueError("begin " + "x" * 5000 + " end")
    assert str(caught.value).startswith("begin x")
    assert str(caught.value).endswith("x end")
    assert len(str(caught.value)) <= LONGEST


@pytest.fixture
def failing(monkeypatch):
    """Let a command raise an error."""

    def fail(error):
        def command(words):
            raise error

        monkeypatch.setattr("prefopt.cli.losses.main", command)
        return main(["losses"])

    return fail


def test_an_error_may_carry_its_exit_code(failing, capsys):
    class StoppedError(RuntimeError):
        exit_code = 143

    assert failing(StoppedError("stopped at step 7")) == 143
    assert capsys.readouterr().err == "prefopt: error: stopped at step 7\n"


def test_an_error_anywhere_in_a_command_is_one_message(failing, capsys):
    assert failing(OSError(errno.ENOSPC, "No space left on device")) == 1
    assert capsys.readouterr().err == "prefopt: error: [Errno 28] No space left on device\n"
    with pytest.raises(KeyError):
        failing(KeyError("bug"))


def test_an_error_that_another_process_alone_has_met_is_reported_by_it(
    failing, capsys, monkeypatch
):
    waited = []
    monkeypatch.setattr("prefopt.cli.time.sleep", waited.append)
    monkeypatch.setenv("RANK", "3")
    for error, code in ((OSError("gone"), 2), (UserError("gone"), 2), (MachineError("gone"), 1)):
        assert failing(error) == code
        assert capsys.readouterr().err == "prefopt: error in process 3: gone\n"
    assert failing(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == ""
    assert waited == [cli._PATIENCE_S] * 3 + [cli._PATIENCE_STOPPED_S]


def test_one_that_the_main_process_meets_late_is_reported_by_it_alone(tmp_path):
    """A launcher ends all processes as soon as the first has left."""
    late = tmp_path / "late.py"
    late.write_text(
        "import os, sys, time\n"
        "time.sleep(2 * (os.environ['RANK'] == '0'))\n"
        "from prefopt.cli import main\n"
        "sys.exit(main(['losses', 'no such loss']))\n"
    )
    done = run_script(str(late))
    assert done.returncode != 0
    (said,) = [line for line in done.stderr.splitlines() if "no such loss" in line]
    assert said.startswith("prefopt: error: ")


def test_a_missing_extra_says_how_to_install_it():
    with pytest.raises(UserError, match=r"pip install 'prefopt\[all\]'"), user_errors():
        raise ModuleNotFoundError("No module named 'trl'", name="trl")


def test_an_error_without_a_message_is_told_by_its_name():
    with pytest.raises(UserError, match=r"^FileNotFoundError$"), user_errors():
        raise FileNotFoundError


@pytest.mark.parametrize(
    ("name", "known", "message"),
    [
        (
            "trian",
            ["train", "losses"],
            "unknown command 'trian'; did you mean 'train'? There are: train, losses",
        ),
        ("xyz", ["train", "losses"], "unknown command 'xyz'; there are: train, losses"),
        (
            "lossa",
            [f"loss{n}" for n in range(21)],
            "unknown command 'lossa'; did you mean 'loss9' or 'loss8' or 'loss7'?",
        ),
        ("xyz", [f"loss{n}" for n in range(21)], "unknown command 'xyz'"),
    ],
)
def test_an_unknown_name_comes_with_the_nearest_and_a_short_list(name, known, message):
    assert str(UserError.unknown("command", name, known)) == message
