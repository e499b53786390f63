"""The command line: ``prefopt demo | train | compare | losses | data | cache | convert-config``.

A command is a module of this package with a function ``main`` that takes its arguments as a list
and returns the exit code. It is imported when it is called for, so that help costs no import of
torch. A mistake of the user is one message on stderr and exit code 2, a limit of the machine (disk,
memory) one message and 1.
"""

import gc
import logging
import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from importlib import import_module

from prefopt import __version__
from prefopt.cli.errors import UserError, user_errors

__all__ = ["UserError", "main"]

COMMANDS: dict[str, str] = {
    "demo": "align a tiny language model on embedded data, in minutes on a CPU",
    "train": "train a model on preference data",
    "plan": "what a run will need of memory and time, before it is started",
    "compare": "which loss for these data: train several alike, and measure them",
    "eval": "measure a model on held-out preferences: accuracy, length, KL, reward, answers",
    "score": "give every completion of a file its implicit reward; best-of-N, new preferences",
    "chat": "talk to a model, beside another model",
    "sample": "print what a model answers, beside another model",
    "merge": "merge an adapter into its base model",
    "losses": "list the losses: what each needs, and its hyper-parameters",
    "data": "report what a dataset holds and what training would make of it",
    "convert-config": "convert a configuration of LLaMA-Factory, Axolotl or alignment-handbook",
    "cache": "fill, look at, verify, prune and share the store of reference log-probs",
}

_USAGE = f"""\
usage: prefopt COMMAND [options]

One trainer and a zoo of losses for preference optimisation of language models.

commands:
{chr(10).join(f"  {name:<16}{text}" for name, text in COMMANDS.items())}

options:
  -h, --help     show this message; `prefopt COMMAND --help` shows a command's options
  --version      show the version

PREFOPT_DEBUG=1 shows the traceback of an error.
"""


def _without(text: str) -> Callable[[logging.LogRecord], bool]:
    return lambda record: text not in record.getMessage()


# By logger, all but what it says at its import, whatever the command: of faster kernels that are
# not there, and of other libraries.
_FILTERS = {
    "bitsandbytes.backends.cpu.ops": _without("Failed to load CPU gemm_4bit_forward"),
    "torchao": _without("Failed to load "),
    "torch.utils._pytree": _without("is an Enum subclass and is now natively supported"),
}

# How far the main process may be behind the others on its way to an error that all of them meet,
# and where they have agreed on a step to stop after.
_PATIENCE_S = 10.0
_PATIENCE_STOPPED_S = 1.0


def how_to_go_on(stopped: KeyboardInterrupt, arguments: Sequence[str]) -> str:
    """Return what stopped a command and, if training saved a checkpoint, the one that goes on.

    Examples:
        >>> print(how_to_go_on(KeyboardInterrupt(), ["train"]))
        interrupted
    """
    text = str(stopped) or "interrupted"
    if getattr(stopped, "checkpoint", None) is None:
        return text
    again, rest = ["prefopt"], iter(arguments)
    for word in rest:
        name, _, value = word.partition("=")
        if name.replace("-", "_") == "__resume_from_checkpoint":
            if not value:
                next(rest, None)
        else:
            again.append(word)
    command = shlex.join([*again, "--resume_from_checkpoint", "true"])
    launcher = "" if os.environ.get("WORLD_SIZE", "1") == "1" else ", started as it was"
    return f"{text}\nGo on with{launcher}:\n  {command}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command, by default the process's, and return 0, 1 (failure) or 2 (user's mistake).

    An exception with an ``exit_code`` is told in one message, and that is returned; one without is
    a fault of this program, and raised.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("TQDM_DELAY", "2")  # s; what fails soon is told without progress bars
    for logger, passes in _FILTERS.items():
        logging.getLogger(logger).addFilter(passes)
    # Of transformers, for what peft does.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    try:
        code = _run(arguments)
        if code:
            _let_main_speak(_PATIENCE_S)
        return code
    except SystemExit as leaving:  # argparse: help (0) and wrong usage (2)
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except KeyboardInterrupt as stopped:
        if is_main_process():
            print(f"prefopt: {how_to_go_on(stopped, arguments)}", file=sys.stderr)
        _let_main_speak(_PATIENCE_STOPPED_S)
        return getattr(stopped, "exit_code", 130)
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has what it wants
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except BaseException as error:
        own = getattr(error, "exit_code", None)
        if not isinstance(own, int) or os.environ.get("PREFOPT_DEBUG") == "1":
            raise
        _report(error)
        return own


def _report(error: BaseException) -> None:
    """Print an error once: the main process does, or another that alone has met it."""
    _let_main_speak(_PATIENCE_S)
    process = "" if is_main_process() else f" in process {os.environ['RANK']}"
    print(f"prefopt: error{process}: {error}", file=sys.stderr)


def _let_main_speak(patience_s: float) -> None:
    """Wait in the others: a launcher ends all processes, heard or not, as soon as one has left."""
    if not is_main_process():
        with suppress(KeyboardInterrupt):
            time.sleep(patience_s)


def is_main_process() -> bool:
    """Return whether this process is the one of its launch that may print."""
    return os.environ.get("RANK", "0") == "0"


def _run(arguments: list[str]) -> int:
    if not arguments:
        print(_USAGE, end="", file=sys.stderr)
        return 2
    name, *rest = arguments
    if name in ("-h", "--help", "help"):
        print(_USAGE, end="")
        return 0
    if name in ("-V", "--version"):
        print(f"prefopt {__version__}")
        return 0
    if name not in COMMANDS:
        raise UserError.unknown("command", name, COMMANDS)
    module = f"prefopt.cli.{name.replace('-', '_')}"
    with nullcontext() if module in sys.modules else _kept():
        command: Callable[[Sequence[str]], int] = import_module(module).main
    with user_errors():
        return command(rest)


@contextmanager
def _kept() -> Iterator[None]:
    """Leave what is made within out of garbage collections, now and later.

    Libraries stay until the process ends. Collections walked through half a million objects of
    theirs while they were imported, and whenever accelerate asks for one: 1.8 s of the 7 s of CPU
    of a training of two steps.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
