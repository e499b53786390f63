"""What every registered loss must hold, whoever wrote it."""

import inspect
import itertools
import pickle

import pytest
import torch

from prefopt.losses import LossOutput, get_loss, list_losses
from prefopt.losses.registry import SCALARS

LOSSES = [loss.name for loss in list_losses()]
SIZE = 5


@pytest.fixture(params=LOSSES)
def loss(request):
    return get_loss(request.param)


def make_input(name, dtype=torch.float32, size=SIZE):
    """Return made-up values of an input; log-probs are leaves where they are the policy's."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    shape = (size, 3) if "ranked" in name else (size,)
    if name == "desirable":
        return torch.rand(shape, generator=generator) < 0.5
    if name in SCALARS:
        return torch.tensor(0.3, dtype=dtype)
    if name in ("margins", "preference_probabilities") or name.endswith("scores"):
        return torch.rand(shape, generator=generator).to(dtype)
    if name.endswith("divergences"):
        return torch.rand(shape, generator=generator).to(dtype).requires_grad_()
    if name.endswith("lengths"):
        return torch.randint(1, 9, shape, generator=generator)
    values = -30 * torch.rand(shape, generator=generator) - 0.1
    return values.to(dtype).requires_grad_(not name.startswith("ref_"))


def make_inputs(loss, dtype=torch.float32, size=SIZE):
    return {name: make_input(name, dtype, size) for name in loss.inputs}


def rewards_of(output):
    return [item for item in output[1:] if item is not None]


def test_losses_are_one_per_example_with_gradient(loss):
    output = loss(**make_inputs(loss))
    assert isinstance(output, LossOutput)
    assert output.losses.shape == (SIZE,)
    assert output.losses.requires_grad


def test_a_single_example_keeps_its_dimension(loss):
    assert loss(**make_inputs(loss, size=1)).losses.shape == (1,)


def test_rewards_are_detached_one_per_example_and_of_the_data_kind(loss):
    output = loss(**make_inputs(loss))
    shape = (SIZE, 3) if loss.data_kind == "ranked" else (SIZE,)
    for rewards in rewards_of(output):
        assert rewards.shape == shape
        assert not rewards.requires_grad
    assert (output.chosen_rewards is None) == (output.rejected_rewards is None)
    if loss.data_kind == "paired":
        assert output.rewards is None
    if loss.data_kind in ("unpaired", "ranked"):
        assert output.chosen_rewards is None


def test_gradient_reaches_every_policy_log_prob_and_no_other_input(loss):
    inputs = make_inputs(loss)
    for value in inputs.values():
        if value.is_floating_point():
            value.requires_grad_()
    loss(**inputs).losses.sum().backward()
    for name, value in inputs.items():
        if name.endswith("logps") and not name.startswith("ref_"):
            assert value.grad is not None, name
            assert value.grad.abs().sum() > 0, name
    if "kl" in inputs:
        assert inputs["kl"].grad is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_computed_with_in_float32(loss, dtype):
    half = make_inputs(loss, dtype)
    single = {k: v.float() if v.is_floating_point() else v for k, v in half.items()}
    low, high = loss(**half), loss(**single)
    assert all(item.dtype == torch.float32 for item in [low.losses, *rewards_of(low)])
    assert all(torch.equal(a, b) for a, b in zip(rewards_of(low), rewards_of(high), strict=True))
    assert torch.equal(low.losses, high.losses)
    low.losses.sum().backward()
    policy = [v for k, v in half.items() if k.endswith("logps") and not k.startswith("ref_")]
    assert all(value.grad.dtype == dtype for value in policy)


def test_float64_stays_float64(loss):
    assert loss(**make_inputs(loss, torch.float64)).losses.dtype == torch.float64


def test_finite_with_finite_gradient_at_a_thousand_nats_in_float32(loss):
    logps = [name for name in loss.inputs if name.endswith("logps")]
    width = 3 if loss.data_kind == "ranked" else 1
    corners = torch.tensor(list(itertools.product([0.0, -1e3], repeat=width * len(logps))))
    size = len(corners)
    inputs = make_inputs(loss, size=size)
    for name, columns in zip(logps, corners.split(width, 1), strict=True):
        inputs[name] = columns.reshape(inputs[name].shape).clone().requires_grad_()
    for name, value in inputs.items():
        if name.endswith("lengths"):
            inputs[name] = torch.ones_like(value)  # sums are means: the extreme
    for kl in (0.0, 1e3):
        inputs |= {"kl": torch.tensor(kl)} if "kl" in inputs else {}
        output = loss(**inputs)
        output.losses.sum().backward()
        assert output.losses.isfinite().all()
        assert all(rewards.isfinite().all() for rewards in rewards_of(output))
        assert all(
            inputs[name].grad is None or inputs[name].grad.isfinite().all() for name in logps
        )


def test_an_example_does_not_depend_on_its_place_in_the_batch(loss):
    inputs = make_inputs(loss)
    order = torch.tensor([3, 0, 4, 1, 2])
    moved = {name: value if value.ndim == 0 else value[order] for name, value in inputs.items()}
    torch.testing.assert_close(loss(**moved).losses, loss(**inputs).losses[order])


def test_defaults_are_accepted_and_every_number_among_them_has_an_effect(loss):
    loss.check_hyperparameters(loss.hyperparameters)
    inputs = make_inputs(loss, torch.float64)
    losses = loss(**inputs).losses
    for name, default in loss.hyperparameters.items():
        if isinstance(default, float):
            assert not torch.equal(loss(**inputs, **{name: default + 0.25}).losses, losses), name


def test_unit_counts_are_one_positive_number_per_example(loss):
    counts = loss.unit_counts(make_inputs(loss))
    assert counts.shape == (SIZE,)
    assert (counts > 0).all()


def test_docstring_has_source_departures_and_every_parameter(loss):
    assert loss.summary
    assert loss.source
    assert loss.departures
    arguments = inspect.getdoc(loss.function).split("Args:")[1].split("Returns:")[0]
    for name in (*loss.inputs, *loss.hyperparameters):
        assert f"\n    {name}: " in arguments


def test_pickles(loss):
    assert pickle.loads(pickle.dumps(loss)) == loss
