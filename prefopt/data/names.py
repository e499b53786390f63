"""What the name of a column says of it, and which column a misspelt name means."""

import re
import shlex
from collections.abc import Iterable
from difflib import get_close_matches
from functools import lru_cache
from typing import Literal, NamedTuple

__all__ = ["Meaning", "column_hint", "meaning_of", "renaming"]

Topic = Literal["media", "conversation", "tools", "system", "prompt", "metadata", "remark"]

# Words in the names of columns, without a plural's s.
_WORDS: dict[Topic, str] = {
    "media": "image img imgs picture pic photo photograph pixel screenshot frames video audio "
    "sound waveform spectrogram",
    "conversation": "conversation convo dialog dialogue chat history historie turn message "
    "trajectory trajectorie transcript thread utterance",
    "tools": "tool function apis",
    "system": "system sys persona",
    "prompt": "prompt question instruction instruct query querie input context content problem "
    "request passage paragraph document article post background scenario situation premise "
    "evidence knowledge schema table step prefix prefill preamble example shot human",
    "metadata": "id uuid guid key hash md5 sha sha1 sha256 type kind format source origin dataset "
    "subset model generator category categorie tag label lang language locale len length size "
    "count num number width height score rating rank reward margin weight probability logp "
    "logprob loss perplexity token mask embedding vector url link path file filename time "
    "timestamp date datetime year created updated index idx row version revision commit split "
    "fold level difficulty license licence domain status flag is has name author annotator worker "
    "email country quality safety toxicity intent class temperature seed",
    "remark": "explanation rationale critique feedback reason reasoning justification analysis "
    "judgement judgment comment note review annotation answer response completion output solution "
    "reference target gold truth chosen rejected generation candidate",
}
_TOPICS = {word: topic for topic, words in _WORDS.items() for word in words.split()}
# Misspelt words are looked for among these; words as short as "tool" are too near to others.
_CONTENT = ("media", "conversation", "tools", "system", "prompt")
_SPELLED = [word for word, topic in _TOPICS.items() if topic in _CONTENT and len(word) > 4]
_SPELLED = [word for word in _SPELLED if word not in ("persona", "table")]
# Words that say how content is written, not what it is.
_WRITTEN = {"text", "txt", "str", "string", "raw", "json", "full", "original", "formatted"}
# A column of these says something of an image, and does not stand for it.
_OF_MEDIA = {"num", "number", "count", "width", "height", "size", "source", "has", "is"}

# What other programs call the columns that are read here.
_ALSO_CALLED = {
    "prompt": "question query user_prompt",
    "chosen": "chosen_response chosen_answer chosen_messages accepted preferred preferred_output "
    "preferred_response better winner response_j",
    "rejected": "rejected_response rejected_answer rejected_messages dispreferred "
    "non_preferred_output dispreferred_response worse loser response_k",
    "label": "kto_tag is_chosen desirable",
    "completion": "response answer generation",
    "completions": "answers generations candidates",
}
_ALIASES = {name: column for column, names in _ALSO_CALLED.items() for name in names.split()}


class Meaning(NamedTuple):
    """What a name says: the topic, None if unknown; and whether its main word says so."""

    topic: Topic | None
    certain: bool

    @property
    def is_content(self) -> bool:
        """Whether it is something that an answer may depend on."""
        return self.topic in _CONTENT


@lru_cache(maxsize=4096)
def meaning_of(column: str) -> Meaning:
    """Return what a column of this name holds.

    The last word that is known decides: ``prompt_id`` is an id, ``source_question`` a question;
    ``query_tone`` is only perhaps a query.

    Examples:
        >>> [meaning_of(name).topic for name in ("chatHistory", "Promt", "image_url", "prompt_id")]
        ['conversation', 'prompt', 'media', 'metadata']
    """
    words = [word for word in _words(column) if word not in _WRITTEN and len(word) > 1]
    topics = [_topic_of_word(word) for word in words if not word.isdigit()]
    known = [topic for topic in topics if topic]
    if not known:
        return Meaning(None, False)
    topic: Topic = known[-1]
    if "media" in known and topic != "remark":  # the path of an image stands for the image
        topic = "metadata" if _OF_MEDIA & {*words} else "media"
    qualifiers: tuple[Topic, ...] = ("tools", "system")
    for qualified in qualifiers:  # the schema of a tool, the prompt of the system
        if qualified in known and topic in ("prompt", "conversation"):
            topic = qualified
    if topic == "metadata" and _WRITTEN & {*_words(column)}:
        return Meaning(None, False)  # `source_text` may be a text from a source
    return Meaning(topic, topics[-1] is not None)


def column_hint(column: str, columns: Iterable[str]) -> str:
    """Return how to rename the one of the columns that seems to be meant; else an empty string.

    >>> print(column_hint("chosen", ["prompt", "Best"]) or "nothing is like it")
    nothing is like it
    >>> print(column_hint("label", ["kto_tag"]))
    ; perhaps it is 'kto_tag': dataset.rename_column('kto_tag', 'label'), or --columns label=kto_tag
    """
    names = {"_".join(_words(name)): name for name in columns if name != column}
    meant = [name for word, name in names.items() if word == column or _ALIASES.get(word) == column]
    meant += [names[word] for word in get_close_matches(column, names, cutoff=0.8)]
    if not meant:
        return ""
    return f"; perhaps it is {meant[0]!r}: {renaming(meant[0], column)}"


def renaming(column: str, name: str) -> str:
    """Return how a column gets another name, in Python and on the command line.

    >>> renaming("question", "prompt")
    "dataset.rename_column('question', 'prompt'), or --columns prompt=question"
    """
    option = shlex.quote(f"{name}={column}")
    return f"dataset.rename_column({column!r}, {name!r}), or --columns {option}"


@lru_cache(maxsize=4096)
def _words(column: str) -> tuple[str, ...]:
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", column)
    return tuple(word for word in re.split(r"[\W_]+", apart.lower()) if word)


def _topic_of_word(word: str) -> Topic | None:
    for form in (word, word.removesuffix("s"), word.rstrip("0123456789")):
        if form in _TOPICS:
            return _TOPICS[form]
    singular = word.removesuffix("s")
    swapped = [known for known in _SPELLED if sorted(known) == sorted(singular)]
    close = swapped or get_close_matches(singular, _SPELLED, 1, cutoff=0.83)
    return _TOPICS[close[0]] if close else None
