"""Mistakes of the user and limits of the machine: reported in one message, without a traceback."""

import difflib
import dis
import errno
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import NamedTuple

LONGEST = 560  # characters of a message

# What these raise on purpose is about the arguments that they were handed, or what they read.
_LIBRARIES = (
    "accelerate",
    "bitsandbytes",
    "datasets",
    "deepspeed",
    "huggingface_hub",
    "peft",
    "tokenizers",
    "transformers",
    "trl",
)
# Errors about files and packages, whoever raises them; some by name, to import no torch for help.
_OF_FILES = (OSError, ImportError, UnicodeError, EOFError)
_OF_FILES_BY_NAME = frozenset({"SafetensorError", "UnpicklingError", "BadZipFile"})
_LIMITS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.EMFILE,
    errno.ENOMEM,
    errno.EROFS,
)
_NO_MEMORY = re.compile("out of memory|can't allocate memory|not enough memory", re.IGNORECASE)
_CANNOT_WRITE = re.compile(
    "PytorchStreamWriter|inline_container|No space left|File too large|Disk quota|Read-only file"
)
_CANNOT_READ = re.compile("PytorchStreamReader")


class UserError(Exception):
    """A mistake of the user; its message says what would be right.

    Attributes:
        exit_code: That of the command. Any exception with such a number is reported like this one.
    """

    exit_code = 2

    @classmethod
    def unknown(cls, what: str, name: str, known: Iterable[str]) -> "UserError":
        """Return the error of a name that does not exist, with the nearest that do, or all.

        Examples:
            >>> print(UserError.unknown("command", "trian", ["train", "losses"]))
            unknown command 'trian'; did you mean 'train'? There are: train, losses
        """
        names = list(known)
        near = difflib.get_close_matches(name, names, n=3)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        there_are = " There are" if near else "; there are"
        listing = f"{there_are}: {', '.join(names)}" if len(names) <= 20 else ""
        return cls(f"unknown {what} {name!r}{hint}{listing}")


class MachineError(UserError):
    """What the machine cannot do: a full disk, too little memory."""

    exit_code = 1


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn errors about input into ``UserError``, those of the machine into ``MachineError``.

    The libraries below raise ``ValueError`` and ``OSError`` for wrong input (a bad option, a path
    that does not exist, a dataset without the columns) and ``ImportError`` for a missing extra. An
    error that is a fault of this program stays what it is, with its traceback, as does one that has
    an exit code of its own.
    """
    try:
        yield
    except Exception as error:
        told = as_user_error(error)
        if told is None or told is error:
            raise
        raise told from error


def as_user_error(error: Exception) -> UserError | None:
    """Return an error as one of the user or the machine; None if it is neither.

    Examples:
        >>> as_user_error(KeyError("row"))
        >>> as_user_error(FileNotFoundError("no x.jsonl"))
        UserError('no x.jsonl')
    """
    if isinstance(error, UserError):
        return error
    if isinstance(error, BrokenPipeError) or hasattr(error, "exit_code"):
        return None
    text = " ".join(str(error).split())  # what transformers says is of several lines
    limit = _limit_met(error, text)
    if limit is not None:
        return MachineError(_shortened(limit))
    source = _Source.of(error.__traceback__)
    if not _is_of_input(error, text, source):
        return None
    if not text:
        return UserError(type(error).__name__)
    if isinstance(error, ModuleNotFoundError) and error.name:
        return UserError(_shortened(f"{text}. Install it: pip install 'prefopt[all]'"))
    if source.is_library and not isinstance(error, OSError | ImportError):
        where = f"[{type(error).__name__} in {source.module}; PREFOPT_DEBUG=1 shows all of it]"
        return UserError(f"{_shortened(text, LONGEST - len(where))} {where}")
    return UserError(_shortened(text))


class _Source(NamedTuple):
    """Where an error was raised: in which module, and whether by a ``raise`` statement."""

    module: str
    on_purpose: bool

    @classmethod
    def of(cls, trace: TracebackType | None) -> "_Source":
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        if trace is None:  # it was made, not raised
            return cls("", True)
        operation = trace.tb_frame.f_code.co_code[trace.tb_lasti]
        module = str(trace.tb_frame.f_globals.get("__name__", ""))
        return cls(module, dis.opname[operation] == "RAISE_VARARGS")

    @property
    def is_ours(self) -> bool:
        return self.module.split(".")[0] == "prefopt"

    @property
    def is_library(self) -> bool:
        return self.module.split(".")[0] in _LIBRARIES


def _is_of_input(error: Exception, text: str, source: _Source) -> bool:
    """Whether an error is about what the program was given."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, ImportError) and (error.name or "").split(".")[0] == "prefopt":
        return False
    if isinstance(error, _OF_FILES) or names & _OF_FILES_BY_NAME or _CANNOT_READ.search(text):
        return True
    if text.startswith("Caught ") and "DataError" not in names:
        return False  # in a worker of a data loader, whose traceback is in the text
    if source.is_library and (source.on_purpose or "unexpected keyword argument" in text):
        return True
    if isinstance(error, ValueError):  # `zip(strict=True)` and the like raise it for faults of ours
        return source.on_purpose or not source.is_ours
    return isinstance(error, TypeError) and source.is_ours and source.on_purpose


def _limit_met(error: Exception, text: str) -> str | None:
    """Return what to say where the machine is at its end; None where it is not."""
    is_of_torch = isinstance(error, RuntimeError)
    if isinstance(error, MemoryError) or (is_of_torch and _NO_MEMORY.search(text)):
        return (
            f"not enough memory: {_shortened(text or type(error).__name__, 250)}. Less is needed "
            "with a lower per_device_train_batch_size (and more gradient_accumulation_steps), "
            "max_tokens_per_batch or max_length, and with gradient_checkpointing"
        )
    by_name = "SafetensorError" in type(error).__name__ or is_of_torch
    if by_name and _CANNOT_WRITE.search(text):
        return f"a file can't be written, the disk may be full: {text}"
    if isinstance(error, OSError) and error.errno in _LIMITS:
        return text
    return None


def _shortened(text: str, longest: int = LONGEST) -> str:
    """Return a text whose middle is left out where it is too long to be read."""
    if len(text) <= longest:
        return text
    half = (longest - len(" [...] ")) // 2
    return f"{text[:half]} [...] {text[-half:]}"
