"""What is compared: methods, each a loss with the options that it is trained with."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from prefopt.objective import Objective, parse_objective

__all__ = ["Method", "named", "read_methods"]

# Where options go that do not tell methods apart for a reader.
_NAME_KEYS = ("loss_type", "name")
_SHORT = {"learning_rate": "lr", "loss_kwargs": "", "num_train_epochs": "epochs"}


@dataclass(frozen=True)
class Method:
    """A method of a comparison.

    Attributes:
        name: Unique, and short enough for a legend: ``dpo beta=0.1``.
        options: Options of ``prefopt train`` that are its own, ``loss_type`` among them; of a
            baseline, those of its kind.
        kind: ``loss``, or what baseline it is: ``start`` is the model itself.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "loss"

    @property
    def loss(self) -> str:
        """What is minimised, as an expression; of a baseline, its kind."""
        if self.kind != "loss":
            return self.kind
        return _expression(self.options["loss_type"])

    @property
    def slug(self) -> str:
        """The name as part of a file's name."""
        return re.sub(r"[^A-Za-z0-9.]+", "_", self.name).strip("_")

    def objective(self, common: Mapping[str, Any] | None = None) -> Objective:
        """Return what it minimises, its hyper-parameters as they are set.

        Args:
            common: Options of all methods.

        Raises:
            ValueError: If the loss is unknown, or refuses an option.
        """
        from prefopt.compare.options import check_options

        return check_options({**(common or {}), **self.options}).objective


def read_methods(
    losses: str | Sequence[str] = (),
    betas: Sequence[float] = (),
    methods: Sequence[str | Mapping[str, Any]] = (),
) -> tuple[list[Method], list[str]]:
    """Return the methods that are asked for, and what there is to say of them.

    Args:
        losses: Losses and sums, with commas between them or as a list. Each that has a ``beta`` is
            run with all ``betas``.
        betas: Values of ``beta``; none for each loss's own.
        methods: Further methods: a loss, or a mapping with ``loss_type``, any options of
            ``prefopt train``, and a ``name`` if it should have another.

    Raises:
        ValueError: If there are none, a loss is unknown, or two methods are the same.

    Examples:
        >>> methods, notes = read_methods("dpo, orpo", betas=[0.1, 0.3])
        >>> [method.name for method in methods]
        ['dpo beta=0.1', 'dpo beta=0.3', 'orpo']
        >>> notes
        ['orpo has no beta: it is run once, with its own settings']
    """
    names = losses.split(",") if isinstance(losses, str) else losses
    items = [Method("", {"loss_type": name.strip()}) for name in names if name.strip()]
    notes = []
    found: list[Method] = []
    for item in items:
        if not betas or _has_beta(item):
            found += [replace(item, options={**item.options, "beta": b}) for b in betas] or [item]
        else:
            notes.append(f"{item.loss} has no beta: it is run once, with its own settings")
            found.append(item)
    found += map(_read_one, methods)
    if not found:
        raise ValueError("no methods: name losses, such as 'dpo, ipo, kto', or list methods")
    return named(found), notes


def _read_one(given: str | Mapping[str, Any]) -> Method:
    """Return the method that an item of ``methods`` describes; its name may be empty."""
    if isinstance(given, str):
        given = {"loss_type": given}
    if not isinstance(given, Mapping) or "loss_type" not in given:
        raise ValueError(
            "methods must list losses, or mappings such as {loss_type: dpo, beta: 0.1}; "
            f"got {given!r}"
        )
    options = {str(name).replace("-", "_"): value for name, value in given.items()}
    name = options.pop("name", "")
    method = Method(str(name), options)
    parse_objective(options["loss_type"], options.get("loss_weights"))  # raises if unknown
    return method


def _has_beta(method: Method) -> bool:
    return any(term.beta is not None for term in parse_objective(method.loss).terms)


def named(methods: Sequence[Method]) -> list[Method]:
    """Return the methods, each named by its loss and by what differs among those of that loss.

    Args:
        methods: Those that have a name keep it.

    Raises:
        ValueError: If two have the same name.
    """
    found = []
    for method in methods:
        same = [other for other in methods if not other.name and other.loss == method.loss]
        values = [_flat(other.options) for other in same]
        keys = {key for its in values for key in its if key not in _NAME_KEYS}
        differing = [
            key
            for key in sorted(keys, key=lambda key: (key != "beta", key))
            if len({str(its.get(key)) for its in values}) > 1
        ]
        mine = _flat(method.options)
        parts = [f"{_SHORT.get(key, key)}={_text(mine[key])}" for key in differing if key in mine]
        found.append(replace(method, name=method.name or " ".join([method.loss, *parts])))
    names = [method.name for method in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"two methods are called {twice!r}: leave one out, or give it a name")
    return found


def _flat(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with those of ``loss_kwargs`` among them."""
    own = options.get("loss_kwargs") or {}
    own = json.loads(own) if isinstance(own, str) else own
    return {key: value for key, value in options.items() if key != "loss_kwargs"} | dict(own)


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _expression(loss_type: Any) -> str:
    return parse_objective(loss_type).name
