"""What a run minimises, between log-probs and losses.

A weighted sum of losses and their options; what each loss takes from a scored batch; losses and
means that need a whole optimiser step; metrics.
"""

from prefopt.objective.objective import Objective, Term, parse_objective
from prefopt.objective.options import LossOptions

__all__ = ["LossOptions", "Objective", "Term", "parse_objective"]
