"""The reference: the source of the log-probs that a policy is compared with.

The trainer chooses and serves it. The public functions here look after the store that keeps its
log-probs, and recognise a model in it.
"""

from prefopt.reference.adapters import AdapterError
from prefopt.reference.fingerprint import Fingerprint, fingerprint_of
from prefopt.reference.store.database import DatabaseError
from prefopt.reference.store.logp_store import default_folder
from prefopt.reference.store.maintain import ReferenceInfo, StoreInfo, describe_store, open_store
from prefopt.reference.store.transfer import (
    Exported,
    Imported,
    TransferError,
    export_store,
    import_store,
)
from prefopt.reference.store.verify import Integrity, check_store

__all__ = [
    "AdapterError",
    "DatabaseError",
    "Exported",
    "Fingerprint",
    "Imported",
    "Integrity",
    "ReferenceInfo",
    "StoreInfo",
    "TransferError",
    "check_store",
    "default_folder",
    "describe_store",
    "export_store",
    "fingerprint_of",
    "import_store",
    "open_store",
]
