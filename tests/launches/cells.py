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
        model: What differs from the tiny model's configuration.
        other: Whether the reference is another model; then ``first_loss`` is not known.
        begun: Whether an adapter, where one is trained, is not fresh.
        environment: Variables while it is made and trained.
        tolerance: How far weights may be from those of one process.
        loss_tolerance: How far losses may be; with rounded log-probs, evaluations are not compared.
    """

    loss: str = "dpo"
    first_loss: float = LN_2
    kind: str = "paired"
    rows: int = STEP * STEPS
    accumulated: int = 1
    resumed: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    other: bool = False
    begun: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    tolerance: float = 1e-5
    loss_tolerance: float = 1e-5


LIVE = {"reference": "live"}
ROUNDED = {"tolerance": 2e-4, "loss_tolerance": 3e-2}

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

# What beside may go wrong where weights are spread over processes.
SPREAD = {
    "tied": Cell(model={"tie_word_embeddings": True}),
    "padded": Cell("kto", 0.5, "unpaired", options={"layout": "padded"} | LIVE),
    "gradient checkpointing": Cell(options={"gradient_checkpointing": True}),
    "other reference": Cell(other=True),
    "other reference live": Cell(other=True, options=LIVE),
    "begun adapter": Cell(begun=True),
    "begun adapter live": Cell(begun=True, options=LIVE),
    # Log-probs of 30 nats are rounded to 0.1 and depend on the company of their texts; the first
    # losses are exact all the same.
    "bfloat16": Cell(options={"bf16": True}, **ROUNDED),
    "bfloat16 live": Cell(options={"bf16": True} | LIVE, **ROUNDED),
    "layers checkpointed by FSDP": Cell(
        options=LIVE, environment={"FSDP_ACTIVATION_CHECKPOINTING": "true"}
    ),
    "checkpoint in parts": Cell(
        "bco",
        LN_2,
        "unpaired",
        resumed=True,
        environment={"FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"},
    ),
}
ALL_CELLS = CELLS | SPREAD
