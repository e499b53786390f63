"""The tokens at which an answer ends: the tokenizer's, the model's, and the chat template's."""

from typing import Any

__all__ = ["end_tokens", "stop_tokens"]

_QUESTION = [{"role": "user", "content": "question"}]
_ANSWER = "prefoptanswer"


def stop_tokens(tokenizer: Any) -> list[int]:
    """Return the ids at which generation stops: EOS, and those of the model's generation config."""
    stops = {getattr(tokenizer, "eos_token_id", None)}
    if name := getattr(tokenizer, "name_or_path", ""):
        from transformers import GenerationConfig

        try:
            more = GenerationConfig.from_pretrained(name, local_files_only=True).eos_token_id
        except (OSError, ValueError):  # a tokenizer without the files of its model
            more = None
        stops |= {*(more if isinstance(more, list) else [more])}
    return sorted(stop for stop in stops if stop is not None)


def end_tokens(tokenizer: Any, config: Any) -> list[int]:
    """Return the ids of the tokens that end an answer, any of them.

    The tokenizer's ``stop_tokens``, those of the model, and the special token that the chat
    template puts behind an answer.

    Args:
        tokenizer: That of the model.
        config: The model's ``GenerationConfig``; None where it has none.
    """
    named = getattr(config, "eos_token_id", None)
    of_model = named if isinstance(named, list | tuple) else [named]
    found = {*stop_tokens(tokenizer), *of_model, _end_of_turn(tokenizer)}
    return sorted(token for token in found if token is not None)


def _end_of_turn(tokenizer: Any) -> int | None:
    """Return the special token that a chat template puts behind an answer; None for none."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    for content in (_ANSWER, [{"type": "text", "text": _ANSWER}]):
        turns = [*_QUESTION, {"role": "assistant", "content": content}]
        try:
            text = tokenizer.apply_chat_template(turns, tokenize=False)
        except Exception:  # a template may raise anything
            continue
        behind = text.rpartition(_ANSWER)[2].lstrip()
        ids = tokenizer(behind, add_special_tokens=False)["input_ids"] if behind else []
        special = set(tokenizer.all_special_ids)
        special |= {index for index, it in tokenizer.added_tokens_decoder.items() if it.special}
        return ids[0] if ids and ids[0] in special else None
    return None
