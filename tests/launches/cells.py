"""The columns of the launch matrix: how a tiny model is trained, whatever launches it."""

import math
from dataclasses import dataclass, field
from typing import Any

LN_2 = math.log(2)

# Examples of an optimiser step over all processes; steps.
STEP = 4
STEPS = 10


@dataclass(frozen=True)
class Cell:
    """A run of ``STEPS`` steps of SGD.

    Attributes:
        loss: Names of losses.
        first_loss: That of the first step, before which policy and reference are one; nats.
        kind: Of the rows.
        rows: How many there are.
        accumulated: Micro-batches of a step.
        resumed: Whether it is interrupted after half its steps, and goes on from the checkpoint.
        options: Further training arguments.
    """

    loss: str = "dpo"
    first_loss: float = LN_2
    kind: str = "paired"
    rows: int = STEP * STEPS
    accumulated: int = 1
    resumed: bool = False
    options: dict[str, Any] = field(default_factory=dict)


LIVE = {"reference": "live"}

CELLS = {
    "pairwise": Cell(),
    "unpaired": Cell("kto", 0.5, "unpaired"),
    # At margin 0 each of the 3! rankings is as probable.
    "listwise": Cell("plackett_luce", math.log(6), "ranked"),
    "batch-dependent": Cell("aot"),
    "running means": Cell("bco", LN_2, "unpaired"),
    "live": Cell(options=LIVE),
    "live unpaired": Cell("kto", 0.5, "unpaired", options=LIVE),
    "accumulated": Cell(accumulated=2),
    "accumulated unpaired": Cell("kto", 0.5, "unpaired", accumulated=2, options=LIVE),
    "accumulated batch-dependent": Cell("aot", accumulated=2),
    "resumed": Cell(resumed=True),
    "resumed live": Cell(resumed=True, options=LIVE),
}
