import math

import pytest
import torch

from prefopt.losses import get_loss
from prefopt.losses.discopop_siblings import (
    aqfl_loss,
    aql_loss,
    cell_loss,
    dbaql_loss,
    padll_loss,
    pfl_loss,
)

LOSSES = [aqfl_loss, aql_loss, cell_loss, dbaql_loss, padll_loss, pfl_loss]
OF_THE_BATCH = pytest.mark.parametrize("loss", [aqfl_loss, aql_loss, dbaql_loss])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.fixture
def triples():
    """Three pairs with margins of 1.75, -1.75 and 4 nats."""
    values = {
        "chosen_logps": [-10.0, -20.5, -4.0],
        "rejected_logps": [-12.25, -18.0, -9.0],
        "ref_chosen_logps": [-11.0, -20.0, -5.5],
        "ref_rejected_logps": [-11.5, -19.25, -6.5],
    }
    return {
        name: torch.tensor(row, dtype=torch.float64, requires_grad=not name.startswith("ref"))
        for name, row in values.items()
    }


# Worked with mpmath, 40 digits, at reward margins of 0.525, -0.525 and, in a batch of three, 1.2.


def test_values_of_cell_are_those_of_the_paper(pairs, exact):
    output = cell_loss(**pairs, beta=0.3)
    exact(output.losses, [0.52813355951990426, 1.3400853015260424])
    exact(output.chosen_rewards, [0.3, -0.15])
    exact(output.rejected_rewards, [-0.225, 0.375])


def test_values_of_padll_are_those_of_the_paper(pairs, exact):
    exact(padll_loss(**pairs, beta=0.3).losses, [0.4182405792056941, 0.44537028960284705])


def test_values_of_pfl_are_those_of_the_paper(pairs, exact):
    # The policy prefers the chosen completion of the first pair only.
    exact(pfl_loss(**pairs, beta=0.3, tau=0.8).losses, [0.20895802476627519, 3.3125])


def test_values_of_dbaql_are_those_of_the_paper(triples, exact):
    losses = dbaql_loss(**triples, beta=0.3, tau=0.8).losses
    exact(losses, [0.48571722046868306, 1.1623715389278476, 0.25877918347319829])


def test_values_of_aql_are_those_of_the_paper(triples, exact):
    losses = aql_loss(**triples, beta=0.3, tau=0.8, blend_temperature=0.4).losses
    exact(losses, [0.47064701936934016, 1.0378301106034246, 0.031451805384378337])


def test_values_of_aqfl_are_those_of_the_paper(triples, exact):
    losses = aqfl_loss(**triples, beta=0.3, tau=0.8).losses
    exact(losses, [0.46979973857791562, 1.2427272905590518, 0.13862496744856144])


def test_gradients_of_those_that_see_one_pair_are_those_of_their_parts(pairs, exact):
    slopes = {
        cell_loss: [-(math.exp(-m) + sigmoid(-m)) / 2 for m in (0.525, -0.525)],
        padll_loss: [-0.9 * sigmoid(-0.525), -0.45 * sigmoid(0.525)],
        pfl_loss: [-sigmoid(-0.525 / 0.05) / 2 / 0.05, -2 / 0.05],
    }
    for loss, wanted in slopes.items():
        pairs["chosen_logps"].grad = pairs["rejected_logps"].grad = None
        loss(**pairs, beta=0.3).losses.sum().backward()
        exact(pairs["chosen_logps"].grad, [0.3 * slope for slope in wanted])
        exact(pairs["rejected_logps"].grad, [-0.3 * slope for slope in wanted])


@OF_THE_BATCH
def test_gradients_flow_through_the_statistics(triples, loss):
    # A central difference of the sum over the batch, which moves every pair's blend.
    loss(**triples, beta=0.3, tau=0.8).losses.sum().backward()
    step = torch.tensor([1e-6, 0.0, 0.0], dtype=torch.float64)
    ends = []
    for sign in (1, -1):
        moved = {**triples, "chosen_logps": triples["chosen_logps"].detach() + sign * step}
        ends.append(loss(**moved, beta=0.3, tau=0.8).losses.detach())
    change = (ends[0] - ends[1]) / 2e-6
    assert change[1:].abs().min() > 1e-6
    torch.testing.assert_close(triples["chosen_logps"].grad[0], change.sum(), rtol=1e-6, atol=0)


@OF_THE_BATCH
def test_those_that_see_the_batch_are_batch_dependent(loss):
    assert get_loss(loss.__name__.removesuffix("_loss")).batch_dependent


def test_a_batch_of_one_or_of_equals_has_no_spread(exact):
    zero = torch.zeros(2, dtype=torch.float64)
    chosen = torch.full((2,), 1.75, dtype=torch.float64, requires_grad=True)
    wanted = (math.log1p(math.exp(-0.525 / 0.9)) + math.exp(-0.9 * 0.525)) / 2
    for size in (1, 2):
        batch = (chosen[:size], zero[:size], zero[:size], zero[:size])
        for loss in (dbaql_loss, aqfl_loss):
            losses = loss(*batch, beta=0.3, tau=0.8).losses
            losses.sum().backward()
            assert chosen.grad.isfinite().all()
        exact(dbaql_loss(*batch, beta=0.3, tau=0.8).losses, [wanted] * size)


def test_policy_equal_to_reference_costs_a_blend_of_ln_2_and_one(equal_pairs, exact):
    ln2 = math.log(2)
    exact(cell_loss(**equal_pairs).losses, [(ln2 + 1) / 2] * 2)
    exact(dbaql_loss(**equal_pairs).losses, [(ln2 + 1) / 2] * 2)
    exact(padll_loss(**equal_pairs).losses, [0.9 * ln2] * 2)
    exact(pfl_loss(**equal_pairs).losses, [ln2 / 2, 2.0])
    q = sigmoid(0.05 * 0.5)
    exact(aql_loss(**equal_pairs).losses, [q * ln2 + 1 - q] * 2)
    b = sigmoid(0.1 * 0.05 * 0.5)
    exact(aqfl_loss(**equal_pairs).losses, [b * ln2 + 1 - b] * 2)


@pytest.mark.parametrize("loss", [cell_loss, dbaql_loss])
def test_exponentials_stay_finite_in_float32(loss):
    chosen = torch.tensor([-1e4, -100.0, 1e4], requires_grad=True)
    zero = torch.zeros(3)
    losses = loss(chosen, zero, zero, zero, beta=1.0).losses
    losses.sum().backward()
    assert losses.isfinite().all()
    assert chosen.grad.square().isfinite().all()


def test_the_blend_of_dbaql_does_not_lose_a_small_weight_of_a_large_exponential(exact):
    # 1 - sigmoid(40) is 0 in float64's neighbourhood of 1; its product with exp(45) is exp(5).
    chosen = torch.tensor([-50.0, -50.0 + math.sqrt(80)], dtype=torch.float64)
    zero = torch.zeros(2, dtype=torch.float64)
    losses = dbaql_loss(chosen, zero, zero, zero, beta=1.0, tau=1.0).losses
    wanted = math.log1p(math.exp(50 / 0.9)) + math.exp(45 - 40)
    torch.testing.assert_close(losses[0].item(), wanted, rtol=1e-12, atol=0)


def test_a_beta_outside_the_papers_sweep_warns(warned):
    get_loss("cell").check_hyperparameters({"beta": 0.01})
    assert warned == [
        "cell: beta=0.01 is outside the published range: "
        "Lu et al. 2024, arXiv:2406.08414, used 0.025 to 1"
    ]


@pytest.mark.parametrize("loss", LOSSES)
def test_hyperparameters_must_be_positive(pairs, loss):
    for name in get_loss(loss.__name__.removesuffix("_loss")).hyperparameters:
        with pytest.raises(ValueError, match=f"{name} must be greater than 0"):
            loss(**pairs, **{name: 0.0})
