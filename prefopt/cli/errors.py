"""Mistakes of the user: reported in one message, without a traceback."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A mistake of the user; its message says what would be right."""

    @classmethod
    def unknown(cls, what: str, name: str, known: Iterable[str]) -> "UserError":
        """Return the error of a name that does not exist, with the nearest that do, or all.

        Examples:
            >>> print(UserError.unknown("command", "trian", ["train", "losses"]))
            unknown command 'trian'; did you mean 'train'? There are: train, losses
        """
        names = list(known)
        near = difflib.get_close_matches(name, names, n=3)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ";"
        listing = f" There are: {', '.join(names)}" if len(names) <= 20 else ""
        return cls(f"unknown {what} {name!r}{hint}{listing}".rstrip(";"))


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn errors about input into ``UserError``; wrap set-up in it, not training.

    The libraries below raise ``ValueError`` and ``OSError`` for wrong input (a bad option, a path
    that does not exist, a dataset without the columns) and ``ImportError`` for a missing extra.
    """
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise UserError(_one_message(error)) from error


def _one_message(error: BaseException) -> str:
    text = " ".join(str(error).split())  # what transformers says is of several lines
    if not text:
        return type(error).__name__
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"{text}. Install it: pip install 'prefopt[all]'"
    return text
