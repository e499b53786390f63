import math

import pytest
import torch

from prefopt.losses.alphapo import alphapo_loss
from prefopt.losses.simpo import simpo_loss


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.fixture
def policy(pairs, lengths):
    return {name: pairs[name] for name in ("chosen_logps", "rejected_logps")} | lengths


# Worked with mpmath, 40 digits: losses, then beta times r of the chosen and the rejected.
CASES = {
    0.5: (
        [1.4764202714710899, 2.2958874039497803e-41],
        [-14.942057744771048, -19.946719450131498],
        [-14.424996496744914, -114.51322153912601],
    ),
    -0.4: (
        [1.1407713320118082, 0.32862089631072821],
        [-4.7409041912141826, -5.1755709264673172],
        [-4.6851667586145035, -6.8196153503294062],
    ),
}


@pytest.mark.parametrize("alpha", CASES)
def test_values_bend_the_reward_of_the_mean_log_prob(policy, exact, alpha):
    losses, chosen, rejected = CASES[alpha]
    output = alphapo_loss(**policy, beta=3.0, gamma=0.7, alpha=alpha)
    exact(output.losses, losses)
    exact(output.chosen_rewards, chosen)
    exact(output.rejected_rewards, rejected)


@pytest.mark.parametrize("alpha", CASES)
def test_gradient_is_the_power_of_the_mean_probability(policy, exact, alpha):
    alphapo_loss(**policy, beta=3.0, gamma=0.7, alpha=alpha).losses.sum().backward()
    _, chosen, rejected = CASES[alpha]
    slopes = [3 * sigmoid(r - c + 0.7) for c, r in zip(chosen, rejected, strict=True)]
    chosen_powers = [math.exp(alpha * 10 / 4) / 4, math.exp(alpha * 20.5 / 7) / 7]
    rejected_powers = [math.exp(alpha * 12.25 / 5) / 5, math.exp(alpha * 6) / 3]
    pairs = zip(slopes, chosen_powers, strict=True)
    exact(policy["chosen_logps"].grad, [-slope * power for slope, power in pairs])
    pairs = zip(slopes, rejected_powers, strict=True)
    exact(policy["rejected_logps"].grad, [slope * power for slope, power in pairs])


def test_alpha_zero_is_simpo_and_small_alpha_close_to_it(policy, exact):
    options = {"beta": 3.0, "gamma": 0.7}
    simpo = simpo_loss(**policy, **options).losses
    exact(alphapo_loss(**policy, **options, alpha=0.0).losses, simpo.tolist())
    near = alphapo_loss(**policy, **options, alpha=1e-9).losses
    torch.testing.assert_close(near, simpo, rtol=1e-7, atol=0)


def test_the_bend_at_an_exponent_of_one_has_no_step():
    means = torch.tensor([-4 - 1e-9, -4.0, -4 + 1e-9], dtype=torch.float64, requires_grad=True)
    one = torch.ones(3, dtype=torch.long)
    output = alphapo_loss(means, torch.zeros_like(means), one, one, alpha=0.25, beta=1.0)
    assert output.chosen_rewards.diff().tolist() == pytest.approx([math.e * 1e-9] * 2, rel=1e-5)


def test_a_thousand_nats_per_token_have_a_gradient_that_is_finite_and_not_zero():
    chosen = torch.tensor([-1e3], requires_grad=True)
    one = torch.ones(1, dtype=torch.long)
    alphapo_loss(chosen, torch.zeros(1), one, one).losses.sum().backward()
    assert chosen.grad.isfinite().all()
    assert chosen.grad < 0


@pytest.mark.parametrize(
    ("name", "value"), [("beta", 0.0), ("gamma", -0.1), ("alpha", math.inf), ("alpha", math.nan)]
)
def test_hyperparameters_out_of_range_are_refused(policy, name, value):
    with pytest.raises(ValueError, match=f"{name} must be"):
        alphapo_loss(**policy, **{name: value})
