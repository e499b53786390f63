"""The reference: where the log-probs that a policy is compared with come from."""

from prefopt.reference.adapters import AdapterError, trains_only_adapters
from prefopt.reference.fill import CompletionIndex, Filler, FillOptions
from prefopt.reference.fingerprint import Fingerprint, fingerprint_of
from prefopt.reference.live import (
    AdapterOff,
    FrozenCopy,
    MovingCopy,
    ReferenceModel,
    adapter_starts_as_identity,
)
from prefopt.reference.processes import Processes
from prefopt.reference.references import ReferenceLogps, References
from prefopt.reference.sources import (
    BaseModel,
    InitialPolicy,
    MovingPolicy,
    NamedAdapter,
    OtherModel,
    ResumedReference,
    Source,
)
from prefopt.reference.store.database import Database
from prefopt.reference.store.logp_store import (
    FileStore,
    LogpStore,
    MemoryStore,
    default_folder,
    open_database,
)

__all__ = [
    "AdapterError",
    "AdapterOff",
    "BaseModel",
    "CompletionIndex",
    "Database",
    "FileStore",
    "FillOptions",
    "Filler",
    "Fingerprint",
    "FrozenCopy",
    "InitialPolicy",
    "LogpStore",
    "MemoryStore",
    "MovingCopy",
    "MovingPolicy",
    "NamedAdapter",
    "OtherModel",
    "Processes",
    "ReferenceLogps",
    "ReferenceModel",
    "References",
    "ResumedReference",
    "Source",
    "adapter_starts_as_identity",
    "default_folder",
    "fingerprint_of",
    "open_database",
    "trains_only_adapters",
]
