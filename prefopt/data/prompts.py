"""Where the prompt of a row ends and its completions begin."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from prefopt.data.example import Cells, Form
from prefopt.data.layouts import prompt_column, read_prompt
from prefopt.data.messages import (
    Message,
    common_messages,
    read_messages,
    same_message,
    squeezed,
)
from prefopt.data.prefix import shared_length
from prefopt.data.unread import refuse_unread

__all__ = ["Texts", "read_texts"]

TURN = "\n\nAssistant:"
# A completion that begins with a shorter prompt may do so by chance: "Hi" and "Hi there".
REPEATED_WORDS, REPEATED_LENGTH = 3, 12
SYSTEM = ("system", "developer")
ASKING = (*SYSTEM, "user")


class Texts(NamedTuple):
    """Prompt and completions of a row, as in ``PreferenceExample``.

    ``unusable`` says why it has none, else it is None.
    """

    form: Form
    prompt: Any
    completions: list[Any]
    unusable: str | None = None
    repeated: bool = False


def read_texts(row: Cells, given: list[Any], columns: list[str]) -> Texts:
    """Return prompt and completions of a row of text or messages.

    Args:
        row: The row.
        given: Its completions, or whole conversations that end with them.
        columns: The column of each completion.

    Raises:
        DataError: If the row does not show where its prompt ends, or loses a part of it.
    """
    are_text = [isinstance(value, str) for value in given]
    if any(are_text) and not all(are_text):
        place = are_text.index(False)
        what = f"a value of type {type(given[place]).__name__}"
        how = ""
        if isinstance(given[place], Mapping | list):
            what = "messages"
        if isinstance(given[place], list) and all(isinstance(one, str) for one in given[place]):
            what, how = "a list of texts", "; several make a ranking: 'completions' with 'ranks'"
        raise row.wrong(columns[place], f"holds {what} where another completion is text{how}")
    spoken = prompt_column(row, columns)
    prompt = None
    if "prompt" in row or ("prompt" in row.columns and spoken is None):
        prompt, spoken = row.need("prompt", "it may be left out, but not null"), "prompt"
    if all(are_text):
        if isinstance(prompt, str):
            return _after_prompt(row, prompt, given)
        if spoken is None:
            return _implicit_text(row, given, columns[0])
        answers = [[{"role": "assistant", "content": text}] for text in given]
        start = _before_answers(read_prompt(row, spoken), answers)
        if without := _without_prompt(squeezed(start[-1].get("content")), given):
            texts = [text.lstrip() for text in without.completions]
            answers = [[{"role": "assistant", "content": text}] for text in texts]
        return Texts("messages", _with_system(row, start), answers, repeated=without is not None)
    conversations = [
        read_messages(value, row.number, column)
        for value, column in zip(given, columns, strict=True)
    ]
    start, answers = _read_conversations(row, spoken, conversations, columns)
    return Texts("messages", _with_system(row, start), answers)


# Text ---------------------------------------------------------------------------------------------


def _after_prompt(row: Cells, prompt: str, given: list[str]) -> Texts:
    """Return text after its prompt, which is taken out of completions that repeat it."""
    end = _end_of_transcript(_shared(given))
    if end and prompt.strip() and squeezed(prompt) in squeezed(given[0][:end]):
        return _plain(row, given[0][:end], [text[end:] for text in given])._replace(repeated=True)
    without = _without_prompt(prompt, given)
    if without is None:
        return _plain(row, prompt, given)
    return _plain(row, without.prompt, without.completions)._replace(repeated=True)


def _without_prompt(prompt: str, given: list[str]) -> Texts | None:
    """Return the completions without the prompt, if they all begin with it; else None."""
    if len(prompt.strip()) < REPEATED_LENGTH and len(prompt.split()) < REPEATED_WORDS:
        return None
    prompt = prompt.replace("\r\n", "\n")
    lines = [text.replace("\r\n", "\n") for text in given]
    for start in (prompt, prompt.strip()):
        if all(text.startswith(start) and text[len(start) :].strip() for text in lines):
            return Texts("text", start, [text[len(start) :] for text in lines], repeated=True)
    return None


def _plain(row: Cells, prompt: str, completions: list[str]) -> Texts:
    if row.get("system"):
        raise row.wrong(
            "system",
            "goes with messages, but the prompt is plain text; make the prompt a list of messages, "
            "or put the system text into the prompt and remove this column",
        )
    return Texts("text", prompt, completions)


def _shared(texts: Sequence[str]) -> str:
    first, last = min(texts), max(texts)  # what these two share, all between them share
    return first[: shared_length(first, last)]


def _end_of_transcript(shared: str) -> int:
    """Return where the last ``Assistant:`` of a transcript of the HH kind ends, 0 without one."""
    turn = shared.rfind(TURN)
    return turn + len(TURN) if turn >= 0 else 0


def _implicit_text(row: Cells, texts: list[str], column: str) -> Texts:
    """Split texts that begin with the prompt into prompt and completions."""
    shared = _shared(texts)
    end = _end_of_transcript(shared)
    shared = shared if shared.strip() else ""
    if not end:
        refuse_unread(row, shared, texts, prompt_is_known=False)
        if len(texts) == 1 or not shared:
            why = f"it has no {TURN!r}" if len(texts) == 1 else "the completions don't start alike"
            raise row.wrong(
                "prompt", f"is missing, and {column!r} does not show where the prompt ends: {why}"
            )
        if all(text == shared for text in texts):
            return Texts("text", "", [], "identical completions without a prompt")
        # The space belongs to the first word of the completion, as in most tokenizers.
        end = len(shared) - shared.endswith(" ")
    return _plain(row, shared[:end], [text[end:] for text in texts])


# Messages -----------------------------------------------------------------------------------------


def _before_answers(start: list[Message], given: list[list[Message]]) -> list[Message]:
    """Return the prompt of a conversation, without the answer if it ends with one of those given.

    ``messages`` beside ``chosen`` and ``rejected`` may hold the chosen answer too.
    """
    return start[:-1] if len(start) > 1 and start[-1:] in given else start


def _read_conversations(
    row: Cells, spoken: str | None, given: list[list[Message]], columns: list[str]
) -> tuple[list[Message], list[list[Message]]]:
    """Return the prompt and the completions of a row whose completions are messages."""
    are_answers = all(messages[0]["role"] not in ASKING for messages in given)
    if spoken is None or (spoken != "prompt" and not are_answers):
        if are_answers:
            refuse_unread(row, (), given, prompt_is_known=False)
            raise row.wrong("prompt", f"is missing, and {columns[0]!r} begins with the answer")
        return _implicit_messages(row, given, columns)
    is_text = spoken == "prompt" and isinstance(row.get(spoken), str)
    if is_text:
        start = [{"role": "user", "content": row.get(spoken)}]
    else:
        start = _before_answers(read_prompt(row, spoken), given)
    size = len(start)
    repeats = [_begins(messages, start) and len(messages) > size for messages in given]
    # Text may be any message of a conversation; messages say where the prompt ends.
    if all(repeats) and not is_text and start[-1]["role"] not in SYSTEM:
        return given[0][:size], [messages[size:] for messages in given]
    if not all(repeats):
        cut = [m[size:] if is_repeat else m for m, is_repeat in zip(given, repeats, strict=True)]
        if all(messages[0]["role"] not in ASKING for messages in cut):
            return start, cut
    return _after_messages(row, start, given, columns)


def _after_messages(
    row: Cells, start: list[Message], given: list[list[Message]], columns: list[str]
) -> tuple[list[Message], list[list[Message]]]:
    """Return prompt and completions where these do not begin with an answer.

    They may begin with more than the prompt, which is then a part of what they share, its system
    messages apart; or go on after an answer that ends the prompt.
    """
    length = common_messages(given)
    shared, answers = given[0][:length], [messages[length:] for messages in given]
    system = [message for message in start if message["role"] in SYSTEM]
    asked = [message for message in start if message["role"] not in SYSTEM]
    own = [message for message in shared if message["role"] in SYSTEM]
    is_part = any(_begins(shared[place:], asked) for place in range(length))
    if is_part and (not own or not system or own == system):
        return shared if own else system + shared, answers
    if start[-1]["role"] not in ASKING:
        return start, given
    raise row.wrong(
        "prompt",
        f"is not among the messages that begin {columns[0]!r}; remove one of the two",
    )


def _begins(messages: list[Message], start: list[Message]) -> bool:
    """Whether a conversation begins with these messages."""
    return len(messages) >= len(start) and all(map(same_message, messages, start))


def _implicit_messages(
    row: Cells, given: list[list[Message]], columns: list[str]
) -> tuple[list[Message], list[list[Message]]]:
    shared = common_messages(given)
    if not shared:
        refuse_unread(row, (), given)
        what = "holds a single message" if len(given) == 1 else "share no first message"
        raise row.wrong("prompt", f"is missing, and {' and '.join(dict.fromkeys(columns))} {what}")
    if columns[0] in ("messages", "conversations") and given[0][-1]["role"] != "assistant":
        raise row.wrong(columns[0], "has a label, but does not end with what the assistant says")
    return given[0][:shared], [messages[shared:] for messages in given]


def _with_system(row: Cells, prompt: list[Message]) -> list[Message]:
    """Return the messages of the prompt, after those of the ``system`` column."""
    system = row.get("system")
    if not system:
        return prompt
    if not isinstance(system, str):
        raise row.wrong("system", f"needs text, got {type(system).__name__}")
    if prompt[0]["role"] != "system":
        return [{"role": "system", "content": system}, *prompt]
    if squeezed(prompt[0]["content"]) != squeezed(system):
        raise row.wrong("system", "differs from the system message that the prompt begins with")
    return prompt
