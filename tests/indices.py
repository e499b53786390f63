"""Preference indices for tests, of which only what matters is said."""

from typing import Any

import torch

from prefopt.objective.preference_index import PreferenceIndex


def make_index(**given: Any) -> PreferenceIndex:
    """Return an index that is empty but for what is given; lists become tensors."""
    nothing = torch.tensor([], dtype=torch.int64)
    fields = dict.fromkeys(("chosen", "rejected", "unpaired", "preferred"), nothing)
    fields["labels"] = torch.tensor([], dtype=torch.bool)
    tensors = {
        name: torch.tensor(value) if isinstance(value, list) else value
        for name, value in given.items()
    }
    return PreferenceIndex(**{**fields, **tensors})
