import math

import pytest
import torch

from prefopt.losses import get_loss
from prefopt.losses.aot import aot_loss, aot_unpaired_loss

LOSSES = pytest.mark.parametrize("loss", [aot_loss, aot_unpaired_loss])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.fixture
def triples():
    """Three pairs: differences 1, -1, 4 and -2, 1, 3; log-ratios 2, -1, -2 and -1, 1, -3."""
    values = {
        "chosen_logps": [-3.0, -7.0, -5.0],
        "rejected_logps": [-4.0, -6.0, -9.0],
        "ref_chosen_logps": [-5.0, -6.0, -3.0],
        "ref_rejected_logps": [-3.0, -7.0, -6.0],
    }
    return {
        name: torch.tensor(row, dtype=torch.float64, requires_grad=not name.startswith("ref"))
        for name, row in values.items()
    }


def test_paired_values_compare_sorted_policy_and_reference_differences(triples, exact):
    # Worked with mpmath, 40 digits, at margins of 0.3 times 0, 1 and 1.
    output = aot_loss(**triples, beta=0.3, label_smoothing=0.2)
    exact(output.losses, [math.log(2), 0.61435524446852712, 0.61435524446852712])
    exact(output.chosen_rewards, [0.6, -0.3, -0.6])
    exact(output.rejected_rewards, [-0.3, 0.3, -0.9])


def test_unpaired_values_compare_sorted_log_ratios(triples, exact):
    # Worked with mpmath, 40 digits, at margins of 0.3 times 1, 0 and 1.
    output = aot_unpaired_loss(**triples, beta=0.3, label_smoothing=0.2)
    exact(output.losses, [0.61435524446852712, math.log(2), 0.61435524446852712])
    exact(output.chosen_rewards, [0.6, -0.3, -0.6])
    exact(output.rejected_rewards, [-0.3, 0.3, -0.9])


def test_paired_gradient_reaches_both_completions_of_the_pair_that_holds_the_rank(triples, exact):
    aot_loss(**triples, beta=0.3, label_smoothing=0.2).losses.sum().backward()
    slopes = [0.3 * (0.8 * sigmoid(-m) - 0.2 * sigmoid(m)) for m in (0.0, 0.3, 0.3)]
    exact(triples["chosen_logps"].grad, [-slope for slope in slopes])
    exact(triples["rejected_logps"].grad, slopes)


def test_unpaired_gradient_reaches_the_rejected_completion_of_that_rank(triples, exact):
    aot_unpaired_loss(**triples, beta=0.3, label_smoothing=0.2).losses.sum().backward()
    slopes = [0.3 * (0.8 * sigmoid(-m) - 0.2 * sigmoid(m)) for m in (0.3, 0.0, 0.3)]
    exact(triples["chosen_logps"].grad, [-slope for slope in slopes])
    # Rejected log-ratios -1, 1, -3 hold the ranks of chosen ones -1, 2, -2.
    exact(triples["rejected_logps"].grad, [slopes[1], slopes[0], slopes[2]])


def test_unpaired_does_not_ask_which_rejected_completion_belongs_to_which_chosen(triples, exact):
    shuffled = dict(triples)
    for name in ("rejected_logps", "ref_rejected_logps"):
        shuffled[name] = triples[name][[2, 0, 1]]
    exact(aot_unpaired_loss(**shuffled).losses, aot_unpaired_loss(**triples).losses.tolist())


@LOSSES
def test_policy_equal_to_reference_costs_ln_2(equal_pairs, exact, loss):
    exact(loss(**equal_pairs, beta=2.0, label_smoothing=0.3).losses, [math.log(2)] * 2)


@LOSSES
def test_both_depend_on_the_batch(loss):
    assert get_loss(loss.__name__.removesuffix("_loss")).batch_dependent


@LOSSES
def test_hyperparameters_must_be_in_range(pairs, loss):
    with pytest.raises(ValueError, match="beta must be greater than 0"):
        loss(**pairs, beta=0.0)
    with pytest.raises(ValueError, match="label_smoothing must be at least 0"):
        loss(**pairs, label_smoothing=0.5)
