import math

import torch

from prefopt.losses import get_loss
from prefopt.losses.squared_log_ratio import squared_log_ratio_loss
from prefopt.objective import parse_objective


def test_value_and_gradient_are_those_of_half_a_square(pairs, exact):
    output = squared_log_ratio_loss(pairs["chosen_logps"], pairs["ref_chosen_logps"])
    exact(output.losses, [0.5, 0.125])  # by hand: log-ratios 1 and -0.5
    assert output[1:] == (None, None, None)
    output.losses.sum().backward()
    exact(pairs["chosen_logps"].grad, [1.0, -0.5])


def test_it_is_a_term_for_any_data_and_needs_the_reference():
    loss = get_loss("squared_log_ratio")
    assert (loss.data_kind, loss.needs_reference) == ("preferred", True)
    assert parse_objective("kto + 0.001*squared_log_ratio").data_kinds == {"unpaired", "preferred"}


def test_near_the_reference_its_mean_over_samples_is_the_kl_divergence():
    reference = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    policy = reference + 1e-3 * torch.tensor([1.0, -2.0, 1.0], dtype=torch.float64)
    losses = squared_log_ratio_loss(policy.log(), reference.log()).losses
    kl = (policy * (policy / reference).log()).sum().item()
    assert math.isclose((policy * losses).sum().item(), kl, rel_tol=0.01)
    assert math.isclose((reference * losses).sum().item(), kl, rel_tol=0.01)
