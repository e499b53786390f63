"""The tokenizer of a run: loaded, given a padding token, and held against the models it feeds."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import cached_file

from prefopt.config import PreferenceConfig
from prefopt.engine.partitioned import whole_shape
from prefopt.training.loading import explained
from prefopt.training.trust import check_code, code_explained

# One of these is in a folder that holds a tokenizer.
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
)

# Where tokenizers differ: case, digits, white space, code, accents, other scripts, emoji.
_SAMPLE_TEXTS = (
    "The quick brown fox isn't 1234567.89% faster, is it?",
    "def f(x):\n    return {'a': [x ** 2, None]}\t# squared\n\n",
    "Größe, naïve café, cœur, Đà Nẵng, e\u0301",
    "Привет, мир! 你好，世界。こんにちは 안녕하세요 مرحبا नमस्ते",
    "👩\u200d👩\u200d👧 → ∑∞ ≠ \u00a0½ ﬁ",
)
_SAMPLE_MESSAGES = [
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "Four."},
]


def load_tokenizer(
    processing_class: Any, model: Any, args: PreferenceConfig, name: str | None = None
) -> PreTrainedTokenizerBase:
    """Return the tokenizer, with a padding token, loading it from where the model came if need be.

    The template of a processor goes before that of its tokenizer, which is left as it is: what is
    returned is then a copy.

    Args:
        processing_class: A tokenizer, a processor that holds one, or None.
        model: Its configuration names where it was loaded from, and learns the padding token.
        args: ``pad_token`` and ``trust_remote_code`` matter.
        name: Folder or id by which the model was named, such as that of an adapter, whose tokenizer
            goes before that of its base model.

    Raises:
        ValueError: If no tokenizer is given and the model does not say where it came from, or
            ``pad_token`` is not in the vocabulary.
        TypeError: If ``processing_class`` is neither a tokenizer nor a processor.
    """
    if processing_class is None:
        processing_class = _tokenizer_beside(model, args, name)
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise TypeError(
            "processing_class must be a tokenizer or a processor with one, got "
            f"{type(processing_class).__name__}"
        )
    if args.pad_token is not None:
        if args.pad_token not in tokenizer.get_vocab():
            raise ValueError(f"pad_token {args.pad_token!r} is not in the tokenizer's vocabulary")
        tokenizer.pad_token = args.pad_token
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    template = getattr(processing_class, "chat_template", None)
    if template and template != tokenizer.chat_template:
        tokenizer = copy.copy(tokenizer)
        tokenizer.chat_template = template
    return tokenizer


def _tokenizer_beside(model: Any, args: PreferenceConfig, name: str | None) -> Any:
    """Return the tokenizer that lies where a model does.

    Raises:
        ValueError: If the model was not loaded from anywhere.
        OSError: If there is no tokenizer.
    """
    source = getattr(model.config, "_name_or_path", "")
    if name is not None and name != source and (found := _tokenizer_of(name, args)) is not None:
        return found
    if not source:
        raise ValueError(
            "no tokenizer: the model was not loaded from anywhere, so pass processing_class"
        )
    # An adapter names its base model, not the user.
    trusted = name is None or source == name
    with code_explained(source, trusted, args):
        return _loaded(source, args, trusted)


def read_tokenizer(source: str, **options: Any) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a folder or id, with the template of its processor if it has none.

    Args:
        source: The folder or id.
        options: Of ``from_pretrained``.
    """
    check_code(source, options)
    folder = Path(source)
    if folder.is_dir() and not any((folder / file).is_file() for file in _TOKENIZER_FILES):
        raise ValueError(
            f"can't load the tokenizer of {source}: there is none in that folder (no "
            f"{_TOKENIZER_FILES[0]} or the like); save it there: tokenizer.save_pretrained(folder)"
        )
    with explained("tokenizer of", source):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, **options)
    if not tokenizer.chat_template:
        tokenizer.chat_template = _processor_template(
            source, {key: options.get(key) for key in ("revision", "local_files_only")}
        )
    return tokenizer


def _loaded(
    source: str, args: PreferenceConfig, trusted: bool = True, **options: Any
) -> PreTrainedTokenizerBase:
    loading: dict[str, Any] = dict(args.model_init_kwargs or {})  # type: ignore[arg-type] # read
    revision = loading.get("revision")  # as that of the weights
    return read_tokenizer(
        source, trust_remote_code=args.trust_remote_code and trusted, revision=revision, **options
    )


def _processor_template(source: str, options: Mapping[str, Any]) -> Any:
    """Return the template that only a processor reads; None if there is none.

    Tokenizers read ``chat_template.jinja``, but not what processors had before.
    """
    for name in ("chat_template.json", "processor_config.json"):
        file = cached_file(
            source,
            name,
            **options,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if file is None:
            continue
        found = json.loads(Path(file).read_text(encoding="utf-8")).get("chat_template")
        if isinstance(found, list):  # several, each with its name
            return {template["name"]: template["template"] for template in found}
        if found:
            return found
    return None


def embedded_tokens(model: Any) -> int | None:
    """Return how many token ids a model embeds; None where its weights do not tell."""
    shape = whole_shape(model.get_input_embeddings().weight)
    return int(shape[0]) if len(shape) == 2 else None


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, model: Any) -> None:
    """Raise where the tokenizer makes ids that the model has no embedding for.

    Raises:
        ValueError: Saying both sizes.
    """
    embeddings = embedded_tokens(model)
    if embeddings is not None and len(tokenizer) > embeddings:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens but the model embeds only {embeddings}: "
            "they do not belong together, or model.resize_token_embeddings was forgotten"
        )


def check_reference_tokenizer(
    ref_model: Any, tokenizer: PreTrainedTokenizerBase, args: PreferenceConfig
) -> None:
    """Raise where a reference reads other token ids than the policy's tokenizer makes.

    The reference need not be loaded for it; one that comes without a tokenizer is not checked.

    Raises:
        ValueError: Naming the first difference.
    """
    by_name = isinstance(ref_model, str)
    name = ref_model if by_name else getattr(ref_model.config, "_name_or_path", "")
    theirs = _tokenizer_of(name, args, local_only=not by_name) if name else None
    if theirs is None:
        return
    difference = _first_difference(tokenizer, theirs, with_template=by_name)
    if difference is not None:
        raise ValueError(
            f"ref_model {name} reads other token ids than the policy: {difference}. A reference "
            "must have the tokenizer of the policy"
        )


def _tokenizer_of(
    name: str, args: PreferenceConfig, local_only: bool = False
) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer of a folder or id; None if it has none."""
    folder = Path(name).expanduser()
    if folder.is_dir() and not any((folder / file).is_file() for file in _TOKENIZER_FILES):
        return None
    try:
        return _loaded(name, args, local_files_only=local_only)
    except (OSError, ValueError):  # loading the model will say what is wrong with it
        return None


def _first_difference(
    ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase, with_template: bool
) -> str | None:
    """Return how two tokenizers differ in the ids that they make, for people; None if not.

    One may know tokens that the other lacks, as long as these do not come up.
    """
    mine, other = ours.get_vocab(), theirs.get_vocab()
    token_of = {index: token for token, index in other.items()}
    for token, index in sorted(mine.items(), key=lambda item: item[1]):
        if token == ours.pad_token:  # stands in no text
            continue
        if other.get(token, index) != index:
            return f"{token!r} has id {index} for the policy and {other[token]} for the reference"
        if token_of.get(index, token) != token:
            return (
                f"id {index} is {token!r} for the policy and {token_of[index]!r} for the reference"
            )
    texts = [*_SAMPLE_TEXTS, *(_rendered(ours) if with_template else [])]
    for text in texts:
        first, second = (
            tokenizer(text, add_special_tokens=False)["input_ids"] for tokenizer in (ours, theirs)
        )
        if first != second:
            return f"{text!r} is {first} for the policy and {second} for the reference"
    return None


def _rendered(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return a conversation in the tokenizer's template, if it has one and takes it."""
    try:
        text = tokenizer.apply_chat_template(_SAMPLE_MESSAGES, tokenize=False)
    except Exception:  # no template, or one that wants other messages: what it raises is its own
        return []
    return [str(text)]
