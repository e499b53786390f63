"""Another language model as judge: how likely it finds the answer."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prefopt.data.tokenize import Tokenized, tokenize
from prefopt.engine.guard import undisturbed
from prefopt.evaluation.judges.rendering import answered, in_batches
from prefopt.evaluation.loading import load_for_inference
from prefopt.evaluation.prompts import Prompt
from prefopt.evaluation.sequences import token_logps

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["LogProbJudge"]


class LogProbJudge:
    """Scores an answer by its log-prob under a language model, given the prompt.

    The sum over tokens favours short answers, the mean does not. Prompt and answer are rendered as
    in training, the token that ends the answer included: that of one that was cut counts as well.

    Args:
        model: A causal language model of transformers.
        tokenizer: Its tokenizer.
        per_token: Whether the score is the mean over tokens in place of the sum; nats.
        batch_size: Texts that are read together.
        name: What to call it.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        *,
        per_token: bool = False,
        batch_size: int = 8,
        name: str = "log-prob",
    ) -> None:
        self.name = name
        self._model = model
        self._tokenizer = tokenizer
        self._per_token = per_token
        self._batch_size = batch_size

    @classmethod
    def load(
        cls,
        path: str,
        *,
        per_token: bool = False,
        batch_size: int = 8,
        options: Mapping[str, Any] | None = None,
    ) -> "LogProbJudge":
        """Return the judge of an id or a folder, of a model or an adapter.

        Args:
            path: The id or folder.
            per_token: As in the constructor.
            batch_size: As in the constructor.
            options: Of ``from_pretrained``.

        Raises:
            OSError: If there is no such model.
            ValueError: If it is no causal language model.
        """
        model, tokenizer = load_for_inference(path, options)
        name = f"log-prob{' per token' if per_token else ''} of {path}"
        return cls(model, tokenizer, per_token=per_token, batch_size=batch_size, name=name)

    def scores(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float]:
        """Return the log-prob of each completion after its prompt; nats."""
        pairs = [answered(*both) for both in zip(prompts, completions, strict=True)]
        texts = tokenize(pairs, range(len(pairs)), self._tokenizer)
        lengths = [len(one.prompt_ids) + len(one.completion_ids[0]) for one in texts]
        with undisturbed(self._model):
            return in_batches(texts, lengths, self._batch_size, self._score, title="Judging")

    def _score(self, texts: Sequence[Tokenized]) -> list[float]:
        logps = token_logps(
            self._model,
            [one.prompt_ids for one in texts],
            [one.completion_ids[0] for one in texts],
            batch_size=len(texts),
        )
        return [(own.mean() if self._per_token else own.sum()).item() for own in logps]
