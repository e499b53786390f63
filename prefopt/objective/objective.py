"""What one run minimises: a loss by name, or a weighted sum of losses."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

from prefopt.losses.files import FILE_LOSS, is_file_loss, loss_of_file
from prefopt.losses.registry import Loss, did_you_mean, get_loss
from prefopt.losses.vocabulary import VOCABULARY, specs_of
from prefopt.objective.options import LossOptions, fit_options, scheduled_beta

# Inputs that are means over all of training.
RUNNING_MEANS = frozenset(spec.name for spec in VOCABULARY.values() if spec.side == "training")

_TERM = re.compile(
    r"\s*(?:(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*\*\s*)?"
    rf"(?P<name>{FILE_LOSS}|[A-Za-z_][\w-]*)\s*(?P<end>\+|\Z)"
)


@dataclass(frozen=True)
class Term:
    """One loss of a sum.

    Attributes:
        loss: The loss.
        weight: What its mean is multiplied by; at least 0.
        hyperparameters: Those set by the user; the others are at the loss's defaults.
        rows: Kind of the rows that it looks at; None for all that it can learn from.
        options: Options of every loss, those that this one can take.
    """

    loss: Loss
    weight: float = 1.0
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    rows: str | None = None
    options: LossOptions = field(default_factory=LossOptions)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tensors that the loss and its options take."""
        return (*self.loss.inputs, *self.options.extra_inputs(self.loss))

    @property
    def quantities(self) -> frozenset[str]:
        """What those tensors are: ``logps``, ``lengths``, ... as in the vocabulary."""
        return frozenset(spec.quantity for spec in specs_of(self.inputs))

    @property
    def beta(self) -> float | None:
        """Its beta; None for a loss that has none."""
        return self.hyperparameters.get("beta", self.loss.hyperparameters.get("beta"))

    def at(self, progress: float) -> "Term":
        """Return the term, its beta as scheduled, after a share of the optimiser steps (0 to 1)."""
        if self.options.beta_final is None or self.beta is None:
            return self
        beta = scheduled_beta(self.options, self.beta, progress)
        return replace(self, hyperparameters={**self.hyperparameters, "beta": beta})


@dataclass(frozen=True)
class Objective:
    """A weighted sum of losses, each a mean over its own units.

    Attributes:
        terms: Its losses, in the order given.
    """

    terms: tuple[Term, ...]

    @property
    def name(self) -> str:
        """The sum as an expression that ``parse_objective`` reads, such as ``dpo + 0.2*sft``.

        With losses by kind of data, an expression for each: ``paired: dpo, unpaired: kto``.
        """
        sums: dict[str | None, list[str]] = {}
        for term in self.terms:
            name = term.loss.name if term.weight == 1 else f"{term.weight!r}*{term.loss.name}"
            sums.setdefault(term.rows, []).append(name)
        return ", ".join(
            " + ".join(names) if rows is None else f"{rows}: {' + '.join(names)}"
            for rows, names in sums.items()
        )

    @property
    def inputs(self) -> frozenset[str]:
        """Names of all tensors that its losses take."""
        return frozenset(name for term in self.terms for name in term.inputs)

    @property
    def quantities(self) -> frozenset[str]:
        """What those tensors are: ``logps``, ``lengths``, ... as in the vocabulary."""
        return frozenset(spec.quantity for spec in specs_of(self.inputs))

    @property
    def needs_reference(self) -> bool:
        """Whether a term needs the reference model."""
        return any(term.loss.needs_reference for term in self.terms)

    @property
    def needs_kl(self) -> bool:
        """Whether a term needs the log-ratio of mismatched completions."""
        return bool(self.quantities & {"kl", "mean_kl"})

    @property
    def needs_running_means(self) -> bool:
        """Whether a term takes a mean over all of training."""
        return bool(self.inputs & RUNNING_MEANS)

    @property
    def needs_step(self) -> bool:
        """Whether losses depend on all examples of an optimiser step, beyond the KL estimate."""
        return self.needs_running_means or any(term.loss.batch_dependent for term in self.terms)

    @property
    def needs_tokens(self) -> bool:
        """Whether a term takes the log-probs of a part of a completion."""
        return "head_logps" in self.quantities

    @property
    def needs_divergences(self) -> bool:
        """Whether a term compares what policy and reference predict over the vocabulary."""
        return "divergences" in self.quantities

    @property
    def needs_collisions(self) -> bool:
        """Whether a term weighs pairs by how usual they are for the policy."""
        return any(term.options.use_weighting for term in self.terms)

    @property
    def by_kind(self) -> bool:
        """Whether its losses look at the rows of one kind each."""
        return any(term.rows is not None for term in self.terms)

    @property
    def kinds_by_rows(self) -> dict[str, frozenset[str]]:
        """The data kinds of the losses of each kind of rows; empty unless ``by_kind``."""
        return {
            rows: frozenset(term.loss.data_kind for term in self.terms if term.rows == rows)
            for rows in KINDS
            if any(term.rows == rows for term in self.terms)
        }

    @property
    def data_kinds(self) -> frozenset[str]:
        """The data kinds of its losses; ``preferred`` goes with every other."""
        return frozenset(term.loss.data_kind for term in self.terms)


LossType = str | Sequence[str] | Mapping[str, str | Sequence[str]]

KINDS = ("paired", "unpaired", "ranked")


def parse_objective(
    loss_type: LossType,
    loss_weights: Sequence[float] | None = None,
    options: Mapping[str, Any] | None = None,
    loss_options: LossOptions | None = None,
) -> Objective:
    """Return the objective that names, weights and options describe.

    Args:
        loss_type: A name (``"dpo"``, or ``"own.py:mine"`` of a function in a file), an expression
            (``"dpo + 0.2*sft"``), a list of them, or a mapping from kinds of rows (paired,
            unpaired, ranked) to any of these: each kind then has losses of its own.
        loss_weights: One weight per loss; only where the expression has none.
        options: Hyper-parameters by name, given to every loss that has them; a mapping under the
            name of a loss is for that loss alone and comes first. ``lambda`` is ``lambda_``.
        loss_options: Options of every loss; each goes to all losses that can take it.

    Raises:
        ValueError: If a loss is unknown or listed twice, the expression or the weights cannot be
            read, an option goes with no loss of the sum, or a loss refuses its value.

    Examples:
        >>> objective = parse_objective("sigmoid + 0.2*sft", options={"beta": 0.3})
        >>> objective.name, objective.needs_reference, sorted(objective.data_kinds)
        ('dpo + 0.2*sft', True, ['paired', 'preferred'])
        >>> [term.hyperparameters for term in objective.terms]
        [{'beta': 0.3}, {}]
        >>> parse_objective(["dpo", "sft"], loss_weights=[1.0, 0.2]).name
        'dpo + 0.2*sft'
        >>> parse_objective({"paired": "dpo", "unpaired": "kto"}).name
        'paired: dpo, unpaired: kto'
    """
    rows_and_parts = _read_parts(loss_type)
    if not rows_and_parts:
        raise ValueError("loss_type is empty: name at least one loss")
    rows, parts = zip(*rows_and_parts, strict=True)
    losses = [loss_of_file(name) if is_file_loss(name) else get_loss(name) for _, name in parts]
    listed = [(its, loss.name) for its, loss in zip(rows, losses, strict=True)]
    repeated = sorted({name for its, name in listed if listed.count((its, name)) > 1})
    if repeated:
        raise ValueError(f"loss {repeated[0]!r} is listed twice in {loss_type!r}")
    weights = _read_weights(parts, loss_weights)
    settings = _assign_options(losses, options or {})
    for loss, values in zip(losses, settings, strict=True):
        loss.check_hyperparameters(values)
    fitted = fit_options(loss_options or LossOptions(), losses, settings)
    return Objective(tuple(map(Term, losses, weights, settings, rows, fitted)))


def _read_parts(loss_type: LossType) -> list[tuple[str | None, tuple[float | None, str]]]:
    """Return the kind of rows (None for all), weight and name of each loss."""
    if not isinstance(loss_type, Mapping):
        expressions = [loss_type] if isinstance(loss_type, str) else loss_type
        if not isinstance(expressions, Sequence) or not all(
            isinstance(one, str) for one in expressions
        ):
            raise ValueError(
                "loss_type must be a name, a sum like 'dpo + 0.2*sft', a list of names, or one of "
                f"these for each kind of rows, got {loss_type!r}"
            )
        return [(None, part) for one in expressions for part in _parse_expression(one)]
    unknown = [kind for kind in loss_type if kind not in KINDS]
    if unknown:
        raise ValueError(
            f"loss_type has losses for {unknown[0]!r}; kinds of rows are {', '.join(KINDS)}"
        )
    return [(kind, part) for kind, one in loss_type.items() for _, part in _read_parts(one)]


def _parse_expression(expression: str) -> list[tuple[float | None, str]]:
    """Return weight (None where not written) and name of each term."""
    parts: list[tuple[float | None, str]] = []
    position, expects_term = 0, True
    while expects_term:
        found = _TERM.match(expression, position)
        if found is None:
            raise ValueError(
                f"cannot read the loss {expression!r} at {expression[position:]!r}; "
                "write a name or a sum like 'dpo + 0.2*sft'"
            )
        weight = found["weight"]
        parts.append((None if weight is None else float(weight), found["name"]))
        position, expects_term = found.end(), found["end"] == "+"
    return parts


def _read_weights(
    parts: Sequence[tuple[float | None, str]], loss_weights: Sequence[float] | None
) -> list[float]:
    written = [weight for weight, _ in parts]
    if loss_weights is not None and (
        not isinstance(loss_weights, Sequence)
        or any(isinstance(one, bool) or not isinstance(one, Real) for one in loss_weights)
    ):
        raise ValueError(f"loss_weights must be a list of numbers, got {loss_weights!r}")
    if loss_weights is None:
        weights = [1.0 if weight is None else weight for weight in written]
    elif any(weight is not None for weight in written):
        raise ValueError("weights are given twice: in loss_type and in loss_weights; choose one")
    elif len(loss_weights) != len(parts):
        raise ValueError(
            f"loss_weights has {len(loss_weights)} values for {len(parts)} losses "
            f"({', '.join(name for _, name in parts)})"
        )
    else:
        weights = [float(weight) for weight in loss_weights]
    for weight, (_, name) in zip(weights, parts, strict=True):
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"the weight of {name!r} must be finite and at least 0, got {weight}")
    return weights


def _assign_options(losses: Sequence[Loss], options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the hyper-parameters of each loss; raise for an option that none takes."""
    common = {_python_name(k): v for k, v in options.items() if not isinstance(v, Mapping)}
    own: dict[str, dict[str, Any]] = {}
    for key, values in options.items():
        if isinstance(values, Mapping):
            loss = next((loss for loss in losses if loss.is_called(key)), None)
            if loss is None:
                raise ValueError(
                    f"options are given for {key!r}, which is not among the losses "
                    f"{', '.join(loss.name for loss in losses)}"
                )
            named = {_python_name(name): value for name, value in values.items()}
            own[loss.name] = {**own.get(loss.name, {}), **named}
    for name in common:
        if not any(name in loss.hyperparameters for loss in losses):
            takes = "; ".join(
                f"{loss.name}: {', '.join(loss.hyperparameters) or 'none'}" for loss in losses
            )
            known = {name for loss in losses for name in loss.hyperparameters}
            raise ValueError(
                f"no loss here takes the option {name!r}; hyper-parameters: {takes}"
                f"{did_you_mean(name, known)}"
            )
    return [
        {k: v for k, v in common.items() if k in loss.hyperparameters} | own.get(loss.name, {})
        for loss in losses
    ]


def _python_name(name: str) -> str:
    return "lambda_" if name == "lambda" else name
