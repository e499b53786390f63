"""Log-probs of every completion of a dataset, by any model and by its reference.

A model is loaded, its data prepared, and its completions scored by the parts of training: the same
tokens, the same engine, which computes each shared prompt once, and the same store of reference
log-probs, so that a start is scored once on a machine, whatever runs are compared with it.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from rich.console import Console
from torch import Tensor
from tqdm.auto import tqdm  # type: ignore[import-untyped] # ships no types

from prefopt.config import PreferenceConfig
from prefopt.data.index import index_of
from prefopt.data.prepared import completion_keys, read_examples
from prefopt.engine import Scorer, build_layout
from prefopt.engine.layout import Example
from prefopt.evaluation.rewards import PairLogps
from prefopt.objective import parse_objective
from prefopt.objective.preference_index import PreferenceIndex
from prefopt.reference.fill import FILL_TOKENS, CompletionIndex, Filler, FillOptions
from prefopt.reference.live import ReferenceModel
from prefopt.reference.store.logp_store import FileStore, LogpStore, MemoryStore
from prefopt.training.launch import Launch
from prefopt.training.loading import SavedAdapter, load_model
from prefopt.training.model import learned_positions, loading_options, switch_off_dropout
from prefopt.training.reference import RECORD_FILE, ReferenceSetup
from prefopt.training.run import DataPreparation
from prefopt.training.tokenizer import check_vocabulary, embedded_tokens, load_tokenizer
from prefopt.training.trust import named_in_run

__all__ = ["CompletionScores", "PolicyScorer", "known_start"]

Ids = Sequence[int]

# Its reward is the log-ratio, and of the losses with a reference it needs the least.
_LOG_RATIO = "dpo"
# A loss on preferred completions takes rows of every kind.
_ANY_KIND = "sft"


@dataclass(frozen=True)
class CompletionScores:
    """Log-probs of the N completions of prepared rows, in the order of the rows.

    Attributes:
        places: Place of the row of each completion among the prepared rows; (N,).
        index: Which completions are compared, by their numbers from 0 to N - 1.
        logps: By the policy, summed over each completion; (N,), nats.
        lengths: Scored tokens of each completion; (N,).
        per_token_logps: By the policy, of each scored token; N tensors of (n_i,), nats.
        ref_logps: Counterpart of ``logps`` by the reference; None without one.
        ref_per_token_logps: Counterpart of ``per_token_logps``; None without one.
    """

    places: Tensor
    index: PreferenceIndex
    logps: Tensor
    lengths: Tensor
    per_token_logps: tuple[Tensor, ...]
    ref_logps: Tensor | None = None
    ref_per_token_logps: tuple[Tensor, ...] | None = None

    @property
    def log_ratios(self) -> Tensor:
        """Policy minus reference, summed over each completion; (N,), nats.

        Raises:
            ValueError: If there is no reference.
        """
        if self.ref_logps is None:
            raise ValueError("log-ratios need a reference")
        return self.logps - self.ref_logps

    @property
    def pair_places(self) -> Tensor:
        """Place of the row of each pair among the prepared rows; (P,)."""
        return self.places[self.index.chosen]

    def pairs(self, chosen: Tensor | None = None, rejected: Tensor | None = None) -> PairLogps:
        """Return the policy's log-probs of pairs.

        Args:
            chosen: Numbers of completions; (P,), None for the better ones of all pairs.
            rejected: The same of the others; (P,).
        """
        return self._pairs(self.logps, self.per_token_logps, chosen, rejected)

    def ref_pairs(
        self, chosen: Tensor | None = None, rejected: Tensor | None = None
    ) -> PairLogps | None:
        """Return the reference's log-probs of pairs, as ``pairs`` does; None without one."""
        if self.ref_logps is None or self.ref_per_token_logps is None:
            return None
        return self._pairs(self.ref_logps, self.ref_per_token_logps, chosen, rejected)

    def _pairs(
        self,
        logps: Tensor,
        per_token: Sequence[Tensor],
        chosen: Tensor | None,
        rejected: Tensor | None,
    ) -> PairLogps:
        chosen = self.index.chosen if chosen is None else chosen
        rejected = self.index.rejected if rejected is None else rejected
        numbers = [*chosen.tolist(), *rejected.tolist()]
        tokens = torch.cat([per_token[number] for number in numbers]) if numbers else logps[:0]
        lengths = self.lengths
        return PairLogps(logps[chosen], logps[rejected], lengths[chosen], lengths[rejected], tokens)


class PolicyScorer:
    """A policy and what it is compared with, ready to score completions.

    Args:
        model: An id, a path (of a whole model or an adapter), or a model.
        args: Of what a training run is given, what decides the model, the token ids and how they
            are computed: ``model_init_kwargs``, ``max_length``, ``bf16``, ``layout`` and so on.
        ref_model: The reference, in the same way; None for none.
        processing_class: The tokenizer; None to load it from where the model came from.

    Attributes:
        model: The policy.
        tokenizer: Its tokenizer, with a padding token.
        scorer: Scores with the policy.
        max_length: Most tokens of a prompt + completion; None for any.
        reports: What preparation did to each dataset, by name.

    Raises:
        ValueError: If the model cannot be scored, the reference reads other token ids, or the
            policy is in parts over processes.
        OSError: If a model or tokenizer is not found.
    """

    def __init__(
        self,
        model: Any,
        args: PreferenceConfig,
        ref_model: Any = None,
        processing_class: Any = None,
    ) -> None:
        name = model if isinstance(model, str) else None
        named = named_in_run(model, ref_model)
        if name is not None:
            options = loading_options(args)
            model = load_model(name, options, allow_missing=args.allow_missing_weights)
        self.model = model
        self.args = args
        self.tokenizer = load_tokenizer(processing_class, model, args, name)
        check_vocabulary(self.tokenizer, model)
        if args.disable_dropout:
            switch_off_dropout(model)
        self.max_length = _least(args.max_length, learned_positions(model))
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._launch = Launch.to_score(model, args)
        self._setup = ReferenceSetup(
            model,
            self.tokenizer,
            args,
            parse_objective(_LOG_RATIO),
            self._launch,
            self._say,
            self.max_length,
            named,
        )
        self.scorer: Scorer = self._setup.scorer
        self._policy = ReferenceModel(self.scorer, "the policy")
        self._data = DataPreparation(
            self.tokenizer,
            parse_objective(_ANY_KIND),
            self.max_length,
            args.dataset_num_proc,
            self._console,
            embedded_tokens(model),
            args.seed,
        )
        self.reports = self._data.reports
        self._loaded: ReferenceModel | None = None
        self._holds = False
        self._ref_model = ref_model  # held: one that is given is used for each dataset
        if ref_model is not None:
            self._setup.choose(ref_model)
            self._setup.announce()

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False)

    @property
    def has_reference(self) -> bool:
        """Whether there is a reference."""
        return self._setup.references is not None

    @property
    def reference_name(self) -> str | None:
        """Where the reference was loaded from, or what it is; None without one."""
        references = self._setup.references
        if references is None:
            return None
        return next(iter(references.source.loaded_from.values()), references.source.description)

    # Completions of data --------------------------------------------------------------------------

    def prepare(self, dataset: Any, name: str = "eval") -> Dataset:
        """Return rows of any format of ``prefopt.data`` as token ids; their report is printed.

        Args:
            dataset: The rows, or a list of ``prefopt.data.WeightedDataset``.
            name: What to call them.

        Raises:
            DataError: If rows are wrong.
        """
        prepared: Dataset = self._data.prepare(dataset, name)
        return prepared

    def score(self, prepared: Dataset, name: str = "eval") -> CompletionScores:
        """Return the log-probs of every completion; those of the reference are kept in its store.

        Args:
            prepared: Rows from ``prepare``.
            name: What to call them where progress is shown.

        Raises:
            ValueError: If a log-prob is not finite.
        """
        references, ref_tokens = self._setup.references, None
        if references is not None:
            references.prepare((name, prepared))
            assert references.store is not None  # a reference is live only where that is asked for
            ref_tokens = tuple(_scored_tokens(prepared, references.store))
        if references is not None and references.is_model(self.model, self._launch.autocast_name):
            tokens = ref_tokens  # a start, scored against itself, is scored once
        else:
            tokens = self._of_policy(prepared, name)
        assert tokens is not None
        places, index = _index_of(prepared)
        return CompletionScores(
            places,
            index,
            _sums(tokens),
            torch.tensor([len(logps) for logps in tokens]),
            tokens,
            None if ref_tokens is None else _sums(ref_tokens),
            ref_tokens,
        )

    def _of_policy(self, prepared: Dataset, name: str) -> tuple[Tensor, ...]:
        """Return the policy's log-probs of the scored tokens of each completion."""
        wanted = CompletionIndex.of(prepared, with_kl=False)
        store = MemoryStore()
        options = FillOptions(
            tokens_per_batch=self.args.max_tokens_per_batch or FILL_TOKENS,
            processes=self._launch.processes,
            show_progress=self._launch.show_progress,
            whose="the policy",
            context=self._launch.accelerator.autocast,
        )
        Filler(store, lambda: self._policy, options).fill(prepared, wanted, name)
        return tuple(_scored_tokens(prepared, store))

    # Samples --------------------------------------------------------------------------------------

    @contextmanager
    def reference_model(self) -> Iterator[Any]:
        """Load the reference, to be sampled from; it is dropped when the context ends.

        Yields:
            The model.

        Raises:
            ValueError: If there is no reference.
        """
        with self._reference() as reference, reference.asked() as model:
            yield model

    @contextmanager
    def holding_reference(self) -> Iterator[None]:
        """Keep the reference until the context ends, once something inside has loaded it."""
        self._holds = True
        try:
            yield
        finally:
            self._holds = False
            self._drop_reference()

    @property
    def reference_mark(self) -> str | None:
        """What tells the reference from all others, its fingerprint; None without one."""
        references = self._setup.references
        known = None if references is None else references.fingerprint
        return None if known is None else known.digest

    @property
    def store_folder(self) -> Path | None:
        """Folder of the store of log-probs; None where it is in memory, or there is none."""
        store = None if self._setup.references is None else self._setup.references.store
        return store.database.path.parent if isinstance(store, FileStore) else None

    @contextmanager
    def _reference(self) -> Iterator[ReferenceModel]:
        if self._setup.references is None:
            raise ValueError("this needs a reference, and there is none")
        self._loaded = self._loaded or self._setup.references.source.load()
        try:
            yield self._loaded
        finally:
            if not self._holds:
                self._drop_reference()

    def _drop_reference(self) -> None:
        self._loaded = None
        if self._setup.references is not None:
            self._setup.references.source.release()

    def divergences(
        self,
        prompts: Sequence[Ids],
        completions: Sequence[Ids],
        *,
        progress: str = "KL",
    ) -> Tensor:
        """Return KL(policy || reference) along completions that the policy sampled.

        Summed over the tokens of a completion, the divergence of both next-token distributions over
        the whole vocabulary: its mean over samples at temperature 1 estimates the KL of the two
        distributions of completions without bias, as ``sequence_kl`` does.

        Args:
            prompts: Token ids of the prompt of each completion; the same ones next to each other
                are computed once.
            completions: Token ids of each completion.
            progress: What the progress bar shows.

        Returns:
            (N,), nats.

        Raises:
            ValueError: If there is no reference.
        """
        batches = list(_sampled_batches(prompts, completions, FILL_TOKENS))
        bar = tqdm(batches, desc=progress, disable=not self._launch.show_progress)
        with self._reference() as reference:
            parts = [self._divergences(batch, reference.scorer) for batch in bar]
        return torch.cat(parts) if parts else torch.zeros(0)

    @torch.no_grad()
    def _divergences(self, examples: Sequence[Example], reference: Scorer) -> Tensor:
        """Return the divergences of some completions; (n,), nats.

        The engine computes KL(predictions that are given || model that scores), so it is the
        reference that scores.
        """
        both_share = {self.scorer.layout, reference.layout} == {"shared_prefix"}
        layout = build_layout(examples, "shared_prefix" if both_share else "padded")
        context = self._launch.accelerator.autocast
        batch = self.scorer.to_device(layout)
        predictions = self._policy.score(batch, context, keep_predictions=True).predictions
        with reference.evaluating():
            scores = reference.score(
                reference.to_device(layout), context=context, divergence_from=predictions
            )
        assert scores.divergences is not None  # they were asked for
        return scores.divergences.float().cpu()


def known_start(model: str, args: PreferenceConfig) -> str | None:
    """Return what a trained model was trained against; None where that is not known.

    It is what the run wrote down beside the model, else the base model of an adapter.

    Args:
        model: Folder or id of the model.
        args: How it is loaded.

    Raises:
        ValueError: If it is an adapter that names no base model.
    """
    record = Path(model) / RECORD_FILE
    if record.is_file():
        places = dict(json.loads(record.read_text(encoding="utf-8")).get("loaded_from") or {})
        known = places.get("adapter") or places.get("name_or_path")
        if known:
            return str(known)
    adapter = SavedAdapter.find(model, loading_options(args))
    return None if adapter is None else adapter.base


def _least(limit: int | None, positions: int | None) -> int | None:
    known = [number for number in (limit, positions) if number is not None]
    return min(known) if known else None


def _sums(tokens: Sequence[Tensor]) -> Tensor:
    return torch.stack([logps.sum() for logps in tokens]) if tokens else torch.zeros(0)


def _examples(prepared: Dataset) -> Iterator[Example]:
    """Yield the prompt and completions of each row, with the masks that rows of token ids have."""
    masks = prepared["completion_masks"] if "completion_masks" in prepared.column_names else None
    for place, example in enumerate(read_examples(prepared, with_kl=False)):
        if masks is not None and masks[place]:
            its = [np.asarray(mask, dtype=bool) for mask in masks[place]]
            example = Example(example.prompt_ids, example.completion_ids, its)
        yield example


def _scored_tokens(prepared: Dataset, store: LogpStore) -> Iterator[Tensor]:
    """Yield the log-probs of the scored tokens of each completion; (n_i,), nats, float32."""
    for example in _examples(prepared):
        keys = completion_keys(example.prompt_ids, example.completion_ids)
        for logps, mask in zip(store.look_up(keys), example.counted_masks(), strict=True):
            assert logps is not None  # the store was filled with them
            yield torch.from_numpy(logps[mask].astype(np.float32))


def _index_of(prepared: Dataset) -> tuple[Tensor, PreferenceIndex]:
    """Return the place of the row of each completion, and which completions are compared."""
    counts = [len(example.completion_ids) for example in read_examples(prepared, with_kl=False)]
    judged = prepared.select_columns(["kind", "desirable", "ranks"])
    rows = [
        dict(row, completion_ids=[None] * count) for row, count in zip(judged, counts, strict=True)
    ]
    places = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return places, index_of(rows)


def _sampled_batches(
    prompts: Sequence[Ids], completions: Sequence[Ids], most_tokens: int
) -> Iterator[list[Example]]:
    """Yield examples for one forward pass each; successive samples of a prompt share it.

    A pass holds one example at least, or as many as the limit on tokens allows.
    """
    batch: list[Example] = []
    held, last = 0, None
    for prompt, completion in zip(prompts, completions, strict=True):
        ids = np.asarray(completion, dtype=np.int64)
        same = last is not None and list(prompt) == last
        tokens = len(ids) + (0 if same else len(prompt))
        if batch and held + tokens > most_tokens:
            yield batch
            batch, held, same = [], 0, False
            tokens = len(ids) + len(prompt)
        if same:
            batch[-1] = Example(batch[-1].prompt_ids, [*batch[-1].completion_ids, ids])
        else:
            batch.append(Example(np.asarray(prompt, dtype=np.int64), [ids]))
        held, last = held + tokens, list(prompt)
    if batch:
        yield batch
