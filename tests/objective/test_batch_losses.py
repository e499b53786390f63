import pytest
import torch

from prefopt.losses import LossOutput, get_loss, register_loss
from prefopt.objective import parse_objective
from prefopt.objective.batch_losses import BatchInputs, compute_together

WEIGHTS = torch.tensor([1.0, 0.5, 2.0, 1.0, 3.0], dtype=torch.float64)


def pairs(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    names = ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
    return {
        name: -20 * torch.rand(size, generator=generator, dtype=torch.float64) for name in names
    }


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("sizes", [[5], [2, 3], [1, 1, 1, 1, 1], [3, 0, 2]])
def test_losses_and_gradients_are_those_of_the_whole(sizes, weights):
    (term,) = parse_objective("aot", options={"beta": 0.3}).terms
    whole = pairs(5)
    leaves = [whole[name].requires_grad_() for name in ("chosen_logps", "rejected_logps")]
    losses = get_loss("aot")(**whole, beta=0.3).losses * (1 if weights is None else weights)
    wanted = torch.autograd.grad(losses.sum(), leaves)

    columns = [torch.split(value.detach(), sizes) for value in whole.values()]
    parts = [dict(zip(whole, values, strict=True)) for values in zip(*columns, strict=True)]
    of_parts = [None] * len(sizes) if weights is None else torch.split(weights, sizes)
    micro_batches = [BatchInputs(*both) for both in zip(parts, of_parts, strict=True)]
    found, gradients = [], []
    for part, batch_loss in zip(parts, compute_together(term, micro_batches), strict=True):
        leaves = [part[name].requires_grad_() for name in ("chosen_logps", "rejected_logps")]
        output = batch_loss.output(part)
        assert output.chosen_rewards.shape == output.losses.shape
        found.append(output.losses.detach())
        gradients.append(torch.autograd.grad(output.losses.sum(), leaves))
    torch.testing.assert_close(torch.cat(found), losses.detach())
    for side in (0, 1):
        torch.testing.assert_close(torch.cat([part[side] for part in gradients]), wanted[side])


def test_a_step_without_examples_has_no_losses():
    (term,) = parse_objective("aot").terms
    found = compute_together(term, [BatchInputs(pairs(0))] * 2)
    assert [loss.output(pairs(0)).losses.shape for loss in found] == [(0,), (0,)]


@pytest.mark.usefixtures("scratch_registry")
def test_a_mean_over_the_step_is_taken_once_and_what_the_loss_ignores_has_gradient_0():
    @register_loss("centred", batch_dependent=True)
    def centred(logps, ref_logps, desirable, kl):
        return LossOutput(logps.detach() - logps.detach().mean() + kl + 0 * logps)

    (term,) = parse_objective("centred").terms
    logps = torch.tensor([-1.0, -2.0, -6.0])
    known = {"ref_logps": logps, "desirable": logps < 0, "kl": torch.tensor(0.5)}
    whole = {"logps": logps, **known}
    cut = [
        BatchInputs({name: x if x.ndim == 0 else x[part] for name, x in whole.items()})
        for part in (slice(0, 1), slice(1, 3))
    ]
    first, second = compute_together(term, cut)
    assert [*first.losses.tolist(), *second.losses.tolist()] == [2.5, 1.5, -2.5]
    assert second.gradients["logps"].tolist() == [0.0, 0.0]
    assert "ref_logps" not in second.gradients


def test_a_batch_loss_moves_with_its_gradients():
    (term,) = parse_objective("aot").terms
    (loss,) = compute_together(term, [BatchInputs(pairs(2))])
    moved = loss.to("meta")
    assert {*moved.gradients} == {"chosen_logps", "rejected_logps"}
    devices = {
        x.device.type for x in (moved.losses, moved.rejected_rewards, *moved.gradients.values())
    }
    assert devices == {"meta"}
