"""A sequence classifier as judge: a reward model, or the probability of a label."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prefopt.data.tokenize import tokenize
from prefopt.evaluation.judges.rendering import answered, in_batches
from prefopt.evaluation.loading import inference_options
from prefopt.evaluation.prompts import Prompt, prompt_text
from prefopt.training.loading import explained
from prefopt.training.tokenizer import read_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["ClassifierJudge"]


class ClassifierJudge:
    """Scores answers by a model of ``AutoModelForSequenceClassification``.

    A model with one output is a reward model: its output is the score. It reads what such models
    are trained on (TRL's RewardTrainer): a conversation in its chat template, plain text with the
    end-of-sequence token behind it. Of one with several labels, one is named, and the score is that
    label's probability; it reads prompt and answer as one plain text. So does a reward model that
    has no chat template. Texts longer than the model's window are cut at their beginning, with a
    warning.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        label: The label whose probability is the score; for a model with several.
        batch_size: Texts that are read together.
        name: What to call it.

    Raises:
        ValueError: If there is no such label, or a model with several outputs gets none.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        label: str | None = None,
        *,
        batch_size: int = 8,
        name: str = "classifier",
    ) -> None:
        self.name = name
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        self._label = _label_of(model.config, label, name)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if model.config.get_text_config().pad_token_id is None:  # by which the last token is found
            model.config.get_text_config().pad_token_id = tokenizer.pad_token_id

    @classmethod
    def load(
        cls,
        path: str,
        label: str | None = None,
        *,
        batch_size: int = 8,
        options: Mapping[str, Any] | None = None,
    ) -> "ClassifierJudge":
        """Return the judge of an id or a folder.

        Args:
            path: The id or folder.
            label: As in the constructor.
            batch_size: As in the constructor.
            options: Of ``from_pretrained``.

        Raises:
            OSError: If there is no such model.
            ValueError: If it is no classifier, or as the constructor says.
        """
        from transformers import AutoModelForSequenceClassification

        if Path(path, "adapter_config.json").is_file():
            raise ValueError(
                f"the classifier {path} is an adapter: merge it into its base model "
                "(merge_and_unload, save_pretrained) and name the result"
            )
        given = inference_options(options)
        with explained("classifier", path):
            model, info = AutoModelForSequenceClassification.from_pretrained(
                path, **given, output_loading_info=True
            )
        if info["missing_keys"]:
            raise ValueError(
                f"{path} is no classifier: it lacks {sorted(info['missing_keys'])[0]}, which would "
                "start at random"
            )
        code = {"trust_remote_code": bool(given.get("trust_remote_code"))}
        tokenizer = read_tokenizer(path, **code)
        return cls(model, tokenizer, label, batch_size=batch_size, name=f"classifier {path}")

    def scores(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float]:
        """Return the score of each completion after its prompt."""
        return self.scores_of_ids(self._token_ids(prompts, completions))

    def scores_of_ids(self, texts: Sequence[list[int]]) -> list[float]:
        """Return the score of each text of token ids, prompt and completion as one."""
        window = _window(self._model.config, self._tokenizer)
        cut = sum(len(ids) > window for ids in texts)
        if cut:
            warnings.warn(
                f"{cut} of {len(texts)} texts are longer than the {window} tokens that {self.name} "
                "reads: their beginning is left out",
                stacklevel=2,
            )
        lengths = [min(len(ids), window) for ids in texts]
        return in_batches(texts, lengths, self._batch_size, self._score, title="Judging")

    def _token_ids(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[list[int]]:
        pairs = [answered(*both) for both in zip(prompts, completions, strict=True)]
        is_chat = [example.form == "messages" for example in pairs]
        if self._label is None and (self._tokenizer.chat_template or not any(is_chat)):
            found = tokenize(pairs, range(len(pairs)), self._tokenizer)
            return [[*one.prompt_ids, *one.completion_ids[0]] for one in found]
        texts = [
            f"{prompt_text(prompt)}\nassistant: {completion}"
            if chat
            else prompt_text(prompt) + completion
            for prompt, completion, chat in zip(prompts, completions, is_chat, strict=True)
        ]
        ids: list[list[int]] = self._tokenizer(texts, truncation=False, verbose=False)["input_ids"]
        return ids

    @torch.no_grad()
    def _score(self, texts: Sequence[list[int]]) -> list[float]:
        window = _window(self._model.config, self._tokenizer)
        kept = [_cut_at_start(ids, window, self._tokenizer) for ids in texts]
        padded = self._tokenizer.pad({"input_ids": kept}, padding_side="right", return_tensors="pt")
        padded = padded.to(self._model.device)
        logits = self._model(padded.input_ids, attention_mask=padded.attention_mask).logits.float()
        scores: list[float] = self._scores_of(logits).tolist()
        return scores

    def _scores_of(self, logits: Tensor) -> Tensor:
        """Return (B,) scores of (B, labels) outputs."""
        if self._label is None:
            return logits[:, 0]
        if self._model.config.problem_type == "multi_label_classification":
            return logits[:, self._label].sigmoid()
        return logits.softmax(1)[:, self._label]


def _label_of(config: Any, label: str | None, name: str) -> int | None:
    """Return the place of a label among the outputs of a model; None for a single output."""
    labels = [config.id2label[place] for place in range(config.num_labels)]
    if len(labels) == 1:
        if label not in (None, *labels):
            raise ValueError(f"{name} has one output, {labels[0]!r}, and no label {label!r}")
        return None
    if label is None:
        raise ValueError(f"{name} has the labels {', '.join(labels)}: name one, as #{labels[-1]}")
    folded = [one.casefold() for one in labels]
    if label.casefold() not in folded:
        raise ValueError(f"{name} has no label {label!r}; there are: {', '.join(labels)}")
    return folded.index(label.casefold())


def _window(config: Any, tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return how many tokens a classifier reads at most."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    return min(int(positions or 1 << 40), int(tokenizer.model_max_length))


def _cut_at_start(ids: list[int], window: int, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return the last tokens of a text, and the one that begins every text if there is one."""
    if len(ids) <= window:
        return ids
    first = ids[:1] if ids[0] in (tokenizer.cls_token_id, tokenizer.bos_token_id) else []
    return [*first, *ids[len(ids) - window + len(first) :]]
