import torch

from prefopt.losses import get_loss
from prefopt.losses.rrhf import rrhf_loss


def ranked_inputs(rankings):
    return {name: rankings[name] for name in get_loss("rrhf").inputs}


def test_values_sum_what_each_worse_completion_is_ahead_per_token(rankings, exact):
    # By hand: means -2, -3, -1.25 and -2, -1.5, -1, of which the last two tie.
    output = rrhf_loss(**ranked_inputs(rankings))
    exact(output.losses, [0.75 + 1.75, 0.5 + 1.0])
    exact(output.rewards[0], [-2.0, -3.0, -1.25])
    exact(output.rewards[1], [-2.0, -1.5, -1.0])


def test_gradient_counts_the_pairs_in_the_wrong_order(rankings, exact):
    rrhf_loss(**ranked_inputs(rankings)).losses.sum().backward()
    exact(rankings["ranked_logps"].grad[0], [-1 / 2, -1 / 3, 2 / 5])
    exact(rankings["ranked_logps"].grad[1], [-2 / 4, 1 / 5, 1 / 7])


def test_the_right_order_costs_nothing_without_any_margin():
    logps = torch.tensor([[-1.0, -1.001, -30.0]])
    losses = rrhf_loss(logps, torch.ones(1, 3).long(), torch.tensor([[2.0, 1.0, 0.0]])).losses
    assert losses.tolist() == [0.0]


def test_only_the_order_of_the_scores_counts(rankings, exact):
    inputs = ranked_inputs(rankings)
    scaled = {**inputs, "ranked_scores": 100 * inputs["ranked_scores"] ** 3 - 5}
    exact(rrhf_loss(**scaled).losses, rrhf_loss(**inputs).losses.tolist())


def test_the_order_of_the_columns_is_immaterial(rankings, exact):
    inputs = ranked_inputs(rankings)
    moved = {name: value[:, [2, 0, 1]] for name, value in inputs.items()}
    exact(rrhf_loss(**moved).losses, rrhf_loss(**inputs).losses.tolist())


def test_it_needs_no_reference():
    assert not get_loss("rrhf").needs_reference
    assert get_loss("rrhf").data_kind == "ranked"
