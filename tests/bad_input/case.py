"""A case of wrong input, what must be said of it, and tokenizers and rows for such cases."""

import logging
import re
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import prefopt
from prefopt.cli import main
from prefopt.data import DataError, DataReport

PACKAGE = Path(prefopt.__file__).parent
LONGEST = 600  # characters of a message that can still be read

PAIR = {"prompt": "Is it?", "chosen": " Yes.", "rejected": " No."}
UNPAIRED = {"prompt": "Is it?", "completion": " Yes.", "label": True}
RANKED = {"prompt": "Is it?", "completions": [" Yes.", " Maybe.", " No."], "ranks": [0, 1, 2]}
IDS = {"prompt_ids": [5, 6], "chosen_ids": [7, 8], "rejected_ids": [9]}
TALK = {
    "prompt": [{"role": "user", "content": "Is it?"}],
    "chosen": [{"role": "assistant", "content": "Yes."}],
    "rejected": [{"role": "assistant", "content": "No."}],
}


@dataclass(frozen=True)
class Case:
    """Wrong input.

    Args:
        name: What is given.
        do: Does with it what a user would, in an empty folder; a report or text that it returns
            counts as said.
        says: A pattern of what must be said.
        raises: The class or classes of error that must come; None where it goes on and says so.
        row: Row that the error must name.
        column: Column that the error must name.
    """

    name: str
    do: Callable[[Path], Any]
    says: str
    raises: Any = DataError
    row: int | None = None
    column: str | None = None


class Heard(logging.Handler):
    """Everything that is logged or warned of, while it is entered."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())

    def __enter__(self) -> "Heard":
        logging.getLogger("prefopt").addHandler(self)
        self._warnings = warnings.catch_warnings(record=True)
        self._warned = self._warnings.__enter__()
        warnings.simplefilter("always")
        return self

    def __exit__(self, *error: Any) -> None:
        self.texts += [str(one.message) for one in self._warned]
        self._warnings.__exit__(*error)
        logging.getLogger("prefopt").removeHandler(self)


def check(case: Case, folder: Path) -> None:
    """Do what the case does, and hold what is said against what must be."""
    with Heard() as heard:
        if case.raises is None:
            result = case.do(folder)
        else:
            with pytest.raises(case.raises) as caught:
                case.do(folder)
            check_error(caught.value)
    if case.raises is None:
        heard.texts.append(result.render() if isinstance(result, DataReport) else str(result))
        said = "\n".join(heard.texts)
    else:
        said = str(caught.value)
        assert (getattr(caught.value, "row", None), getattr(caught.value, "column", None)) == (
            case.row,
            case.column,
        ), said
    assert re.search(case.says, said), said


def check_error(error: BaseException, naming: str = "", longest: int = LONGEST) -> None:
    """Assert that an error is ours: raised by us on purpose, short, and says what is wrong."""
    message = str(error)
    innermost = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    ours = innermost.is_relative_to(PACKAGE) or isinstance(error, DataError)
    assert ours, f"raised in {innermost}: {message}"
    assert 10 < len(message) < longest, message
    assert naming in message
    assert "Traceback" not in message
    assert "object has no attribute" not in message
    assert "not supported between instances" not in message


def run_command(*words: Any) -> str:
    """Run ``prefopt`` with these words, a mistake of the user's; return the one line it says."""
    import contextlib
    import io

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in words])
    assert code == 2, f"exit code {code}: {err.getvalue()}"
    # A progress bar may stand before it.
    lines = re.findall("prefopt[a-z ]*: error: .*", err.getvalue())
    assert len(lines) == 1, err.getvalue()
    assert "Traceback" not in err.getvalue()
    assert len(lines[0]) < LONGEST + 20, lines[0]
    return lines[0]


def byte_tokenizer(**options: Any) -> Any:
    """Return a tokenizer of bytes, which loses no text: ids 0 and 1 are padding and EOS."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {"<pad>": 0, "<eos>": 1} | {letter: place + 2 for place, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(words, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = {"pad_token": "<pad>", "eos_token": "<eos>"} | options
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    fast.chat_template = (
        "{% for turn in messages %}{{ turn.role }}: {{ turn.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    return fast


def rows_with(row: dict[str, Any], **cells: Any) -> list[dict[str, Any]]:
    """Return three rows, of which the second has other cells."""
    return [row, row | cells, row]


def all_with(row: dict[str, Any], **cells: Any) -> list[dict[str, Any]]:
    """Return three rows with other cells."""
    return [row | cells] * 3


def without(row: dict[str, Any], *columns: str) -> list[dict[str, Any]]:
    """Return three rows that lack some columns."""
    return [{name: cell for name, cell in row.items() if name not in columns}] * 3
