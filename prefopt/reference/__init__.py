"""The reference: where the log-probs that a policy is compared with come from."""

from prefopt.reference.cache import MemoryStore, fill
from prefopt.reference.references import ReferenceLogps, References
from prefopt.reference.strategies import (
    AdapterOff,
    FrozenCopy,
    LiveReference,
    ReferenceModel,
    adapter_starts_as_identity,
)

__all__ = [
    "AdapterOff",
    "FrozenCopy",
    "LiveReference",
    "MemoryStore",
    "ReferenceLogps",
    "ReferenceModel",
    "References",
    "adapter_starts_as_identity",
    "fill",
]
