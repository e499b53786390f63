"""The studies of ``toy_limits.py``: which recipes each compares, and what it asks."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from toy_limits_worker import Recipe


@dataclass(frozen=True)
class Study:
    """Recipes that belong together.

    Attributes:
        name: What the command line calls it.
        question: What it asks, a sentence.
        recipes: By the label of the row.
    """

    name: str
    question: str
    recipes: Mapping[str, Recipe]


def with_options(recipe: Recipe, **options: Any) -> Recipe:
    """Return a recipe with some fields of its configuration changed."""
    return replace(recipe, options={**recipe.options, **options})


# The ladder: each takes away one thing more.
TODAY = Recipe("dpo", {"beta": 0.3}, pairs=6400)  # as in ``prefopt demo``
BETA = with_options(TODAY, beta=1.0)
CLEAN = replace(BETA, loss="soft_dpo", labels="probability")
FROM_START = replace(CLEAN, source="start")
MORE = replace(FROM_START, pairs=25_600)
FASTER = with_options(MORE, learning_rate=3e-3)
TOP = replace(FASTER, source="policy", rounds=10)
LIMIT = Recipe("sft", {"learning_rate": 3e-3}, pairs=51_200, source="optimum", shape="texts")

LADDER = Study(
    "ladder",
    "What keeps DPO from the optimum? Each row takes away one thing more.",
    {
        "as in prefopt demo": TODAY,
        "+ beta 1": BETA,
        "+ no noise in labels": CLEAN,
        "+ texts of the start": FROM_START,
        "+ 4 times the pairs": MORE,
        "+ 4 times the rate": FASTER,
        "+ texts of the policy": TOP,
        "limit: SFT on the optimum": LIMIT,
    },
)
BACK = Study(
    "back",
    "Which of these matter? The last step of the ladder, with one thing put back.",
    {
        "all taken away": TOP,
        "beta 0.3 again": with_options(TOP, beta=0.3),
        "noise in labels again": replace(TOP, loss="dpo", labels="sampled"),
        "6,400 pairs again": replace(TOP, pairs=6400),
        "rate 8e-4 again": with_options(TOP, learning_rate=8e-4),
        "texts of the start again": FASTER,
        "one text of start and optimum each": replace(FASTER, source="optimum"),
        "names are not held out": replace(TOP, names="all"),
        "half the width": replace(TOP, hidden_size=32),
        "twice the width": replace(TOP, hidden_size=128),
    },
)
ALONE = Study(
    "alone",
    "Is one of them enough? The demo's recipe with one thing taken away.",
    {
        "as in prefopt demo": TODAY,
        "beta 1": BETA,
        "no noise in labels": replace(TODAY, loss="soft_dpo", labels="probability"),
        "texts of the start": replace(TODAY, source="start"),
        "4 times the pairs": replace(TODAY, pairs=25_600),
        "4 times the rate": with_options(TODAY, learning_rate=3e-3),
        "texts of the policy": replace(TODAY, source="policy", rounds=10),
    },
)

# As in ``prefopt demo``: 6,400 pairs of the grammar, labels sampled, 100 steps.
LOSSES: dict[str, dict[str, Any]] = {
    "dpo": {"beta": 0.3},
    "ipo": {"beta": 0.05, "loss_kwargs": {"normalize": "sum"}},
    "kto": {"beta": 0.3},
    "orpo": {"learning_rate": 1e-3, "loss_kwargs": {"lambda_": 5.0}},
    "slic": {"loss_kwargs": {"delta": 4.0, "lambda_": 1.0}},
    "hinge": {"beta": 0.5},
    "discopop": {"learning_rate": 1.2e-3, "beta": 0.3},
}
OF_POLICY = ", texts of the policy"


def loss_recipes() -> dict[str, Recipe]:
    """Return every loss on pairs of the grammar, and on pairs of the policy in ten rounds."""
    recipes = {loss: replace(TODAY, loss=loss, options=options) for loss, options in LOSSES.items()}
    return recipes | {
        loss + OF_POLICY: replace(recipe, source="policy", rounds=10)
        for loss, recipe in recipes.items()
    }


# Smaller questions, on 6,400 pairs of the start, in 100 steps.
PAIRS = Recipe("dpo", {"beta": 1.0, "learning_rate": 3e-3}, pairs=6400, source="start")
IPO = {"beta": 0.15, "loss_kwargs": {"normalize": "sum"}}
BASES = {
    "dpo": PAIRS,
    "ipo": replace(PAIRS, loss="ipo", options={**PAIRS.options, **IPO}),
    "kto": replace(PAIRS, loss="kto"),
}
SMALL_EPOCHS = (1, 4, 16, 64)
LABELS: dict[str, dict[str, Any]] = {
    "deterministic": {"labels": "better"},
    "Bradley-Terry": {},
    "+ 10% flipped": {"flips": 0.1},
    "+ 30% flipped": {"flips": 0.3},
}


def noise_recipes() -> dict[str, Recipe]:
    """Return every loss on every kind of label; robust DPO is told the share of flips."""
    recipes = {}
    for kind, changes in LABELS.items():
        bases = dict(BASES)
        if "flips" in changes:
            robust = with_options(PAIRS, label_smoothing=changes["flips"])
            bases["robust"] = replace(robust, loss="robust")
        recipes |= {f"{loss}, {kind}": replace(base, **changes) for loss, base in bases.items()}
    return recipes


def beta_recipes() -> dict[str, Recipe]:
    """Return each loss with a quarter to four times its beta."""
    return {
        f"{loss}, beta {factor * base.options['beta']:g}": with_options(
            base, beta=factor * base.options["beta"]
        )
        for loss, base in BASES.items()
        for factor in (0.25, 0.5, 1, 2, 4)
    }


def small_data_recipes() -> dict[str, Recipe]:
    """Return full fine-tuning and LoRA on 160 pairs, seen ever more often."""
    few = Recipe(
        "dpo",
        {"beta": 0.3, "per_device_train_batch_size": 16},
        pairs=160,
        source="start",
    )
    kinds = {"full": few, "LoRA": replace(few, lora_rank=4)}
    return {
        f"{kind}, {epochs} epochs": with_options(recipe, num_train_epochs=epochs)
        for kind, recipe in kinds.items()
        for epochs in SMALL_EPOCHS
    }


ALL = (
    LADDER,
    BACK,
    ALONE,
    Study("losses", "Is that so with other losses?", loss_recipes()),
    Study("noise", "What do noisy labels do to each loss?", noise_recipes()),
    Study("beta", "Where does beta take each loss?", beta_recipes()),
    Study(
        "unpaired",
        "Does KTO do with one completion of each pair?",
        {
            "dpo, pairs": BASES["dpo"],
            "dpo, half the pairs": replace(BASES["dpo"], pairs=3200),
            "kto, pairs": BASES["kto"],
            "kto, half of each pair": replace(BASES["kto"], shape="halves"),
            "kto, half of twice the pairs": replace(BASES["kto"], shape="halves", pairs=12_800),
        },
    ),
    Study("small", "Who over-fits 160 pairs?", small_data_recipes()),
)
STUDIES = {study.name: study for study in ALL}
