"""What the reference of a run is: how it is recognised, and how to get a model that scores with it.

A source is asked for its fingerprint first, and for a model only if the store lacks something.
"""

import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from prefopt.engine import Scorer
from prefopt.reference.adapters import (
    copy_without_adapters,
    is_sharded,
    named_weights,
    with_adapter,
)
from prefopt.reference.fingerprint import Fingerprint, fingerprint_of
from prefopt.reference.live import (
    AdapterOff,
    FrozenCopy,
    LiveReference,
    MovingCopy,
    ReferenceModel,
)
from prefopt.reference.store.database import Database
from prefopt.reference.store.files import source_digest


class Source(Protocol):
    """Where reference log-probs come from.

    Attributes:
        description: What the reference is, for people.
        moved: Whether the policy has been trained since this was made.
        loaded_from: Where another run can load it from: ``name_or_path`` of a model, or
            ``adapter``; empty if it was not loaded from anywhere.
    """

    description: str
    moved: bool
    loaded_from: dict[str, str]

    def fingerprint(self) -> Fingerprint | None:
        """Return what the reference is; None where its weights are not all in one place."""

    def load(self) -> tuple[LiveReference, Scorer]:
        """Return the reference, ready to score in the layout of its scorer."""

    def keep(self) -> LiveReference:
        """Return the reference for use at every step, in the layout of the policy's batches."""

    def release(self) -> None:
        """Give back the memory of what ``load`` got."""


class InitialPolicy:
    """The policy as it is when this is made, which is to be trained.

    Args:
        scorer: Scores with the policy.
        autocast: The dtype to which computation is cast, or ``"none"``.
        reload: Loads it again from where it came; None if it came from nowhere.
        scorer_of: Returns a scorer of another model.
        adapter_off: Whether it has an adapter that began as nothing, so that it is its base model.
    """

    description = "the policy as it was given"
    moved = False

    def __init__(
        self,
        scorer: Scorer,
        autocast: str,
        reload: Callable[[], Any] | None,
        scorer_of: Callable[[Any], Scorer],
        adapter_off: bool = False,
    ) -> None:
        self._scorer = scorer
        self._autocast = autocast
        self._reload = reload
        self._scorer_of = scorer_of
        self._adapter_off = adapter_off
        self._has_adapter = hasattr(scorer.model, "peft_config") and not adapter_off
        self._fingerprint = _fingerprint(scorer.model, autocast, adapter_off)
        self.loaded_from = {} if self._has_adapter else loaded_from(scorer.model)

    def fingerprint(self) -> Fingerprint | None:
        """See ``Source``."""
        return self._fingerprint

    def load(self) -> tuple[LiveReference, Scorer]:
        """See ``Source``.

        Raises:
            ValueError: If the policy has been trained since and cannot be loaded again.
        """
        if self._has_not_moved():
            return ReferenceModel(self._scorer, self.description), self._scorer
        if self._reload is not None and self._fingerprint is not None:
            model = self._reload()
            if _is(model, self._fingerprint, self._autocast):
                scorer = self._scorer_of(model)
                return ReferenceModel(scorer, self.description), scorer
        raise ValueError(
            "the reference has not scored this data, and it is gone: it was the policy as it was "
            "given, which has been trained since"
            + ("" if self._reload is None else " and is no longer where it was loaded from")
            + "; pass the data as eval_dataset when making the trainer, or use reference='live'"
            + (
                ", or name the adapter that it began as by reference='adapter:<folder>'"
                if self._has_adapter
                else ""
            )
        )

    def _has_not_moved(self) -> bool:
        if not self.moved:
            return True
        known = self._fingerprint is not None and not self._adapter_off
        return known and _is(self._scorer.model, self._fingerprint, self._autocast)

    def keep(self) -> LiveReference:
        """See ``Source``.

        Raises:
            ValueError: If the policy has been trained since and cannot be loaded again.
        """
        return FrozenCopy(self._scorer) if self._has_not_moved() else self.load()[0]

    def release(self) -> None:
        """See ``Source``."""


class BaseModel:
    """The model under the policy's adapter, which began as nothing and alone is trained.

    Args:
        scorer: Scores with the policy, a peft model.
        autocast: The dtype to which computation is cast, or ``"none"``.
    """

    description = AdapterOff.description
    moved = False

    def __init__(self, scorer: Scorer, autocast: str) -> None:
        self._scorer = scorer
        self._fingerprint = _fingerprint(scorer.model, autocast, adapter_off=True)
        self.loaded_from = loaded_from(scorer.model)

    def fingerprint(self) -> Fingerprint | None:
        """See ``Source``."""
        return self._fingerprint

    def load(self) -> tuple[LiveReference, Scorer]:
        """See ``Source``."""
        return AdapterOff(self._scorer), self._scorer

    def keep(self) -> LiveReference:
        """See ``Source``."""
        return AdapterOff(self._scorer)

    def release(self) -> None:
        """See ``Source``."""


class NamedAdapter:
    """A saved adapter on the policy's base model.

    The policy, its own adapters, their modes and what of it is trained stay as they are.

    Args:
        path: Folder or id of the adapter.
        scorer: Scores with the policy.
        autocast: The dtype to which computation is cast, or ``"none"``.
        reload: Loads the base model again from where it came; None if it came from nowhere.
        scorer_of: Returns a scorer of another model.

    Raises:
        ValueError: If there is no adapter, it does not fit, or the weights of the policy are not
            all in this process.
    """

    moved = False

    def __init__(
        self,
        path: str,
        scorer: Scorer,
        autocast: str,
        reload: Callable[[], Any] | None,
        scorer_of: Callable[[Any], Scorer],
    ) -> None:
        if is_sharded(scorer.model):
            raise ValueError(
                "reference='adapter:...' needs all weights in each process; give a ref_model "
                "into which the adapter is merged"
            )
        self.description = f"the adapter {path} on the policy's base model"
        self.loaded_from = {"adapter": _absolute(path)}
        self._path = path
        self._policy = scorer.model
        self._autocast = autocast
        self._reload = reload
        self._scorer_of = scorer_of
        self._fingerprint = _fingerprint(self._attached(), autocast)

    def _attached(self, copy_trained: bool = False) -> Any:
        return with_adapter(copy_without_adapters(self._policy, copy_trained), self._path)

    def fingerprint(self) -> Fingerprint | None:
        """See ``Source``."""
        return self._fingerprint

    def load(self) -> tuple[LiveReference, Scorer]:
        """See ``Source``.

        Raises:
            ValueError: If the base model has been trained since, or the adapter has changed.
        """
        scorer = self._scorer_of(self._model())
        return ReferenceModel(scorer, self.description), scorer

    def keep(self) -> LiveReference:
        """See ``Source``; what of the base is trained is copied."""
        return ReferenceModel(self._scorer_of(self._model(copy_trained=True)), self.description)

    def _model(self, copy_trained: bool = False) -> Any:
        assert self._fingerprint is not None  # not sharded
        model = self._attached(copy_trained)
        if _is(model, self._fingerprint, self._autocast):
            return model
        if self._reload is not None:
            model = with_adapter(copy_without_adapters(self._reload()), self._path)
            if _is(model, self._fingerprint, self._autocast):
                return model
        raise ValueError(
            f"the reference has not scored this data, and it is gone: {self.description} is not "
            "what it was; pass the data as eval_dataset when making the trainer, or use "
            "reference='live'"
        )

    def release(self) -> None:
        """See ``Source``: each ``load`` makes a model of its own, which nobody keeps."""


class OtherModel:
    """A model beside the policy.

    Args:
        model: The model, or its id or path: then it is loaded only if it must score.
        load: Loads it by name, or takes it as it is, and makes it ready to score.
        options: What decides, beside its name, what is loaded.
        autocast: The dtype to which computation is cast, or ``"none"``.
        scorer_of: Returns a scorer of a model.
        matched: Returns the scorer to use at every step, in the layout of the policy's batches.
        database: Knows what was loaded before; None for none.
    """

    description = "the given ref_model"
    moved = False

    def __init__(
        self,
        model: Any,
        load: Callable[[Any], Any],
        options: Mapping[str, Any],
        autocast: str,
        scorer_of: Callable[[Any], Scorer],
        matched: Callable[[Scorer], Scorer],
        database: Database | None,
    ) -> None:
        self._by_name = isinstance(model, str)
        self.loaded_from = (
            {"name_or_path": _absolute(model)} if self._by_name else loaded_from(model)
        )
        self._name = model if self._by_name else self.loaded_from.get("name_or_path", "")
        self._given = None if self._by_name else model
        self._given_once = (lambda: None) if self._by_name else weakref.ref(model)
        self._load = load
        self._options = dict(options) | {"autocast": autocast}
        self._autocast = autocast
        self._scorer_of = scorer_of
        self._matched = matched
        self._database = database
        self._fingerprint: Fingerprint | None = None
        self._ready: Any = None
        self._scorer: Scorer | None = None

    def fingerprint(self) -> Fingerprint | None:
        """See ``Source``; a model by name that was loaded before is not loaded for it."""
        if self._fingerprint is None:
            self._fingerprint = self._known()
        if self._fingerprint is None:
            self._model()
            self._remember()
        return self._fingerprint

    def _source(self) -> str | None:
        if not self._by_name or self._database is None:
            return None
        return source_digest(self._name, self._options, self._database)

    def _known(self) -> Fingerprint | None:
        source = self._source()
        if source is None or self._database is None:
            return None
        known = self._database.loaded(source)
        return None if known is None else Fingerprint(*known)

    def _remember(self) -> None:
        source = self._source()
        if source is None or self._database is None or self._fingerprint is None:
            return
        self._database.remember_loaded(source, *self._fingerprint)

    def _model(self) -> Any:
        """Return the model, loaded if need be; it must be what it was the first time."""
        if self._ready is not None:
            return self._ready
        given = self._given_once()
        if given is None and not self._name:
            raise ValueError(
                "the reference has not scored this data, and it is gone: ref_model was dropped "
                "after it had scored the data that the trainer was made with; keep it in a "
                "variable, or pass its id or path"
            )
        model = self._load(self._name if given is None else given)
        if self._fingerprint is None:
            self._fingerprint = _fingerprint(model, self._autocast)
        elif not is_sharded(model) and not _is(model, self._fingerprint, self._autocast):
            raise ValueError(
                "ref_model is not what it was when the trainer was made: "
                + (f"{self._name} has changed" if given is None else "it has been trained")
            )
        self._ready = model
        return model

    def _loaded(self) -> Scorer:
        if self._scorer is None:
            self._scorer = self._scorer_of(self._model())
        return self._scorer

    def load(self) -> tuple[LiveReference, Scorer]:
        """See ``Source``.

        Raises:
            ValueError: If the model is gone or has changed since it was first seen.
        """
        scorer = self._loaded()
        return ReferenceModel(scorer, self.description), scorer

    def keep(self) -> LiveReference:
        """See ``Source``.

        Raises:
            ValueError: If the model is gone or has changed since it was first seen.
        """
        return ReferenceModel(self._matched(self._loaded()), self.description)

    def release(self) -> None:
        """See ``Source``: a model that was loaded is dropped, one that was given is the user's."""
        self._scorer = self._ready = self._given = None


class MovingPolicy:
    """A copy of the policy that follows it in training (TR-DPO); nothing of it can be kept.

    Args:
        scorer: Scores with the policy.
        start: Loads the model as which it starts; None for the policy as it is.

    Raises:
        ValueError: If the weights of the policy are not all in this process, or the start has
            others.
    """

    description = MovingCopy.description
    moved = False

    def __init__(self, scorer: Scorer, start: Callable[[], Any] | None = None) -> None:
        if is_sharded(scorer.model):
            raise ValueError("sync_ref_model needs all weights of the policy in each process")
        self._scorer = scorer
        self.loaded_from: dict[str, str] = {}
        self.copy = MovingCopy(scorer, None if start is None else named_weights(start()))

    def fingerprint(self) -> None:
        """See ``Source``: what moves has none."""

    def load(self) -> tuple[LiveReference, Scorer]:
        """See ``Source``."""
        return self.copy, self._scorer

    def keep(self) -> LiveReference:
        """See ``Source``."""
        return self.copy

    def release(self) -> None:
        """See ``Source``."""


class ResumedReference:
    """The reference of an earlier run, by its fingerprint; loaded only if it must score.

    Args:
        fingerprint: Of that reference.
        description: What it was, for people.
        loaded_from: Where it was loaded from.
        candidates: Make sources, each of which may be it; tried in this order.
    """

    moved = False

    def __init__(
        self,
        fingerprint: Fingerprint,
        description: str,
        loaded_from: Mapping[str, str],
        candidates: Sequence[Callable[[], Source]],
    ) -> None:
        self.description = f"that of the run that is resumed: {description}"
        self.loaded_from = dict(loaded_from)
        self._was = description
        self._fingerprint = fingerprint
        self._candidates = candidates
        self._found: Source | None = None

    def fingerprint(self) -> Fingerprint | None:
        """See ``Source``."""
        return self._fingerprint

    def load(self) -> tuple[LiveReference, Scorer]:
        """See ``Source``.

        Raises:
            ValueError: If it cannot be had again.
        """
        return self._find().load()

    def keep(self) -> LiveReference:
        """See ``Source``.

        Raises:
            ValueError: If it cannot be had again.
        """
        return self._find().keep()

    def _find(self) -> Source:
        problems = []
        for candidate in () if self._found else self._candidates:
            try:
                source = candidate()
                now = source.fingerprint()
            except (OSError, ValueError) as error:
                problems.append(str(error).splitlines()[0])
                continue
            if now is not None and now.digest == self._fingerprint.digest:
                self._found = source
                break
            source.release()
        if self._found is None:
            raise ValueError(self._what_is_needed(problems))
        return self._found

    def _what_is_needed(self, problems: Sequence[str]) -> str:
        where = self.loaded_from.get("name_or_path") or self.loaded_from.get("adapter")
        tried = f"; {where} is not it any more" if where else "; nobody knows where it came from"
        return (
            f"the run that is resumed was trained against {self._was} "
            f"[{self._fingerprint.digest[:12]}]. Its log-probs of this data are not in the store"
            f"{tried}{''.join(f' ({problem})' for problem in problems)}. Make the trainer with the "
            "model, adapter and dtype that the run began with, or name the store that it filled "
            "by reference_cache_dir"
        )

    def release(self) -> None:
        """See ``Source``."""
        if self._found is not None:
            self._found.release()


def loaded_from(model: Any) -> dict[str, str]:
    """Return where a model, or the base of one with an adapter, was loaded from, if anywhere."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    name = getattr(base.config, "_name_or_path", "")
    return {"name_or_path": _absolute(name)} if name else {}


def _absolute(name: str) -> str:
    folder = Path(name).expanduser()
    return str(folder.absolute()) if folder.exists() else name


def _is(model: Any, fingerprint: Fingerprint | None, autocast: str) -> bool:
    """Whether a model has a fingerprint."""
    now = _fingerprint(model, autocast)
    return now is not None and fingerprint is not None and now.digest == fingerprint.digest


def _fingerprint(model: Any, autocast: str, adapter_off: bool = False) -> Fingerprint | None:
    """Return the fingerprint of a model; None if its weights are not all in this process."""
    if is_sharded(model):
        return None
    return fingerprint_of(model, autocast=autocast, adapter_off=adapter_off)
