"""What every loss must hold, built in or not: the checks of ``prefopt losses check``.

A check is a function of a loss whose name states the fact; it returns nothing, or raises
``ContractError`` with what is wrong. The inputs are made up, the same at every call, and need no
model. Whether a loss computes what its paper says is for its own tests.
"""

import inspect
import itertools
import pickle
from collections.abc import Callable

import torch
from torch import Tensor

from prefopt.losses.registry import Loss, LossOutput
from prefopt.losses.vocabulary import VOCABULARY, specs_of

SIZE = 5  # examples in a batch
PLACES = 3  # completions in a ranking


class ContractError(AssertionError):
    """A loss breaks the contract: what it does wrong, or does not do."""


Check = Callable[[Loss], None]


def broken_checks(loss: Loss) -> dict[str, str]:
    """Return the checks that a loss fails, each with what is wrong.

    An error that the loss itself raises counts as a failure.

    Args:
        loss: The loss.

    Examples:
        >>> from prefopt.losses import get_loss
        >>> broken_checks(get_loss("dpo"))
        {}
    """
    broken = {}
    for check in CHECKS:
        try:
            check(loss)
        except ContractError as error:
            broken[check.__name__] = str(error)
        except Exception as error:  # any error of another package's function
            broken[check.__name__] = f"the loss raised {type(error).__name__}: {error}"
    return broken


def make_inputs(
    loss: Loss, dtype: torch.dtype = torch.float32, size: int = SIZE
) -> dict[str, Tensor]:
    """Return made-up inputs of a loss; what the policy's gradient flows through are leaves."""
    return {spec.name: spec.made_up(size, PLACES, dtype) for spec in specs_of(loss.inputs)}


def losses_are_one_per_example_with_gradient(loss: Loss) -> None:
    """Check that ``losses`` of the output is unreduced and can be trained on."""
    output = loss(**make_inputs(loss))
    _require(isinstance(output, LossOutput), f"returns {type(output).__name__}, not LossOutput")
    _require_shape("losses", output.losses, (SIZE,))
    _require(output.losses.requires_grad, "losses carry no gradient")


def a_single_example_keeps_its_dimension(loss: Loss) -> None:
    """Check that a batch of one is a batch."""
    _require_shape("losses of one example", loss(**make_inputs(loss, size=1)).losses, (1,))


def rewards_are_detached_one_per_completion_and_of_the_data_kind(loss: Loss) -> None:
    """Check which rewards there are, their shape, and that no gradient leaves through them."""
    output = loss(**make_inputs(loss))
    shape = (SIZE, PLACES) if loss.data_kind == "ranked" else (SIZE,)
    for name, rewards in _rewards(output).items():
        _require_shape(name, rewards, shape)
        _require(not rewards.requires_grad, f"{name} carry gradient: return them with .detach()")
    _require(
        (output.chosen_rewards is None) == (output.rejected_rewards is None),
        "chosen_rewards and rejected_rewards belong together: return both or neither",
    )
    if loss.data_kind == "paired":
        _require(output.rewards is None, "a paired loss returns chosen_ and rejected_rewards")
    if loss.data_kind in ("unpaired", "ranked"):
        _require(
            output.chosen_rewards is None, f"a loss on {loss.data_kind} data returns rewards alone"
        )


def gradient_reaches_every_policy_log_prob_and_no_running_scalar(loss: Loss) -> None:
    """Check that the policy learns from what it computed, and that estimates are constants."""
    inputs = make_inputs(loss)
    for value in inputs.values():
        if value.is_floating_point():
            value.requires_grad_()
    torch.autograd.backward(loss(**inputs).losses.sum())
    for name, value in inputs.items():
        spec = VOCABULARY[name]
        reached = value.grad is not None and bool(value.grad.abs().sum() > 0)
        if spec.differentiable and not spec.gradient_optional:
            _require(reached, f"no gradient reaches {name}: drop the input or use it")
        if spec.scalar:
            _require(not reached, f"gradient flows into {name}: use {name}.detach()")


def every_input_has_an_effect(loss: Loss) -> None:
    """Check that no input is ignored: with each, the losses change or what their mean is over."""
    inputs = make_inputs(loss, torch.float64)
    before = loss(**inputs).losses / loss.unit_counts(inputs)
    for name in inputs:
        other = VOCABULARY[name].made_up(SIZE, PLACES, torch.float64, seed=1)
        changed = {**inputs, name: other}
        _require(
            not torch.equal(loss(**changed).losses / loss.unit_counts(changed), before),
            f"{name} has no effect on the losses: drop the input or use it",
        )


def half_precision_is_computed_with_in_float32(loss: Loss) -> None:
    """Check that bfloat16 and float16 inputs give the losses of their float32 copies."""
    for dtype in (torch.bfloat16, torch.float16):
        half = make_inputs(loss, dtype)
        full = {k: v.float() if v.is_floating_point() else v for k, v in half.items()}
        low, high = loss(**half), loss(**full)
        expected = {"losses": high.losses, **_rewards(high)}
        for name, values in {"losses": low.losses, **_rewards(low)}.items():
            _require(values.dtype == torch.float32, f"{name} are {values.dtype} for {dtype} inputs")
            _require(
                torch.equal(values, expected[name]),
                f"{name} of {dtype} inputs differ from those of their float32 copies",
            )
        torch.autograd.backward(low.losses.sum())
        for name, value in half.items():
            spec = VOCABULARY[name]
            if spec.differentiable:
                _require(
                    spec.gradient_optional if value.grad is None else value.grad.dtype == dtype,
                    f"the gradient of {name} is not of its own type, {dtype}",
                )


def float64_stays_float64(loss: Loss) -> None:
    """Check that double precision is not lost on the way."""
    dtype = loss(**make_inputs(loss, torch.float64)).losses.dtype
    _require(dtype == torch.float64, f"float64 inputs give losses in {dtype}")


def finite_with_finite_gradient_at_a_thousand_nats_in_float32(loss: Loss) -> None:
    """Check every combination of log-probs 0 and -1000, over one token each."""
    specs = [spec for spec in specs_of(loss.inputs) if spec.extremes]
    scalars = [spec for spec in specs if spec.scalar]
    moved = [spec.name for spec in specs if not spec.scalar]
    places = PLACES if loss.data_kind == "ranked" else 1
    columns = [VOCABULARY[name].extremes for name in moved for _ in range(places)]
    corners = torch.tensor(list(itertools.product(*columns)))
    inputs = make_inputs(loss, size=len(corners))
    for name, values in zip(moved, _per_input(corners, moved), strict=True):
        inputs[name] = values.reshape(inputs[name].shape).to(inputs[name].dtype, copy=True)
        inputs[name].requires_grad_(inputs[name].is_floating_point())
    for constants in itertools.product(*(spec.extremes for spec in scalars)):
        given = {spec.name: torch.tensor(x) for spec, x in zip(scalars, constants, strict=True)}
        output = loss(**{**inputs, **given})
        torch.autograd.backward(output.losses.sum())
        gradients = {f"the gradient of {name}": inputs[name].grad for name in moved}
        for name, found in {"losses": output.losses, **_rewards(output), **gradients}.items():
            _require_finite(name, found, corners, moved)


def an_example_does_not_depend_on_its_place_in_the_batch(loss: Loss) -> None:
    """Check that permuted examples have permuted losses."""
    order = torch.tensor([3, 0, 4, 1, 2])
    inputs = make_inputs(loss)
    moved = {name: value if value.ndim == 0 else value[order] for name, value in inputs.items()}
    _require(
        torch.allclose(loss(**moved).losses, loss(**inputs).losses[order], rtol=1e-5, atol=1e-5),
        "the loss of an example changes with its place in the batch",
    )


def an_example_does_not_depend_on_the_others_unless_batch_dependent(loss: Loss) -> None:
    """Check that part of a batch has part of its losses, so that micro-batches do not matter."""
    if loss.batch_dependent:
        return
    inputs = make_inputs(loss)
    part = {name: value if value.ndim == 0 else value[:2] for name, value in inputs.items()}
    _require(
        torch.allclose(loss(**part).losses, loss(**inputs).losses[:2], rtol=1e-5, atol=1e-5),
        "the loss of an example changes with the others of its batch: register it with "
        "batch_dependent=True",
    )


def defaults_are_accepted_and_every_number_among_them_has_an_effect(loss: Loss) -> None:
    """Check the hyper-parameters: no default is refused, and no number is ignored."""
    loss.check_hyperparameters(loss.hyperparameters)
    inputs = make_inputs(loss, torch.float64)
    losses = loss(**inputs).losses
    for name, default in loss.hyperparameters.items():
        if isinstance(default, float):
            other = loss(**inputs, **{name: default + 0.25}).losses
            _require(not torch.equal(other, losses), f"{name} has no effect on the losses")


def unit_counts_are_one_positive_number_per_example(loss: Loss) -> None:
    """Check the denominators of the mean."""
    counts = loss.unit_counts(make_inputs(loss))
    _require_shape("unit counts", counts, (SIZE,))
    _require(bool((counts > 0).all()), "a unit count is not greater than 0")


def docstring_has_source_departures_and_every_parameter(loss: Loss) -> None:
    """Check that a reader finds paper, differences from it, and the meaning of each parameter."""
    _require(bool(loss.summary), "the function has no docstring")
    _require(bool(loss.source), "the docstring has no paragraph 'Source: paper, number, equation.'")
    _require(bool(loss.departures), "the docstring's Source lacks 'Departures from it: none.'")
    text = inspect.getdoc(loss.function) or ""
    arguments = text.partition("Args:")[2].partition("Returns:")[0]
    for name in (*loss.inputs, *loss.hyperparameters):
        _require(f"\n    {name}: " in arguments, f"the docstring's Args section lacks {name}")


def a_loss_of_prefopt_has_what_the_guide_is_made_of(loss: Loss) -> None:
    """Check that the guide can show it; another package's loss may go without (``guide_gaps``)."""
    gaps = guide_gaps(loss) if loss.built_in else []
    _require(not gaps, f"it lacks {', '.join(gaps)}")


def guide_gaps(loss: Loss) -> list[str]:
    """Return what the guide does not find in a loss, as what to write there."""
    wanted = {
        "family= in register_loss": loss.family,
        "'Use it when:' in the docstring": loss.use_when,
        "'Not when:' in the docstring": loss.not_when,
    }
    return [what for what, value in wanted.items() if not value]


def pickles(loss: Loss) -> None:
    """Check that other processes can be given the loss: a function at the top of a module."""
    try:
        copy = pickle.loads(pickle.dumps(loss))
    except Exception as error:  # pickle raises several kinds
        raise ContractError(f"cannot be pickled: {error}") from error
    _require(copy == loss, "its pickled copy is another loss")


CHECKS: tuple[Check, ...] = (
    losses_are_one_per_example_with_gradient,
    a_single_example_keeps_its_dimension,
    rewards_are_detached_one_per_completion_and_of_the_data_kind,
    gradient_reaches_every_policy_log_prob_and_no_running_scalar,
    every_input_has_an_effect,
    half_precision_is_computed_with_in_float32,
    float64_stays_float64,
    finite_with_finite_gradient_at_a_thousand_nats_in_float32,
    an_example_does_not_depend_on_its_place_in_the_batch,
    an_example_does_not_depend_on_the_others_unless_batch_dependent,
    defaults_are_accepted_and_every_number_among_them_has_an_effect,
    unit_counts_are_one_positive_number_per_example,
    docstring_has_source_departures_and_every_parameter,
    a_loss_of_prefopt_has_what_the_guide_is_made_of,
    pickles,
)


def _rewards(output: LossOutput) -> dict[str, Tensor]:
    """Return the rewards that an output has, by name."""
    return {k: v for k, v in output._asdict().items() if k != "losses" and v is not None}


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ContractError(otherwise)


def _require_shape(name: str, values: Tensor, shape: tuple[int, ...]) -> None:
    _require(tuple(values.shape) == shape, f"{name}: shape {tuple(values.shape)}, expected {shape}")


def _require_finite(name: str, values: Tensor | None, corners: Tensor, inputs: list[str]) -> None:
    """Raise, with the first input that does it, if a value is not finite."""
    if values is None or bool(values.isfinite().all()):
        return
    row = int((~values.isfinite()).reshape(len(corners), -1).any(1).nonzero()[0])
    values_there = [columns[row].tolist() for columns in _per_input(corners, inputs)]
    point = ", ".join(f"{k}={v}" for k, v in zip(inputs, values_there, strict=True))
    raise ContractError(f"{name}: not finite at {point}")


def _per_input(corners: Tensor, inputs: list[str]) -> tuple[Tensor, ...]:
    """Return the columns of the corners that belong to each input."""
    return corners.reshape(len(corners), len(inputs), -1).unbind(1)
