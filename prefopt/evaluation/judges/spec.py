"""Judges by a line of text, as command lines name them."""

from collections.abc import Callable, Mapping
from typing import Any

from prefopt.evaluation.judges.base import Judge

__all__ = ["SPECS", "make_judge"]

SPECS = (
    "function:FILE.py:name, function:package.module:name, classifier:PATH, classifier:PATH#label, "
    "logprob:MODEL, logprob:MODEL#per_token, endpoint:URL#model"
)
"""The forms, for help texts."""


def make_judge(
    spec: str, *, batch_size: int = 8, options: Mapping[str, Any] | None = None
) -> Judge:
    """Return the judge that a line of text names.

    ==========================  ==================================================================
    ``function:FILE.py:name``   a Python function, also ``function:package.module:name``
    ``classifier:PATH``         a reward model; with ``#label`` the probability of that label
    ``logprob:MODEL``           log-prob of the answer by a model; ``#per_token`` for its mean
    ``endpoint:URL#model``      a chat model behind an OpenAI-compatible endpoint
    ==========================  ==================================================================

    Args:
        spec: The line.
        batch_size: Texts that a model reads together.
        options: Of ``from_pretrained``, for judges that are models here.

    Raises:
        ValueError: If it names no judge.
        OSError: If there is no such model.
        ImportError: If a package is missing.
    """
    kind, _, rest = spec.partition(":")
    if kind not in _MAKERS or not rest:
        raise ValueError(f"{spec!r} names no judge; there are: {SPECS}")
    return _MAKERS[kind](rest, batch_size, options)


def _function(rest: str, batch_size: int, options: Mapping[str, Any] | None) -> Judge:
    from prefopt.evaluation.judges.function import function_judge

    return function_judge(rest)


def _classifier(rest: str, batch_size: int, options: Mapping[str, Any] | None) -> Judge:
    from prefopt.evaluation.judges.classifier import ClassifierJudge

    path, _, label = rest.partition("#")
    return ClassifierJudge.load(path, label or None, batch_size=batch_size, options=options)


def _logprob(rest: str, batch_size: int, options: Mapping[str, Any] | None) -> Judge:
    from prefopt.evaluation.judges.logprob import LogProbJudge

    path, _, how = rest.partition("#")
    if how not in ("", "per_token"):
        raise ValueError(f"logprob:{path} takes #per_token or nothing, not #{how}")
    per_token = how == "per_token"
    return LogProbJudge.load(path, per_token=per_token, batch_size=batch_size, options=options)


def _endpoint(rest: str, batch_size: int, options: Mapping[str, Any] | None) -> Judge:
    from prefopt.evaluation.judges.endpoint import EndpointJudge

    url, _, model = rest.partition("#")
    if not model:
        raise ValueError(f"endpoint:{url} names no model: write endpoint:{url or 'URL'}#model")
    return EndpointJudge(url, model)


_MAKERS: dict[str, Callable[[str, int, Mapping[str, Any] | None], Judge]] = {
    "function": _function,
    "classifier": _classifier,
    "logprob": _logprob,
    "endpoint": _endpoint,
}
