"""The registry of losses: a loss is a function, and its signature is the contract.

Positional parameters are tensors named from the vocabulary and say what the loss takes;
keyword-only parameters are its hyper-parameters with the paper's defaults. Everything a trainer or
a page of documentation has to know about a loss is read from that function and from the docstring
of its module, so that nothing is written down twice.

Third parties add a loss with the decorator, or with an entry point of the group ``prefopt.losses``
that names a function or a module holding decorated functions.
"""

import difflib
import inspect
import math
import re
import sys
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from prefopt.losses.common import warn_outside
from prefopt.losses.vocabulary import VOCABULARY, specs_of

ENTRY_POINT_GROUP = "prefopt.losses"


class LossOutput(NamedTuple):
    """What a loss returns, per example and unreduced.

    Attributes:
        losses: Loss of each example, with gradient; (B,).
        chosen_rewards: Implicit reward of the chosen completion, detached; (B,).
        rejected_rewards: Implicit reward of the rejected completion, detached; (B,).
        rewards: Implicit reward of each completion of an unpaired loss, (B,), or of a ranked one,
            (B, K); detached.
    """

    losses: Tensor
    chosen_rewards: Tensor | None = None
    rejected_rewards: Tensor | None = None
    rewards: Tensor | None = None

    def add_to_chosen(self, offsets: Tensor) -> "LossOutput":
        """Return the same with rewards of the chosen, if there are any, higher by offsets, (B,)."""
        if self.chosen_rewards is None:
            return self
        return self._replace(chosen_rewards=self.chosen_rewards + offsets)


LossFunction = Callable[..., LossOutput]
CountsFunction = Callable[..., Tensor]
F = TypeVar("F", bound=LossFunction)


@dataclass(frozen=True)
class Loss:
    """One registered loss; what follows ``refuses`` is read from ``function``.

    Attributes:
        name: The name it is picked by.
        function: The loss on plain tensors.
        family: Name of the losses it is shown with, such as ``margin``; see ``FAMILIES`` of
            ``prefopt.cli.guide``. A new name makes a new family.
        aliases: Other names of the same function.
        batch_dependent: Whether the loss of an example depends on the others of its batch, beyond
            scalars: it is then computed over all micro-batches and processes of a step at once.
        counts: What each loss weighs in the denominator of the mean, as a function of some of the
            loss's inputs and (keyword-only) hyper-parameters; None for one each.
        published: Smallest and largest value of a hyper-parameter in the runs of its paper or of
            the authors' code, by name; none of what could not be looked up.
        refuses: Options of every loss (``LossOptions``) that do not go with this one, by name, each
            with the reason, where inputs and values do not tell.
        inputs: Names of the tensors it takes, from ``VOCABULARY``.
        hyperparameters: Names of its options with their defaults.
        data_kind: ``paired``, ``unpaired``, ``ranked``, or ``preferred`` for a loss that looks at
            preferred completions only and so works on any data.
        needs_reference: Whether an input comes from the reference model.
        summary: First line of the docstring.
        source: Paper and equation: the text after ``Source:`` in the docstring.
        departures: How it differs from the source: the text after ``Departures from it:``.
        use_when: When to use it: the text after ``Use it when:``.
        not_when: When not: the text after ``Not when:``.
        differs_from: How other implementations differ: the text after each ``Differs from:``.

    Examples:
        >>> import torch
        >>> from prefopt.losses import get_loss
        >>> hinge = get_loss("hinge")
        >>> hinge.data_kind, hinge.needs_reference, hinge.hyperparameters
        ('paired', True, {'beta': 0.05})
        >>> zero = torch.zeros(2)
        >>> hinge(
        ...     chosen_logps=torch.tensor([-3.0, -8.0]),
        ...     rejected_logps=torch.tensor([-8.0, -3.0]),
        ...     ref_chosen_logps=zero,
        ...     ref_rejected_logps=zero,
        ...     beta=0.1,
        ... ).losses
        tensor([0.5000, 1.5000])
    """

    name: str
    function: LossFunction
    family: str = field(default="", kw_only=True)
    aliases: tuple[str, ...] = ()
    counts: CountsFunction | None = None
    batch_dependent: bool = False
    published: Mapping[str, tuple[float, float]] = field(default_factory=dict, compare=False)
    refuses: Mapping[str, str] = field(default_factory=dict, compare=False)
    inputs: tuple[str, ...] = field(init=False, compare=False)
    hyperparameters: dict[str, Any] = field(init=False, compare=False)
    data_kind: str = field(init=False, compare=False)
    needs_reference: bool = field(init=False, compare=False)
    summary: str = field(init=False, compare=False)
    source: str = field(init=False, compare=False)
    departures: str = field(init=False, compare=False)
    use_when: str = field(init=False, compare=False)
    not_when: str = field(init=False, compare=False)
    differs_from: tuple[str, ...] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        inputs, hyperparameters = _read_signature(self.function)
        for name, default in hyperparameters.items():
            if default is inspect.Parameter.empty:
                raise ValueError(f"loss {self.name!r}: hyper-parameter {name!r} has no default")
        derived = {
            "inputs": inputs,
            "hyperparameters": hyperparameters,
            "data_kind": _read_data_kind(self.name, inputs),
            "needs_reference": any(spec.needs_reference for spec in specs_of(inputs)),
            **_read_docstring(self.function),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)
        if self.counts is not None:
            names = [name for part in _read_signature(self.counts) for name in part]
            unknown = sorted({*names} - {*inputs, *hyperparameters})
            if unknown:
                raise ValueError(f"loss {self.name!r}: counts takes {unknown}, the loss does not")
        for name, (low, high) in self.published.items():
            if name not in hyperparameters or not low <= high:
                raise ValueError(
                    f"loss {self.name!r}: published[{name!r}] must be the smallest and the largest "
                    f"value of a hyper-parameter, got {(low, high)}"
                )

    @property
    def built_in(self) -> bool:
        """Whether it comes with prefopt, not from another package."""
        return self.function.__module__.startswith("prefopt.")

    @property
    def paper(self) -> str:
        """Authors, year and number of the first paper in ``source``; all of it if there is none."""
        found = re.search(r"[A-Z][^,;()]* \d{4}(?: \([^)]*\))?, arXiv:\d{4}\.\d{5}", self.source)
        return found[0] if found else self.source

    def is_called(self, name: str) -> bool:
        """Return whether it has this name or alias, in any case.

        Args:
            name: Of a loss, as a user wrote it.
        """
        return _folded(name) in map(_folded, (self.name, *self.aliases))

    def __call__(self, **values: Any) -> LossOutput:
        """Return the loss of each example, from tensors and hyper-parameters given by name.

        Half-precision tensors are computed with in float32.

        Args:
            **values: Every tensor of ``inputs``, and any of ``hyperparameters``.

        Raises:
            TypeError: If a name is unknown, an input is missing or no tensor.
            ValueError: If the shapes differ, or the loss refuses a hyper-parameter.
        """
        unknown = [name for name in values if name not in {*self.inputs, *self.hyperparameters}]
        if unknown:
            raise TypeError(
                f"loss {self.name!r} does not take {unknown[0]!r}; "
                f"inputs: {', '.join(self.inputs)}; "
                f"hyper-parameters: {', '.join(self.hyperparameters) or 'none'}"
            )
        missing = [name for name in self.inputs if values.get(name) is None]
        if missing:
            needed = "; ".join(f"{name} ({VOCABULARY[name].meaning})" for name in missing)
            raise TypeError(f"loss {self.name!r} needs {needed}")
        tensors = {name: _at_least_float32(name, values[name]) for name in self.inputs}
        shapes = {
            name: tuple(tensor.shape)
            for name, tensor in tensors.items()
            if not VOCABULARY[name].scalar
        }
        if len(set(shapes.values())) > 1:
            raise ValueError(f"loss {self.name!r}: the inputs differ in shape: {shapes}")
        options = {name: values[name] for name in self.hyperparameters if name in values}
        return self.function(**tensors, **options)

    def unit_counts(
        self, inputs: Mapping[str, Tensor], hyperparameters: Mapping[str, Any] | None = None
    ) -> Tensor:
        """Return what each loss weighs in the denominator of the mean; (B,).

        A mean over any set of examples is ``sum(losses) / sum(unit_counts)``.

        Args:
            inputs: At least the tensors of ``inputs``.
            hyperparameters: Those that are not at their default.
        """
        if self.counts is None:
            first = inputs[self.inputs[0]]
            return torch.ones(first.shape[0], dtype=torch.float32, device=first.device)
        names, options = _read_signature(self.counts)
        settings = {**self.hyperparameters, **(hyperparameters or {})}
        return self.counts(
            **{name: inputs[name] for name in names}, **{name: settings[name] for name in options}
        )

    def check_hyperparameters(self, hyperparameters: Mapping[str, Any]) -> None:
        """Raise if the loss would refuse these hyper-parameters: before any model is loaded.

        One outside the range that was published is logged, once per process. It is here that a
        choice is made: a loss that is only called, to draw or to probe it, warns of nothing.

        Args:
            hyperparameters: Those that are not at their default.

        Raises:
            ValueError: If a name is unknown, a value of the wrong type, or refused by the loss.
        """
        for name, value in hyperparameters.items():
            if name not in self.hyperparameters:
                raise ValueError(
                    f"loss {self.name!r} has no hyper-parameter {name!r}; "
                    f"it takes: {', '.join(self.hyperparameters) or 'none'}"
                    f"{did_you_mean(name, self.hyperparameters)}"
                )
            _check_type(f"loss {self.name!r}: {name}", value, self.hyperparameters[name])
        # The ranges stand in the loss itself: call it, on one made-up example.
        self(**{spec.name: spec.examples() for spec in specs_of(self.inputs)}, **hyperparameters)
        for name, (low, high) in self.published.items():
            if name in hyperparameters:
                value = hyperparameters[name]
                warn_outside(f"{self.name}: {name}", value, low, high, f"{self.paper},")


# What a docstring says of a loss: each label's text ends at the next label or an empty line.
_LABELS = re.compile(r"(?<!\S)(Source|Departures from it|Use it when|Not when|Differs from):(?!\S)")

# Names that TRL once had, and no alias since they were not quite the same.
_ONCE = {"kto_pair": "'kto' instead, which learns from pairs too, each completion with its label"}

_LOSSES: dict[str, Loss] = {}
_NAMES: dict[str, str] = {}
_entry_points_loaded = False


def register_loss(
    name: str,
    *,
    family: str = "",
    aliases: Sequence[str] = (),
    counts: CountsFunction | None = None,
    batch_dependent: bool = False,
    published: Mapping[str, tuple[float, float]] | None = None,
    refuses: Mapping[str, str] | None = None,
) -> Callable[[F], F]:
    """Return a decorator that registers a loss function and leaves it as it is.

    Registering the same function again (a notebook cell run twice) replaces it. The arguments are
    attributes of ``Loss``; values that are not in ``published`` are warned of with the paper that
    the docstring gives as its source.

    Raises:
        ValueError: If a name is taken, the signature does not follow the contract, or ``published``
            does not fit the hyper-parameters.

    Examples:
        >>> from prefopt.losses import LossOutput, get_loss, register_loss
        >>> @register_loss("sign_margin")
        ... def sign_margin_loss(chosen_logps, rejected_logps, *, scale=1.0):
        ...     return LossOutput(-scale * (chosen_logps - rejected_logps).sign())
        >>> get_loss("sign_margin").hyperparameters
        {'scale': 1.0}
        >>> unregister_loss("sign_margin")
    """

    def decorate(function: F) -> F:
        loss = Loss(
            name,
            function,
            tuple(aliases),
            counts,
            batch_dependent,
            dict(published or {}),
            dict(refuses or {}),
            family=family,
        )
        for key in (name, *loss.aliases):
            holder = _LOSSES.get(_NAMES.get(key, ""))
            if holder is not None and not (
                holder.name == name and _identity(holder.function) == _identity(function)
            ):
                raise ValueError(
                    f"loss name {key!r} is taken by {holder.name!r} "
                    f"({'.'.join(_identity(holder.function))}); choose another"
                )
        unregister_loss(name)
        _LOSSES[name] = loss
        _NAMES.update(dict.fromkeys((name, *loss.aliases), name))
        return function

    return decorate


def unregister_loss(name: str) -> None:
    """Forget a loss and its aliases, if there is one of that name.

    Args:
        name: Its name, not an alias.
    """
    if _LOSSES.pop(name, None) is not None:
        for key in [key for key, holder in _NAMES.items() if holder == name]:
            del _NAMES[key]


def get_loss(name: str) -> Loss:
    """Return the loss of that name or alias, in any case.

    Args:
        name: Name or alias; ``SimPO`` and ``LN-DPO`` are ``simpo`` and ``ln_dpo``.

    Raises:
        ValueError: If there is none; the message has the nearest names.
    """
    _load_entry_points()
    found = _NAMES.get(name) or {_folded(key): its for key, its in _NAMES.items()}.get(
        _folded(name)
    )
    if found is not None:
        return _LOSSES[found]
    if _folded(name) in _ONCE:
        raise ValueError(f"there is no loss {name!r}: use {_ONCE[_folded(name)]}")
    near = difflib.get_close_matches(_folded(name), _NAMES, n=3)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
    raise ValueError(f"unknown loss {name!r}{hint} `prefopt losses` lists all {len(_LOSSES)}")


def _folded(name: str) -> str:
    """Return a name without case, and with underscores for hyphens."""
    return name.casefold().replace("-", "_")


def did_you_mean(name: str, known: Collection[str]) -> str:
    """Return what ends a sentence about an unknown name: the nearest known one, or nothing.

    Examples:
        >>> print("there is no lamda" + did_you_mean("lamda", ["beta", "lambda_"]))
        there is no lamda. Did you mean 'lambda_'?
    """
    near = difflib.get_close_matches(name, known, n=1)
    return f". Did you mean {near[0]!r}?" if near else ""


def list_losses() -> list[Loss]:
    """Return every loss, third parties' included, by name."""
    _load_entry_points()
    return registered_losses()


def registered_losses() -> list[Loss]:
    """Return the losses of the modules imported so far, by name; no other package is imported."""
    return [_LOSSES[name] for name in sorted(_LOSSES)]


def _load_entry_points() -> None:
    """Import what other packages register, once; one that fails is a warning, not the end."""
    global _entry_points_loaded
    if _entry_points_loaded:
        return
    _entry_points_loaded = True  # first, so that a plug-in may call get_loss while it is imported
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        try:
            loaded = entry_point.load()
            known = any(loss.function is loaded for loss in _LOSSES.values())
            if inspect.isfunction(loaded) and not known:
                register_loss(entry_point.name)(loaded)
        except Exception as error:  # any error of another package's module
            warnings.warn(
                f"the losses of entry point {entry_point.name!r} ({entry_point.value}) "
                f"are not available: {type(error).__name__}: {error}",
                RuntimeWarning,
                stacklevel=3,
            )


def _identity(function: Callable[..., Any]) -> tuple[str, str]:
    return function.__module__, function.__qualname__


def _read_signature(function: Callable[..., Any]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Return the names of the tensors a function takes, and its options with their defaults."""
    inputs: list[str] = []
    options: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            options[name] = parameter.default
        elif parameter.kind is not parameter.POSITIONAL_OR_KEYWORD or (
            parameter.default is not parameter.empty
        ):
            raise ValueError(
                f"{function.__qualname__}: {name!r} must be a tensor without default, or stand "
                f"after the * as a hyper-parameter"
            )
        elif name not in VOCABULARY:
            near = difflib.get_close_matches(name, VOCABULARY, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(
                f"{function.__qualname__}: nothing delivers an input called {name!r}; {hint}"
                f"Inputs: {', '.join(VOCABULARY)}"
            )
        else:
            inputs.append(name)
    return tuple(inputs), options


# Whose inputs a loss on data of each kind may take.
_SIDES = {
    "paired": {"chosen", "rejected", "pair"},
    "unpaired": {"completion"},
    "ranked": {"ranking"},
}


def _read_data_kind(name: str, inputs: tuple[str, ...]) -> str:
    specs = [spec for spec in specs_of(inputs) if not spec.scalar]
    sides = {spec.side for spec in specs}
    found = [kind for kind, its in _SIDES.items() if sides & its]
    needed = {"logps", "label"} if found == ["unpaired"] else {"logps"}
    if not needed <= {spec.quantity for spec in specs}:
        found = []
    if len(found) != 1:
        raise ValueError(
            f"loss {name!r}: its inputs {', '.join(inputs)} belong to "
            f"{' and '.join(found) or 'no'} data; a loss takes one kind: rejected_* (paired), "
            "logps and desirable (unpaired), ranked_logps (ranked), or chosen_* alone (preferred)"
        )
    return "preferred" if sides == {"chosen"} else found[0]


def _read_docstring(function: Callable[..., Any]) -> dict[str, Any]:
    """Return what the function's docstring or its module's says of the loss."""
    own = inspect.getdoc(function) or ""
    module = sys.modules.get(function.__module__)
    shared = inspect.getdoc(module) or "" if module is not None else ""
    # A module with several losses documents each in its own function.
    text = own if "Source:" in own or "Source:" not in shared else shared
    parts = [part for each in re.split(r"\n\s*\n", text) for part in _LABELS.split(each)[1:]]
    found: dict[str, list[str]] = {}
    for label, value in zip(parts[::2], parts[1::2], strict=True):
        found.setdefault(label, []).append(" ".join(value.split()).rstrip("."))
    return {
        "summary": text.split("\n", 1)[0].strip().rstrip("."),
        "source": found.get("Source", [""])[0],
        "departures": found.get("Departures from it", [""])[0],
        "use_when": found.get("Use it when", [""])[0],
        "not_when": found.get("Not when", [""])[0],
        "differs_from": tuple(found.get("Differs from", [])),
    }


def _at_least_float32(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.is_floating_point() and torch.finfo(value.dtype).bits < 32:
        return value.float()
    return value


def _check_type(what: str, value: Any, default: Any) -> None:
    """Raise if a value is not of its default's type; an integer may stand for a float."""
    if isinstance(default, float):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{what} must be a number, got {value!r}")
        if not math.isfinite(value):
            raise ValueError(f"{what} must be finite, got {value!r}")
    elif default is not None and type(value) is not type(default):
        raise ValueError(f"{what} must be of type {type(default).__name__}, got {value!r}")
