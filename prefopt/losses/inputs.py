"""What of a scored batch each loss eats: the views of completions as pairs, thumbs or best ones.

A batch holds N completions. Four index tensors, made by the collator, say how they may be seen:

- ``chosen_index``, ``rejected_index`` (P,): every pair in which the first is better than the
  second;
- ``labelled_index`` (U,) and ``desirable`` (U,): every completion with a thumb;
- ``preferred_index`` (S,): the best completion of each example, or each desirable one.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from prefopt.losses.objective import Objective, Term
from prefopt.losses.registry import Loss, LossOutput


def loss_inputs(
    loss: Loss,
    batch: Mapping[str, Any],
    logps: Tensor,
    lengths: Tensor,
    ref_logps: Tensor | None = None,
    kl: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return the inputs a loss asks for, picked from the completions of a batch.

    Args:
        loss: Whose inputs.
        batch: Holds the index tensors named above.
        logps: Policy log-prob of each completion; (N,), nats.
        lengths: Scored tokens of each completion; (N,).
        ref_logps: Reference log-prob of each completion; (N,), nats; None if no loss needs it.
        kl: The KL estimate of unpaired losses; scalar, nats.

    Returns:
        Tensors by the names of the loss's parameters.
    """
    values: dict[str, Tensor] = {}
    if loss.data_kind == "unpaired":
        index = batch["labelled_index"]
        values |= _picked("", index, logps, lengths, ref_logps)
        values["desirable"] = batch["desirable"]
        if kl is not None:
            values["kl"] = kl
    elif loss.data_kind == "preferred":
        values |= _picked("chosen_", batch["preferred_index"], logps, lengths, ref_logps)
    else:
        values |= _picked("chosen_", batch["chosen_index"], logps, lengths, ref_logps)
        values |= _picked("rejected_", batch["rejected_index"], logps, lengths, ref_logps)
    return {name: values[name] for name in loss.inputs if name in values}


def _picked(
    prefix: str, index: Tensor, logps: Tensor, lengths: Tensor, ref_logps: Tensor | None
) -> dict[str, Tensor]:
    picked = {
        f"{prefix}logps": logps.index_select(0, index),
        f"{prefix}lengths": lengths.index_select(0, index),
    }
    if ref_logps is not None:
        picked[f"ref_{prefix}logps"] = ref_logps.index_select(0, index)
    return picked


def term_counts(term: Term, batch: Mapping[str, Any], lengths: Tensor) -> Tensor:
    """Return what a term's mean is taken over in this batch: its units, known before any forward.

    Args:
        term: A term of the objective.
        batch: Holds the index tensors.
        lengths: Scored tokens of each completion; (N,).

    Returns:
        Scalar: pairs, thumbs or preferred completions, or tokens, as the loss counts.
    """
    nothing = lengths.new_zeros(
        lengths.shape
    ).float()  # log-probs are not known yet and not looked at
    inputs = loss_inputs(term.loss, batch, nothing, lengths, nothing)
    return term.loss.unit_counts(inputs, term.hyperparameters).sum()


def objective_outputs(
    objective: Objective,
    batch: Mapping[str, Any],
    logps: Tensor,
    lengths: Tensor,
    ref_logps: Tensor | None,
    kl: Tensor | None,
) -> list[LossOutput]:
    """Return what each term of the objective makes of a scored batch; see ``loss_inputs``."""
    return [
        term.loss(
            **loss_inputs(term.loss, batch, logps, lengths, ref_logps, kl), **term.hyperparameters
        )
        for term in objective.terms
    ]
