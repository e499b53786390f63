"""A chat model behind an OpenAI-compatible endpoint as judge: it is shown two answers, A and B.

What it says is read for one line, ``Verdict: A``, ``B`` or ``tie``. A reply without such a line is
no tie: it is counted and told.
"""

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from prefopt.evaluation.progress import progress_bar
from prefopt.evaluation.prompts import Prompt, prompt_text

__all__ = ["EndpointJudge", "read_verdict"]

KEY = "PREFOPT_JUDGE_API_KEY"

QUESTION = """\
Two assistants answered the same prompt. Which answer is better? Judge what a reader needs: that \
it is right, helpful, honest and well written. That one is longer, or stands first, is no merit.

<prompt>
{prompt}
</prompt>

<answer_A>
{first}
</answer_A>

<answer_B>
{second}
</answer_B>

Give your reason in one or two sentences. Then write one last line: "Verdict: A", "Verdict: B", or \
"Verdict: tie" if neither is better."""

_LINE = re.compile(r"verdict\W{1,8}(answer\W+)?(?P<verdict>A|B|tie)\b", re.IGNORECASE)
_ALONE = re.compile(r"\W*(?P<verdict>A|B|tie)\W*", re.IGNORECASE)
_PREFERENCES = {"a": 1.0, "b": 0.0, "tie": 0.5}


def read_verdict(reply: str) -> float | None:
    """Return what a reply prefers: 1 for A, 0 for B, 0.5 for a tie, None if it does not say.

    Args:
        reply: The text; its last verdict counts.

    Examples:
        >>> read_verdict("A is wrong about the date. Verdict: B"), read_verdict("Both are good.")
        (0.0, None)
    """
    lines = list(_LINE.finditer(reply))
    found = lines[-1] if lines else _ALONE.fullmatch(reply)
    return None if found is None else _PREFERENCES[found["verdict"].lower()]


class _Reply(NamedTuple):
    """What came back: a verdict, or why there is none."""

    preference: float | None
    problem: str = ""
    text: str = ""


class EndpointJudge:
    """Asks a chat model which of two answers is better.

    Requests that fail by chance (timeouts, limits of rate, errors of the server) are repeated.
    Answers that are the same are a tie, without a request. The API key is that of the environment
    variable ``PREFOPT_JUDGE_API_KEY``; ``OPENAI_API_KEY`` goes to api.openai.com alone.

    Args:
        url: Of the API, such as ``http://localhost:8000/v1``.
        model: What the endpoint calls the model.
        timeout_s: Of one request.
        retries: How often a request is repeated.
        concurrency: Requests at the same time.
        question: Text of a request, with ``{prompt}``, ``{first}`` and ``{second}``.
        options: Further fields of a request.

    Raises:
        ImportError: If the package openai is not installed.
        ValueError: If the URL is none.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        timeout_s: float = 120.0,
        retries: int = 5,
        concurrency: int = 8,
        question: str = QUESTION,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        try:
            import openai
        except ImportError:
            raise ImportError(
                "a judge behind an endpoint needs the package openai: pip install 'prefopt[judge]'"
            ) from None
        if urlsplit(url).scheme not in ("http", "https"):
            raise ValueError(
                f"an endpoint is an address such as http://localhost:8000/v1, not {url}"
            )
        self.name = f"{model} at {url}"
        self._model = model
        self._question = question
        self._concurrency = concurrency
        self._options = {"temperature": 0} if options is None else dict(options)
        self._client = openai.OpenAI(
            base_url=url, api_key=_api_key(url), timeout=timeout_s, max_retries=retries
        )

    def preferences(
        self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]
    ) -> list[float | None]:
        """Return the verdict on each pair; None, with a warning, where there is none.

        Raises:
            ValueError: If the endpoint refuses the requests, or none is answered.
        """
        pairs = list(zip(map(prompt_text, prompts), first, second, strict=True))
        replies = self._replies(pairs)
        without = [reply for reply in replies if reply.preference is None]
        answered = len(replies) - sum(reply.problem != "" for reply in without)
        if without and not answered:
            raise ValueError(f"{self.name} answers nothing: {without[0].problem}")
        if without:
            warnings.warn(_told(self.name, without, len(replies)), stacklevel=2)
        return [reply.preference for reply in replies]

    def _replies(self, pairs: Sequence[tuple[str, str, str]]) -> list[_Reply]:
        pool = ThreadPoolExecutor(self._concurrency)
        try:
            with progress_bar("Judging", len(pairs)) as advance:
                replies = []
                for reply in pool.map(self._ask, pairs):
                    replies.append(reply)
                    advance(1)
                return replies
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _ask(self, pair: tuple[str, str, str]) -> _Reply:
        import openai

        prompt, first, second = pair
        if first == second:
            return _Reply(0.5)
        # Not `format` on the whole: prompts and answers may hold braces.
        parts = {"{prompt}": prompt, "{first}": first, "{second}": second}
        text = re.sub("|".join(map(re.escape, parts)), lambda it: parts[it[0]], self._question)
        try:
            answer = self._client.chat.completions.create(
                model=self._model, messages=[{"role": "user", "content": text}], **self._options
            )
        except (
            openai.APIConnectionError,
            openai.RateLimitError,
            openai.InternalServerError,
        ) as error:
            return _Reply(None, f"{type(error).__name__}: {error}")
        except openai.APIError as error:  # of the request itself: all others would fare alike
            raise ValueError(f"{self.name} refuses: {type(error).__name__}: {error}") from error
        choices = answer.choices or []
        said = (choices[0].message.content or "") if choices else ""
        return _Reply(read_verdict(said), text=said)


def _told(name: str, without: Sequence[_Reply], asked: int) -> str:
    """Return what to say of replies without a verdict."""
    failed = [reply for reply in without if reply.problem]
    unread = [reply for reply in without if not reply.problem]
    parts = []
    if unread:
        parts.append(f"{len(unread)} held none, such as {unread[0].text[-200:]!r}")
    if failed:
        parts.append(f"{len(failed)} requests failed, such as by {failed[0].problem[:200]}")
    return (
        f"{len(without)} of {asked} verdicts of {name} are missing ({'; '.join(parts)}): those "
        "pairs count for neither side"
    )


def _api_key(url: str) -> str:
    """Return the key to send to an address; no secret of another service."""
    key = os.environ.get(KEY)
    if not key and urlsplit(url).hostname == "api.openai.com":
        key = os.environ.get("OPENAI_API_KEY")
    return key or "none"
