"""What papers claim of their losses, beyond the formula. GPO's members are in test_gpo.py."""

import math

import pytest
import torch

from prefopt.losses import get_loss


def slopes(name: str, margins: torch.Tensor, **options: float) -> torch.Tensor:
    """Return the derivative of a loss over the reward margin, at beta 0.05."""
    chosen = (margins / 0.05).requires_grad_()
    zero = torch.zeros_like(margins)
    losses = get_loss(name)(
        chosen_logps=chosen,
        rejected_logps=zero,
        ref_chosen_logps=zero,
        ref_rejected_logps=zero,
        beta=0.05,
        **options,
    ).losses
    (gradient,) = torch.autograd.grad(losses.sum(), chosen)
    return gradient / 0.05


def test_discopop_pushes_margins_down_around_zero_and_up_elsewhere():
    margins = torch.linspace(-3, 3, 6001, dtype=torch.float64)
    found = slopes("discopop", margins, tau=0.05)
    wrong = margins[found > 0]
    # The roots, found by bisection of the derivative of Eq. 5 with mpmath.
    assert wrong.min().item() == pytest.approx(-0.11857, abs=1e-3)
    assert wrong.max().item() == pytest.approx(0.07201, abs=1e-3)
    assert (
        (found > 0).sum() == len(wrong) == torch.diff(torch.nonzero(found > 0).flatten()).sum() + 1
    )


def test_discopop_is_not_convex():
    margins = torch.linspace(-1, 1, 2001, dtype=torch.float64)
    assert (slopes("discopop", margins, tau=0.05).diff() < 0).any()
    assert (slopes("dpo", margins).diff() > 0).all()


@pytest.mark.parametrize("tau", [0.02, 0.05, 0.1, 0.105, 1.0])
def test_slope_of_discopop_where_policy_and_reference_are_equal(tau):
    # d/dm of [1 - s(m/tau)] log(1 + e^-m) + s(m/tau) e^-m at m = 0.
    expected = (1 - math.log(2)) / (4 * tau) - 3 / 4
    found = slopes("discopop", torch.zeros(1, dtype=torch.float64), tau=tau).item()
    assert found == pytest.approx(expected, rel=1e-12)
    assert (found > 0) == (tau < (1 - math.log(2)) / 3)
