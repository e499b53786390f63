"""Losses: pure functions on log-probs, picked by name.

Importing this package registers the built-in losses; those of other packages are imported when a
loss is first looked up.
"""

from prefopt.losses import discopop, dpo, hinge, ipo, kto, orpo, sft, slic
from prefopt.losses.objective import Objective, Term, parse_objective
from prefopt.losses.registry import Loss, LossOutput, get_loss, list_losses, register_loss

__all__ = [
    "Loss",
    "LossOutput",
    "Objective",
    "Term",
    "get_loss",
    "list_losses",
    "parse_objective",
    "register_loss",
]

# Each registers itself when imported.
_BUILT_IN = (discopop, dpo, hinge, ipo, kto, orpo, sft, slic)
