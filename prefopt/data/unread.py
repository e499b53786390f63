"""Columns of a row that nothing read: those that an answer may depend on are refused.

What a column holds is told by its name and by its values. Numbers, and text under a name such as
``source`` or ``model``, say something about a row; a question, an image or earlier turns are part
of it. Such a column is no error where it is empty, or only repeats what other columns say.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, time, timedelta
from typing import Any

from datasets import ClassLabel, Dataset, IterableDataset, Value

from prefopt.data.errors import DataError
from prefopt.data.example import Cells
from prefopt.data.messages import NO_MEDIA, squeezed
from prefopt.data.names import Topic, meaning_of, renaming
from prefopt.data.written import is_message, read_written

__all__ = ["plain_columns", "refuse_unread", "without_media"]

# Text shorter than this may stand in another text by chance.
REPEATED_LENGTH = 20
# Keys of messages, tools and parts whose text is no content.
_MARKS = ("role", "from", "type", "id")
_MEDIA_FEATURES = ("Image", "Audio", "Video", "Pdf", "Nifti", "Mesh")
_NO_NUMBERS = ("string", "large_string", "string_view", "binary", "large_binary", "null")
# Text that stands for an image: the data themselves, or the name of a file.
_MEDIA_TEXT = re.compile(
    r"data:(image|audio|video)/|\S+\.(jpe?g|png|gif|webp|bmp|tiff?|mp4|webm|mov|wav|mp3|flac)$",
    re.I,
)
_NAMES_A_FILE = re.compile("url|link|path|file", re.I)
_EMPTY_TEXT = ("", "null", "None", "nan", "[]", "{}")
# Columns that the prompt is read from.
_PROMPTS = ("prompt", "instruction", "messages", "conversations", "trajectory")
# Which column is named first where there are several: the prompt, then what goes before it.
_ORDER: tuple[Topic, ...] = ("media", "prompt", "conversation", "system", "tools")


def refuse_unread(
    row: Cells, prompt: Any = (), completions: Any = (), *, prompt_is_known: bool = True
) -> None:
    """Refuse a row with content in a column that nothing read.

    Args:
        row: The row, with the names of the columns that were read.
        prompt: The prompt that was read: text or messages.
        completions: The completions that were read.
        prompt_is_known: Whether the row says what its prompt is. If it doesn't, any text of several
            words may be the prompt, whatever its column is called.

    Raises:
        DataError: If there is such a column; it says what to do.
    """
    found = {
        column: topic
        for column, value in row.values.items()
        if column not in row.read
        if (topic := _content_in(column, value, prompt_is_known)) is not None
    }
    if not found:
        return
    asked = set(_strings_in(prompt))
    said = asked | set(_strings_in(completions))
    found = {
        column: topic
        for column, topic in found.items()
        if topic == "media"
        or not _is_in(row.values[column], said if topic == "conversation" else asked)
    }
    if not found:
        return
    column, *others = sorted(found, key=lambda name: _ORDER.index(found[name]))
    rest = f" (the same holds of {', '.join(map(repr, others))})" if others else ""
    has_prompt = bool(prompt) and prompt_is_known
    advice = _advice(column, found[column], row, others, has_prompt=has_prompt)
    raise row.wrong(column, advice + rest)


def without_media(dataset: Dataset | IterableDataset) -> Any:
    """Return the dataset without anything to decode, after a look at its images, audio and video.

    Raises:
        DataError: If a column of these types is not empty; in a stream, its values are left as
            bytes and paths, for ``refuse_unread``.
    """
    columns = [
        name
        for name, kind in (getattr(dataset, "features", None) or {}).items()
        if _is_media_feature(kind)
    ]
    if isinstance(dataset, IterableDataset):
        return dataset.decode(False) if columns else dataset
    for column in columns:
        row = 0
        for batch in dataset.select_columns([column]).with_format("arrow").iter(100):
            for value in batch[column].to_pylist():
                if not _is_empty(value):
                    raise DataError(_media_advice(column), row, column)
                row += 1
    return dataset


def plain_columns(features: Mapping[str, Any] | None, read: Iterable[str]) -> list[str]:
    """Return the columns that hold no content, whatever their values, so need not be looked at.

    Args:
        features: Types of the columns; None if they are not known.
        read: Columns that are read in any case.
    """
    return [
        column
        for column, feature in (features or {}).items()
        if column not in read and _is_plain(column, feature)
    ]


def _is_plain(column: str, feature: Any) -> bool:
    topic = meaning_of(column).topic
    leaves = list(_leaves(feature))
    if topic == "media" or not all(isinstance(leaf, Value | ClassLabel) for leaf in leaves):
        return False
    texts = [leaf for leaf in leaves if leaf.dtype in _NO_NUMBERS]
    may_be_media = _NAMES_A_FILE.search(column) or "binary" in str(feature)
    return not texts or (topic == "metadata" and len(leaves) == 1 and not may_be_media)


def _is_media_feature(feature: Any) -> bool:
    return any(type(leaf).__name__ in _MEDIA_FEATURES for leaf in _leaves(feature))


def _leaves(feature: Any) -> Iterator[Any]:
    """Yield the types that a nested type is made of."""
    inner = getattr(feature, "feature", feature)
    if isinstance(inner, Mapping | list):
        for part in inner.values() if isinstance(inner, Mapping) else inner:
            yield from _leaves(part)
    elif inner is not feature:
        yield from _leaves(inner)
    else:
        yield feature


def _content_in(column: str, value: Any, prompt_is_known: bool) -> Topic | None:
    """Return what content a value is, None if it is none."""
    if _is_empty(value):
        return None
    meaning = meaning_of(column)
    if _is_media(value) or (meaning.topic == "media" and not isinstance(value, int | float)):
        return "media"
    if _is_conversation(value):
        return "conversation"
    if _is_number(value):
        return None
    if meaning.is_content and (meaning.certain or _has_blank(value)):
        return meaning.topic
    if not prompt_is_known and meaning.topic is None and _has_blank(value):
        return "prompt"
    return None


def _has_blank(value: Any) -> bool:
    """Whether a value has text of more than a word."""
    return any(len(text.split(maxsplit=1)) > 1 for text in _strings_in(value))


def _is_empty(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip() in _EMPTY_TEXT
    if isinstance(value, Mapping):
        return all(map(_is_empty, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_empty, value))
    return value is None or value is False or getattr(value, "size", 1) == 0


def _is_number(value: Any) -> bool:
    """Whether a value is a number, a time, or holds only such."""
    if isinstance(value, list | tuple):
        return all(map(_is_number, value))
    kinds = (int, float, complex, date, time, timedelta)
    return value is None or isinstance(value, kinds) or hasattr(value, "dtype")


def _is_media(value: Any) -> bool:
    """Whether a value is an image, sound or video, or a list that begins with one."""
    if isinstance(value, list | tuple):
        return bool(value) and _is_media(value[0])
    if isinstance(value, Mapping):
        return {*value} in ({"bytes", "path"}, {"array", "path", "sampling_rate"}) or (
            {"array", "sampling_rate"} <= {*value}
        )
    if isinstance(value, str):
        return bool(_MEDIA_TEXT.match(value))
    if isinstance(value, bytes | bytearray):
        return len(value) > 64  # more than a hash
    home = type(value).__module__.split(".")[0]
    return home in ("PIL", "torchcodec", "torchvision", "cv2") or getattr(value, "ndim", 0) > 2


def _is_conversation(value: Any) -> bool:
    """Whether a value is a list of messages, an object that holds one, or text of these."""
    if isinstance(value, str):
        try:
            return not isinstance(value := read_written(value), str)
        except ValueError:
            return True
    if isinstance(value, Mapping):
        return is_message(value) or any(
            isinstance(item, list) and _is_conversation(item) for item in value.values()
        )
    return isinstance(value, list | tuple) and bool(value) and all(map(is_message, value))


def _strings_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if key not in _MARKS:
                yield from _strings_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings_in(item)


def _is_in(value: Any, texts: set[str]) -> bool:
    """Whether all that a value says is in the texts, white space apart."""
    if isinstance(value, str):
        try:
            value = read_written(value)
        except ValueError:
            return False
    given = {text for text in _strings_in(value) if text.strip()} - texts
    if not given:
        return True
    texts = {squeezed(text) for text in texts}
    whole = " ".join(texts)
    return all(
        text in texts or (len(text) >= REPEATED_LENGTH and text in whole)
        for text in map(squeezed, given)
    )


def _media_advice(column: str) -> str:
    return (
        f"{NO_MEDIA}, and the answers of this row may be about what this column holds; to train on "
        f"the text alone, leave it out: dataset.remove_columns({column!r})"
    )


def _advice(
    column: str, topic: Topic, row: Cells, others: Sequence[str], *, has_prompt: bool
) -> str:
    """Return what is wrong with a column that was not read, and what to do.

    ``has_prompt`` tells whether the completions begin with a prompt.
    """
    if topic == "media":
        return _media_advice(column)
    leave = f"or leave it out: dataset.remove_columns({column!r})"
    if any(name.endswith("_ids") for name in row.read):
        return f"is not read beside token ids; put its tokens into 'prompt_ids', {leave}"
    if topic == "tools":
        return f"looks like tools, which go with messages in a column 'tools'; rename it, {leave}"
    if topic == "system":
        return (
            "looks like a system prompt, which goes with messages, in a column 'system': "
            f"{renaming(column, 'system')}, {leave}"
        )
    source = next((name for name in _PROMPTS if name in row.read), None)
    if source is None and not has_prompt:
        name = "prompt" if topic == "prompt" else "messages"
        advice = f"looks like the prompt, which must be called {name!r}: "
        advice += renaming(column, name)
        if others and topic == "prompt":
            advice += ", or 'instruction', beside which 'system', 'input' and 'history' are read"
        return f"{advice}, {leave}"
    what, alpaca = ("turns of the conversation", "history")
    if topic == "prompt":
        what, alpaca = ("a part of the prompt", "input")
    if source is None:
        return f"looks like {what}, which is read from what the completions begin with, {leave}"
    advice = f"looks like {what}, which is read from {source!r} alone; join the two there"
    names = {} if column == alpaca else {column: alpaca}
    if source == "prompt" and isinstance(row.values[source], str):
        names[source] = "instruction"
    if names and source in ("prompt", "instruction") and (source in names or source[0] == "i"):
        advice += f", as dataset.rename_columns({names!r}) does"
    return f"{advice}, {leave}"
