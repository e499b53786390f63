import pytest

from prefopt.losses.slic import slic_loss


@pytest.fixture
def policy(pairs):
    return {name: pairs[name] for name in ("chosen_logps", "rejected_logps")}


def test_values_are_hinge_in_nats_plus_likelihood(policy, exact):
    # By hand: 2.5 + 10 - 12.25 + 0.3 * 10 and 2.5 + 20.5 - 18 + 0.3 * 20.5.
    output = slic_loss(**policy, delta=2.5, lambda_=0.3)
    exact(output.losses, [3.25, 11.15])
    exact(output.chosen_rewards, [-10.0, -20.5])
    exact(output.rejected_rewards, [-12.25, -18.0])


def test_gradient_beyond_the_margin_is_that_of_the_likelihood_alone(policy, exact):
    slic_loss(**policy, delta=1.5, lambda_=0.3).losses.sum().backward()  # margins 2.25 and -2.5
    exact(policy["chosen_logps"].grad, [-0.3, -1.3])
    exact(policy["rejected_logps"].grad, [0.0, 1.0])


def test_equal_completions_cost_delta_and_the_likelihood(policy, exact):
    output = slic_loss(policy["chosen_logps"], policy["chosen_logps"], delta=2.0, lambda_=0.5)
    exact(output.losses, [7.0, 12.25])


@pytest.mark.parametrize("name", ["delta", "lambda_"])
def test_hyperparameters_must_not_be_negative(policy, name):
    with pytest.raises(ValueError, match=f"{name} must be at least 0"):
        slic_loss(**policy, **{name: -0.1})
