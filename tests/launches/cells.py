"""The columns of the launch matrix: how a tiny model is trained, whatever launches it."""

import math
from dataclasses import dataclass, field
from typing import Any

LN_2 = math.log(2)

# Examples of an optimiser step over all processes; steps.
STEP = 4
STEPS = 6


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
        dtype: Of the weights that the model comes with.
        four_bits: Whether it is quantised to 4 bits.
        other: Whether the reference is another model; then ``first_loss`` is not known.
        begun: Whether an adapter, where one is trained, is not fresh.
        environment: Variables while it is made and trained.
        rounded: Whether log-probs are rounded, so that only the first loss is exact.
    """

    loss: str = "dpo"
    first_loss: float = LN_2
    kind: str = "paired"
    rows: int = STEP * STEPS
    accumulated: int = 1
    resumed: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    four_bits: bool = False
    other: bool = False
    begun: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    rounded: bool = False


LIVE = {"reference": "live"}
MOMENTUM = {"optim_args": "momentum=0.5"}

CELLS = {
    "pairwise": Cell(),
    "unpaired": Cell("kto", 0.5, "unpaired"),
    # At margin 0 each of the 3! rankings is as probable.
    "listwise": Cell("plackett_luce", math.log(6), "ranked"),
    "batch-dependent": Cell("aot_unpaired"),
    "running means": Cell("bco", LN_2, "unpaired"),
    "live": Cell(options=LIVE),
    "live unpaired": Cell("kto", 0.5, "unpaired", options=LIVE),
    "accumulated": Cell(accumulated=2),
    "accumulated unpaired": Cell("kto", 0.5, "unpaired", accumulated=2, options=LIVE),
    "accumulated batch-dependent": Cell("aot_unpaired", accumulated=2),
    # The last step of an epoch has one row, for one of the processes.
    "uneven": Cell(rows=13),
    "uneven unpaired": Cell("kto", 0.5, "unpaired", rows=13, accumulated=2),
    "uneven batch-dependent": Cell("aot_unpaired", rows=13, options=LIVE),
    "resumed": Cell(resumed=True, options=MOMENTUM),
    "resumed live": Cell(resumed=True, options=MOMENTUM | LIVE),
}

# What beside may go wrong where weights are spread over processes.
SPREAD = {
    "tied": Cell(model={"tie_word_embeddings": True}),
    "padded": Cell("kto", 0.5, "unpaired", options={"layout": "padded"} | LIVE),
    "batches cut by tokens": Cell(rows=13, options={"max_tokens_per_batch": 24}),
    "gradient checkpointing": Cell(options={"gradient_checkpointing": True}),
    "other reference": Cell(other=True),
    "other reference live": Cell(other=True, options=LIVE),
    "begun adapter": Cell(begun=True),
    "begun adapter live": Cell(begun=True, options=LIVE),
    # Log-probs of 30 nats are rounded to 0.1 and depend on the company of their texts; the first
    # losses are exact all the same.
    "bfloat16": Cell(options={"bf16": True}, rounded=True),
    "bfloat16 live": Cell(options={"bf16": True} | LIVE, rounded=True),
    "adapter on bfloat16": Cell(dtype="bfloat16", options={"bf16": True}, rounded=True),
    # A block of 4-bit weights is 64 wide.
    "adapter on four bits": Cell(
        model={"hidden_size": 64, "intermediate_size": 128}, four_bits=True
    ),
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

# What FSDP is refused for, each with the words that say so.
REFUSED = {
    "version 1": (
        {"FSDP_VERSION": "1", "FSDP_SYNC_MODULE_STATES": "false"},
        "set fsdp_version: 2",
    ),
    "empty weights": ({"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, "set it to false"),
    "weights on the CPU": ({"FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params keeps weights"),
    "not applied": ({"LEAVE_CPUS": "1"}, "would hold and train a whole copy; start it on GPUs"),
}
ALL_CELLS = (
    CELLS
    | SPREAD
    | {name: Cell(environment=environment) for name, (environment, _) in REFUSED.items()}
    | {
        "follows the policy": Cell(options={"sync_ref_model": True, "ref_model_sync_steps": 1}),
        "all predictions": Cell("tdpo"),
        "cannot go on": Cell(resumed=True),
    }
)
REFUSALS = {name: words for name, (_, words) in REFUSED.items()} | {
    "follows the policy": "sync_ref_model needs all weights in each process",
    "all predictions": "'tdpo' needs the reference's output layer whole",
    "cannot go on": "torch cannot load the empty state of SGD",
}
