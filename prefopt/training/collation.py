"""How the rows of a run are laid out in batches."""

from typing import Literal

from prefopt.config import PreferenceConfig
from prefopt.data.collate import PreferenceCollator
from prefopt.engine import Scorer
from prefopt.objective import Objective
from prefopt.training.launch import Launch


def collator_of(
    objective: Objective,
    scorer: Scorer,
    args: PreferenceConfig,
    launch: Launch,
    pad_token_id: int | None = None,
) -> PreferenceCollator:
    """Return the collator of a run.

    Args:
        objective: The losses.
        scorer: Of the policy; its layout is that of the batches.
        args: Those of the run.
        launch: How it is launched.
        pad_token_id: None where the tokenizer has none; what it is never shows.
    """
    return PreferenceCollator(
        layout=scorer.layout,
        pad_token_id=pad_token_id or 0,
        mismatched=_how_mismatched(objective, scorer, args, launch),
        max_tokens=args.max_tokens_per_batch,
        by_kind=objective.by_kind,
    )


def _how_mismatched(
    objective: Objective, scorer: Scorer, args: PreferenceConfig, launch: Launch
) -> Literal["separate", "continued"] | None:
    """Return how KTO's mismatched completions are scored: where they can, with the others.

    The KL estimate is that of the whole optimiser step, so with several micro-batches it must be
    known before the first of them is scored. Sharded models take as many passes in each process,
    and some may have nothing to continue.
    """
    if not objective.needs_kl:
        return None
    several = args.gradient_accumulation_steps > 1 or launch.is_sharded
    several |= args.max_tokens_per_batch is not None and launch.processes.count > 1
    # Embeddings of what is trained on may be noisy, and those of the estimate are not.
    alone = several or scorer.layout == "padded" or args.neftune_noise_alpha
    return "separate" if alone else "continued"
