"""What the reference of a run is: how it is recognised, and how to get a model that scores with it.

A source is asked for its fingerprint first, and for a model only if the store lacks something.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from prefopt.engine import Scorer
from prefopt.reference.database import Database
from prefopt.reference.files import source_digest
from prefopt.reference.fingerprint import Fingerprint, fingerprint_of
from prefopt.reference.strategies import (
    AdapterOff,
    FrozenCopy,
    LiveReference,
    ReferenceModel,
)


class Source(Protocol):
    """Where reference log-probs come from.

    Attributes:
        description: What the reference is, for people.
        moved: Whether the policy has been trained since this was made.
    """

    description: str
    moved: bool

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
    """

    description = "the policy as it was given"
    moved = False

    def __init__(
        self,
        scorer: Scorer,
        autocast: str,
        reload: Callable[[], Any] | None,
        scorer_of: Callable[[Any], Scorer],
    ) -> None:
        self._scorer = scorer
        self._autocast = autocast
        self._reload = reload
        self._scorer_of = scorer_of
        self._fingerprint = _fingerprint(scorer.model, autocast)

    def fingerprint(self) -> Fingerprint | None:
        """See ``Source``."""
        return self._fingerprint

    def load(self) -> tuple[LiveReference, Scorer]:
        """See ``Source``.

        Raises:
            ValueError: If the policy has been trained since and cannot be loaded again.
        """
        if not self.moved or self._is_it(self._scorer.model):
            return ReferenceModel(self._scorer, self.description), self._scorer
        if self._reload is not None and self._fingerprint is not None:
            model = self._reload()
            if self._is_it(model):
                scorer = self._scorer_of(model)
                return ReferenceModel(scorer, self.description), scorer
        raise ValueError(
            "the reference has not scored this data, and it is gone: it was the policy as it was "
            "given, which has been trained since"
            + ("" if self._reload is None else " and is no longer where it was loaded from")
            + "; pass the data as eval_dataset when making the trainer, or use reference='live'"
        )

    def _is_it(self, model: Any) -> bool:
        now = _fingerprint(model, self._autocast)
        mine = self._fingerprint
        return now is not None and mine is not None and now.digest == mine.digest

    def keep(self) -> LiveReference:
        """See ``Source``."""
        return FrozenCopy(self._scorer)

    def release(self) -> None:
        """See ``Source``."""


class BaseModel:
    """The model under the policy's adapter, which began as nothing.

    Args:
        scorer: Scores with the policy, a peft model.
        autocast: The dtype to which computation is cast, or ``"none"``.
    """

    description = AdapterOff.description
    moved = False

    def __init__(self, scorer: Scorer, autocast: str) -> None:
        self._scorer = scorer
        self._fingerprint = _fingerprint(scorer.model, autocast, adapter_off=True)

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
        self._model = model
        self._load = load
        self._options = dict(options) | {"autocast": autocast}
        self._autocast = autocast
        self._scorer_of = scorer_of
        self._matched = matched
        self._database = database
        self._fingerprint: Fingerprint | None = None
        self._scorer: Scorer | None = None

    def fingerprint(self) -> Fingerprint | None:
        """See ``Source``; a model by name that was loaded before is not loaded for it."""
        if self._fingerprint is None:
            known = self._known()
            if known is not None:
                self._fingerprint = known
            else:
                self._fingerprint = _fingerprint(self._loaded().model, self._autocast)
                self._remember()
        return self._fingerprint

    def _source(self) -> str | None:
        if not isinstance(self._model, str) or self._database is None:
            return None
        return source_digest(self._model, self._options, self._database)

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
        digest, facts = self._fingerprint
        if not self._database.readonly:
            self._database.reference(digest, facts)
            self._database.remember_loaded(source, digest)

    def _loaded(self) -> Scorer:
        if self._scorer is None:
            self._scorer = self._scorer_of(self._load(self._model))
        return self._scorer

    def load(self) -> tuple[LiveReference, Scorer]:
        """See ``Source``."""
        scorer = self._loaded()
        return ReferenceModel(scorer, self.description), scorer

    def keep(self) -> LiveReference:
        """See ``Source``."""
        return ReferenceModel(self._matched(self._loaded()), self.description)

    def release(self) -> None:
        """See ``Source``: a model that was loaded here is dropped."""
        self._scorer = None


def _fingerprint(model: Any, autocast: str, adapter_off: bool = False) -> Fingerprint | None:
    """Return the fingerprint of a model; None if its weights are not all in this process."""
    for parameter in model.parameters():
        if parameter.device.type == "meta" or hasattr(parameter, "ds_id"):
            return None
    return fingerprint_of(model, autocast=autocast, adapter_off=adapter_off)
