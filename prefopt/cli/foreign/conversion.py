"""What becomes of another program's configuration, key by key; common to all programs.

A module of this package has, for one program, a table of its keys (``Key``) and a function that
makes a ``Conversion`` of a configuration. What several keys say together (the loss, the adapter,
the data) the function reads itself; the table does the rest.
"""

import difflib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

# The same, the same but for what the note says, nothing is lost by leaving it out, or it is.
Outcome = Literal["same", "differs", "nothing", "cannot"]

_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


class Key(NamedTuple):
    """What a key of another program means here.

    Attributes:
        outcome: Whether it can be had.
        to: The option that it becomes; for a key that is read with others, those that they become.
        note: How that differs, why it changes nothing, or what to use instead.
        harmless: Values at which a key that cannot be had changes nothing.
        read: Makes our value of theirs; None for the same value.
        alone: Whether ``Conversion.apply`` does it; else a function does, with other keys.
        default: What holds there where the key is not given, and is not what holds here.
    """

    outcome: Outcome
    to: str = ""
    note: str = ""
    harmless: tuple[Any, ...] = ()
    read: Callable[[Any], Any] | None = None
    alone: bool = True
    default: Any = None


def same(to: str, note: str = "", **more: Any) -> Key:
    """Return a key that means the same as an option of ours."""
    return Key("same", to, note, **more)


def differs(to: str, note: str, **more: Any) -> Key:
    """Return a key that becomes an option of ours, with a difference."""
    return Key("differs", to, note, **more)


def nothing(note: str) -> Key:
    """Return a key that changes nothing that is trained."""
    return Key("nothing", "", note)


def cannot(note: str, *harmless: Any) -> Key:
    """Return a key that cannot be had, unless at a value that changes nothing."""
    return Key("cannot", "", note, (None, *harmless))


def together(to: str, note: str = "", **more: Any) -> Key:
    """Return a key that a function reads with others."""
    return Key("same", to, note, alone=False, **more)


class Line(NamedTuple):
    """One line of the result: what became of keys.

    Attributes:
        keys: Theirs; none where their default is written out.
        outcome: Whether it can be had.
        option: Ours; empty for none.
        note: How it differs, or why it is left out.
    """

    keys: tuple[str, ...]
    outcome: Outcome
    option: str
    note: str


@dataclass
class Conversion:
    """A configuration of another program, and what of it was converted so far.

    Attributes:
        program: Its name.
        given: What the file says, without keys that say nothing.
        options: Ours, in the order in which they were set.
        lines: What became of each key.
        unknown: Keys that the program does not have.
    """

    program: str
    given: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, program: str, values: Mapping[str, Any]) -> "Conversion":
        """Return the conversion of a file's values, with nothing converted yet."""
        return cls(program, {k: as_number(v) for k, v in values.items() if v is not None})

    @property
    def lost(self) -> list[Line]:
        """The lines of what cannot be had."""
        return [line for line in self.lines if line.outcome == "cannot"]

    def put(
        self, option: str, value: Any, *keys: str, note: str = "", differs: bool = False
    ) -> None:
        """Set an option of ours; without keys (or with none that is given), by their default."""
        its = tuple(key for key in keys if key in self.given)
        if option in self.options and self.options[option] != value:
            self.refuse(
                its[0] if its else option,
                f"{option} is {self.options[option]!r} by another key already; give one of them",
            )
            return
        self.options[option] = value
        if not its:
            note = "; ".join(part for part in (f"the default of {self.program}", note) if part)
        self.lines.append(Line(its, "differs" if differs else "same", option, note))

    def leave(self, key: str, why: str) -> None:
        """Leave out a key that changes nothing."""
        if key in self.given:
            self.lines.append(Line((key,), "nothing", "", why))

    def refuse(self, key: str, advice: str) -> None:
        """Say that a key cannot be had, and what to use instead."""
        self.lines.append(Line((key,), "cannot", "", advice))

    def is_open(self, key: str) -> bool:
        """Whether nothing was said of a key that is given."""
        return key in self.given and all(key not in line.keys for line in self.lines)

    def apply(self, keys: Mapping[str, Key], others: Collection[str] = ()) -> None:
        """Convert every key that no function has read, by the table of keys.

        Args:
            keys: The table.
            others: Further keys that mean what they mean here.
        """
        for key, value in self.given.items():
            if not self.is_open(key):
                continue
            if key in keys:
                self._apply(key, value, keys[key])
            elif key in others:
                self.put(key, value, key)
            else:
                known = list(dict.fromkeys([*keys, *others]))
                near = difflib.get_close_matches(key, known, n=2)
                hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
                self.unknown.append(key)
                self.refuse(key, f"{self.program} has no such key, as far as is known{hint}")
        for key, spec in keys.items():
            missing = key not in self.given and spec.to not in self.options
            if spec.default is not None and spec.alone and missing:
                self.put(spec.to, spec.default)

    def _apply(self, key: str, value: Any, spec: Key) -> None:
        if spec.outcome == "nothing":
            self.leave(key, spec.note)
        elif spec.outcome == "differs" and not spec.to:
            self.lines.append(Line((key,), "differs", "", spec.note))
        elif spec.outcome == "cannot" or not spec.alone:
            # A key of several that no function read has no part in what the others say.
            if spec.outcome == "cannot" and not _is_one_of(value, (*spec.harmless, [], {}, "")):
                self.refuse(key, spec.note)
            else:
                self.leave(key, "at this value it changes nothing")
        else:
            try:
                ours = value if spec.read is None else spec.read(value)
            except ValueError as error:
                self.refuse(key, str(error))
            else:
                self.put(spec.to, ours, key, note=spec.note, differs=spec.outcome == "differs")

    def message(self, path: str) -> str:
        """Return what is wrong with the file, all of it."""
        problems = "".join(f"\n  {self.shown(line)}: {line.note}" for line in self.lost)
        return (
            f"{path} is a file of {self.program}, and says what cannot be had here:{problems}\n"
            f"Change these, or see all of it: prefopt convert-config {path}"
        )

    def shown(self, line: Line) -> str:
        """Return the keys of a line with their values."""
        return ", ".join(f"{key}: {_short(self.given.get(key))}" for key in line.keys)


def _is_one_of(value: Any, values: tuple[Any, ...]) -> bool:
    """Whether a value is one of several; True is not 1, nor is False 0.

    Examples:
        >>> _is_one_of(1, (1, False)), _is_one_of(True, (1, False))
        (True, False)
    """
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in values)


def _short(value: Any) -> str:
    text = str(value).replace("\n", " ")
    return text if len(text) <= 40 else f"{text[:37]}..."


def as_number(value: Any) -> Any:
    """Return the number that a text is: YAML reads ``5e-6`` as text.

    Examples:
        >>> as_number("5e-6"), as_number("qwen3"), as_number([1])
        (5e-06, 'qwen3', [1])
    """
    is_number = isinstance(value, str) and _EXPONENT.fullmatch(value.strip())
    return float(value) if is_number else value


def number(value: Any, what: str) -> float:
    """Return a number; one that is written as text too.

    Raises:
        ValueError: If it is none.
    """
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{what} must be a number, got {value!r}") from None


def whole(value: Any, what: str) -> int:
    """Return a whole number.

    Raises:
        ValueError: If it is none.
    """
    if number(value, what) != int(number(value, what)):
        raise ValueError(f"{what} must be a whole number, got {value!r}")
    return int(number(value, what))


def saved_text(model: Any, name: str) -> str | None:
    """Return the text of a file that is saved with a model; None if there is none, or no network.

    Args:
        model: Its folder or Hub id.
        name: Of the file.
    """
    from transformers.utils import cached_file

    try:
        path = cached_file(str(model), name)
        return None if path is None else Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def names(value: Any) -> list[str]:
    """Return the names of a list, or of a text with commas.

    Examples:
        >>> names("q_proj, v_proj"), names(["lm_head"])
        (['q_proj', 'v_proj'], ['lm_head'])
    """
    items = value.split(",") if isinstance(value, str) else value
    return [str(item).strip() for item in items if str(item).strip()]


def words(text: str) -> list[str]:
    """Return the words of a text: keys that have one fate.

    Examples:
        >>> words("plot_loss cache_dir")
        ['plot_loss', 'cache_dir']
    """
    return text.split()


def optimizer(value: Any) -> str:
    """Return the name of an optimiser that there is here too.

    Raises:
        ValueError: If there is none of that name.
    """
    return _one_of(str(value), "optimizer_names", "optim")


def scheduler(value: Any) -> str:
    """Return the name of a learning rate schedule that there is here too.

    Raises:
        ValueError: If there is none of that name.
    """
    return _one_of(str(value), "scheduler_names", "lr_scheduler_type")


def attention(value: Any) -> str | None:
    """Return the implementation of attention where it is not chosen here by speed: eager.

    Examples:
        >>> attention("flash_attention_2"), attention("eager")
        (None, 'eager')
    """
    return "eager" if value in ("eager", "disabled") else None


ATTENTION = "all compute the same attention: attn_backend picks the fastest that there is"


def put_environment(conversion: Conversion, keys: Sequence[str], beside: str = "") -> None:
    """Set the environment variables that keys name in small letters.

    Args:
        conversion: What is made.
        keys: Those that may be given.
        beside: A key that holds further variables.
    """
    given = conversion.given
    env = {key.upper(): str(given[key]) for key in keys if given.get(key)}
    if env:
        conversion.put("env", {**given.get(beside, {}), **env}, *map(str.lower, env), beside)


def put_attention(conversion: Conversion, key: str) -> None:
    """Convert the choice of an implementation of attention: only eager is kept."""
    if key in conversion.given:
        if attention(conversion.given[key]) == "eager":
            conversion.put("attn_implementation", "eager", key)
        else:
            conversion.leave(key, ATTENTION)


def _one_of(value: str, kind: str, option: str) -> str:
    known = _known(kind)
    if value not in known:
        near = difflib.get_close_matches(value, known, n=2) or ["adamw_torch", "cosine"]
        raise ValueError(f"there is no such {option} here; the nearest are {', '.join(near)}")
    return value


@cache
def _known(kind: str) -> list[str]:
    from transformers import SchedulerType
    from transformers.training_args import OptimizerNames

    return [str(item.value) for item in (OptimizerNames if "opt" in kind else SchedulerType)]


@cache
def training_fields() -> frozenset[str]:
    """Return the names of the fields of ``transformers.TrainingArguments``."""
    from dataclasses import fields

    from transformers import TrainingArguments

    return frozenset(item.name for item in fields(TrainingArguments) if item.init)
