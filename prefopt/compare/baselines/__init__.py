"""What stands beside the losses: the pipeline that DPO replaces, through libraries that have it.

SFT on the chosen answers, a Bradley-Terry reward model, RL by it or by the true reward, and the
best of N answers of the start.
"""

from prefopt.compare.baselines.kinds import KINDS, Kind, common_options
from prefopt.compare.baselines.methods import read_baselines

__all__ = ["KINDS", "Kind", "common_options", "read_baselines"]
