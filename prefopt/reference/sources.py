"""What the reference of a run is: how it is recognised, and how to get a model that scores with it.

A source is asked for its fingerprint first, and for a model only if the store lacks something.
"""

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from prefopt.engine import Scorer
from prefopt.engine.partitioned import is_partitioned
from prefopt.engine.probe import inside_peft
from prefopt.reference.adapters import (
    copy_without_adapters,
    is_sharded,
    place_loaded_from,
    with_adapter,
)
from prefopt.reference.fingerprint import Fingerprint, fingerprint_of
from prefopt.reference.live import AdapterOff, FrozenCopy, MovingCopy, ReferenceModel
from prefopt.reference.store.database import Database
from prefopt.reference.store.files import source_digest


class Source(ABC):
    """Where reference log-probs come from.

    Attributes:
        description: What the reference is, for people.
        moved: Whether the policy has been trained since this was made.
        stays: Whether it can be had when the policy has been trained.
        loaded_from: Where another run can load it from: ``name_or_path`` of a model, or
            ``adapter``; empty if it was not loaded from anywhere.
    """

    description: str
    moved: bool = False
    stays: bool = True
    loaded_from: Mapping[str, str] = MappingProxyType({})
    _fingerprint: Fingerprint | None = None

    def fingerprint(self) -> Fingerprint | None:
        """Return what the reference is; None where its weights are not all in one process."""
        return self._fingerprint

    @abstractmethod
    def load(self) -> ReferenceModel:
        """Return the reference, ready to score in the layout of its scorer.

        Raises:
            ValueError: If the reference cannot be loaded any more.
        """

    def live(self) -> ReferenceModel:
        """Return the reference for use at every step, on batches of the policy; see ``load``."""
        return self.load()

    def release(self) -> None:  # noqa: B027 # most sources hold nothing of their own
        """Free the memory of what ``load`` returned."""


class InitialPolicy(Source):
    """The policy as it is when this is made, which is to be trained.

    Args:
        scorer: Scores with the policy.
        autocast: The dtype to which computation is cast, or ``"none"``.
        reload: Loads it again from where it was loaded; None if that is not known.
        scorer_of: Returns a scorer of another model.
        adapter_off: Whether it has a zero-initialised adapter, so that it equals its base model.
    """

    description = "the initial policy"

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
        self.stays = reload is not None
        self._has_adapter = hasattr(scorer.model, "peft_config") and not adapter_off
        self._fingerprint = _fingerprint(scorer.model, autocast, adapter_off)
        # A base alone would be another model than the one with its adapter.
        source = adapter_loaded_from if self._has_adapter else loaded_from
        self.loaded_from = source(scorer.model)

    def load(self) -> ReferenceModel:
        """See ``Source``."""
        if self._is_unchanged():
            return ReferenceModel(self._scorer, self.description)
        model = None if self._reload is None else self._reload()
        if model is None or not is_of(model, self._fingerprint, self._autocast):
            raise ValueError(self._lost())
        return ReferenceModel(self._scorer_of(model), self.description)

    def live(self) -> ReferenceModel:
        """See ``Source``."""
        return FrozenCopy(self._scorer) if self._is_unchanged() else self.load()

    def _is_unchanged(self) -> bool:
        if not self.moved:
            return True
        return not self._adapter_off and is_of(
            self._scorer.model, self._fingerprint, self._autocast
        )

    def _lost(self) -> str:
        reloaded = " and is no longer where it was loaded from" if self._reload else ""
        adapter = ", or name its initial adapter by reference='adapter:<folder>'"
        return (
            "the reference has not scored this data, and it is gone: it was the initial policy, "
            f"which has been trained since{reloaded}; pass the data as eval_dataset when making "
            f"the trainer, or use reference='live'{adapter if self._has_adapter else ''}"
        )


class BaseModel(Source):
    """The model under the policy's adapter, which is zero-initialised and alone is trained.

    Args:
        scorer: Scores with the policy, a peft model.
        autocast: The dtype to which computation is cast, or ``"none"``.
    """

    description = AdapterOff.description

    def __init__(self, scorer: Scorer, autocast: str) -> None:
        self._scorer = scorer
        self._fingerprint = _fingerprint(scorer.model, autocast, adapter_off=True)
        self.loaded_from = loaded_from(scorer.model)

    def load(self) -> ReferenceModel:
        """See ``Source``."""
        return AdapterOff(self._scorer)


class NamedAdapter(Source):
    """A saved adapter on the policy's base model.

    The policy, its own adapters, their modes and what of it is trained stay as they are.

    Args:
        path: Folder or id of the adapter.
        scorer: Scores with the policy.
        autocast: The dtype to which computation is cast, or ``"none"``.
        reload: Loads the base model again from where it was loaded; None if that is not known.
        scorer_of: Returns a scorer of another model.

    Raises:
        ValueError: If there is no adapter, it does not fit, or the weights of the policy are not
            all in this process.
    """

    def __init__(
        self,
        path: str,
        scorer: Scorer,
        autocast: str,
        reload: Callable[[], Any] | None,
        scorer_of: Callable[[Any], Scorer],
    ) -> None:
        self._is_apart = is_sharded(scorer.model) or is_partitioned(scorer.model)
        if self._is_apart and reload is None:
            raise ValueError(
                "reference='adapter:...' needs all weights in each process, or to load the base "
                "model again from where it was loaded, which is not known; give the model by its "
                "id or path, or a ref_model into which the adapter is merged"
            )
        self.description = f"the adapter {path} on the policy's base model"
        self.loaded_from = {"adapter": _absolute(path)}
        self._path = path
        self._policy = scorer.model
        self._autocast = autocast
        self._reload = reload
        self._scorer_of = scorer_of
        self._fingerprint = _fingerprint(next(self._made()), autocast)

    def load(self) -> ReferenceModel:
        """See ``Source``; each call makes a model of its own."""
        return self._loaded(copy_trained=False)

    def live(self) -> ReferenceModel:
        """See ``Source``; what of the base is trained is copied."""
        return self._loaded(copy_trained=True)

    def _loaded(self, copy_trained: bool) -> ReferenceModel:
        """Return the adapter on the policy's base, or on that base loaded again."""
        models = self._made(copy_trained)
        model = next((it for it in models if is_of(it, self._fingerprint, self._autocast)), None)
        if model is None:
            raise ValueError(
                f"the reference has not scored this data, and it is gone: {self.description} is "
                "not what it was; pass the data as eval_dataset when making the trainer, or use "
                "reference='live'"
            )
        return ReferenceModel(self._scorer_of(model), self.description)

    def _made(self, copy_trained: bool = False) -> Iterator[Any]:
        """Yield the adapter on the policy's base, if that is here, and on it loaded again."""
        if not self._is_apart and not is_sharded(self._policy):  # FSDP shards it for training
            yield with_adapter(copy_without_adapters(self._policy, copy_trained), self._path)
        if self._reload is not None:
            base = self._reload()
            yield with_adapter(
                base if is_partitioned(base) else copy_without_adapters(base), self._path
            )


class OtherModel(Source):
    """A model beside the policy.

    Args:
        model: The model, or its id or path: then it is loaded only if it must score.
        load: Loads it by name, or takes it as it is, and makes it ready to score.
        options: What decides, beside its name, what is loaded.
        autocast: The dtype to which computation is cast, or ``"none"``.
        scorer_of: Returns a scorer of a model.
        database: Knows what was loaded before; None for none.
    """

    description = "the given ref_model"

    def __init__(
        self,
        model: Any,
        load: Callable[[Any], Any],
        options: Mapping[str, Any],
        autocast: str,
        scorer_of: Callable[[Any], Scorer],
        database: Database | None,
    ) -> None:
        by_name = isinstance(model, str)
        self.loaded_from = {"name_or_path": _absolute(model)} if by_name else loaded_from(model)
        self._name = model if by_name else self.loaded_from.get("name_or_path", "")
        # A given model is held until it has scored, and used again while its owner holds it.
        self._given = None if by_name else model
        self._given_weakly = None if by_name else weakref.ref(model)
        self._load = load
        self._options = dict(options) | {"autocast": autocast}
        self._autocast = autocast
        self._scorer_of = scorer_of
        self._database = database
        self._model: Any = None
        self._scorer: Scorer | None = None

    def fingerprint(self) -> Fingerprint | None:
        """See ``Source``; a model by name that was loaded before is not loaded for it."""
        if self._fingerprint is None and self._given_weakly is None and self._database is not None:
            self._fingerprint = self._fingerprint_by_name(self._database)
        elif self._fingerprint is None:
            self._ready_model()
        return self._fingerprint

    def _fingerprint_by_name(self, database: Database) -> Fingerprint | None:
        source = source_digest(self._name, self._options, database)
        known = None if source is None else database.loaded(source)
        if known is not None:
            return Fingerprint(*known)
        self._ready_model()
        if source is not None and self._fingerprint is not None:
            database.remember_loaded(source, *self._fingerprint)
        return self._fingerprint

    def _ready_model(self) -> Any:
        """Return the model, loaded if need be; it must be what it was the first time."""
        if self._model is None:
            given = None if self._given_weakly is None else self._given_weakly()
            if given is None and not self._name:
                raise ValueError(
                    "the reference has not scored this data, and it is gone: ref_model was dropped "
                    "after it had scored the data that the trainer was made with; keep it in a "
                    "variable, or pass its id or path"
                )
            model = self._load(self._name if given is None else given)
            if self._fingerprint is None:
                self._fingerprint = _fingerprint(model, self._autocast)
            elif not is_sharded(model) and not is_of(model, self._fingerprint, self._autocast):
                change = f"{self._name} has changed" if given is None else "it has been trained"
                raise ValueError(
                    f"ref_model is not what it was when the trainer was made: {change}"
                )
            self._model = model
        return self._model

    def load(self) -> ReferenceModel:
        """See ``Source``."""
        if self._scorer is None:
            self._scorer = self._scorer_of(self._ready_model())
        return ReferenceModel(self._scorer, self.description)

    def release(self) -> None:
        """See ``Source``: a model that was loaded is dropped, one that was given is the user's."""
        self._scorer = self._model = self._given = None


class MovingPolicy(Source):
    """A copy of the policy that follows it in training (TR-DPO); it has no fingerprint.

    Args:
        scorer: Scores with the policy.
        start: Loads the model as which it starts; None for the policy as it is.

    Raises:
        ValueError: If the weights of the policy are not all in this process, or the start has
            others.
    """

    description = MovingCopy.description

    def __init__(self, scorer: Scorer, start: Callable[[], Any] | None = None) -> None:
        if is_sharded(scorer.model) or is_partitioned(scorer.model):
            raise ValueError("sync_ref_model needs all weights of the policy in each process")
        weights = None if start is None else dict(start().named_parameters())
        self.copy = MovingCopy(scorer, weights)

    def load(self) -> ReferenceModel:
        """See ``Source``."""
        return self.copy


class ResumedReference(Source):
    """The reference of an earlier run, by its fingerprint; loaded only if it must score.

    Args:
        fingerprint: Of that reference.
        description: What it was, for people.
        loaded_from: Where it was loaded from.
        candidates: Make sources, each of which may be it; tried in this order.
    """

    def __init__(
        self,
        fingerprint: Fingerprint,
        description: str,
        loaded_from: Mapping[str, str],
        candidates: Sequence[Callable[[], Source]],
    ) -> None:
        self.description = f"that of the run that is resumed: {description}"
        self.loaded_from = dict(loaded_from)
        self._original = description
        self._fingerprint: Fingerprint = fingerprint
        self._candidates = candidates
        self._found: Source | None = None

    def load(self) -> ReferenceModel:
        """See ``Source``."""
        return self._find().load()

    def live(self) -> ReferenceModel:
        """See ``Source``."""
        return self._find().live()

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
        tried = f"{where} is another model now" if where else "it was not loaded from anywhere"
        return (
            f"the run that is resumed was trained against {self._original} "
            f"[{self._fingerprint.digest[:12]}]. Its log-probs of this data are not in the store; "
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
    base = inside_peft(model)
    name = getattr(base.config, "_name_or_path", "")
    return {"name_or_path": _absolute(name)} if name else {}


def adapter_loaded_from(model: Any) -> dict[str, str]:
    """Return where the adapter of a model was loaded from, if by ``with_adapter``."""
    place = place_loaded_from(model)
    return {} if place is None else {"adapter": _absolute(place.path)}


def _absolute(name: str) -> str:
    folder = Path(name).expanduser()
    return str(folder.absolute()) if folder.exists() else name


def _fingerprint(model: Any, autocast: str, adapter_off: bool = False) -> Fingerprint | None:
    """Return the fingerprint of a model; None if its weights are not all in this process."""
    if is_sharded(model):
        return None
    return fingerprint_of(model, autocast=autocast, adapter_off=adapter_off)


def is_of(model: Any, fingerprint: Fingerprint | None, autocast: str) -> bool:
    """Whether a model has a fingerprint."""
    now = _fingerprint(model, autocast)
    return now is not None and fingerprint is not None and now.digest == fingerprint.digest
