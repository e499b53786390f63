import json

import mpmath
import pytest
import torch

from prefopt.losses.orpo import log_odds_ratio, orpo_loss

# Mean log-probs from certain to hopeless; those that a dtype rounds to 0 are left out below.
GRID = [-1e-300, -1e-30, -1e-18, -1e-12, -1e-9, -1e-7, -1e-5, -1e-3, -0.1, -0.5, -0.69, -0.7]
GRID += [-1.0, -3.0, -20.0, -60.0, -200.0, -1e3]


@pytest.fixture(autouse=True)
def forty_digits():
    with mpmath.workdps(40):
        yield


@pytest.fixture
def policy(pairs, lengths):
    return {name: pairs[name] for name in ("chosen_logps", "rejected_logps")} | lengths


def exact_log_odds(logp):
    return logp - mpmath.log(-mpmath.expm1(logp))


def exact_loss(chosen, rejected, lambda_):
    ratio = exact_log_odds(chosen) - exact_log_odds(rejected)
    return -chosen + lambda_ * mpmath.log1p(mpmath.exp(-ratio))


def exact_slopes(chosen, rejected, lambda_):
    ratio = exact_log_odds(chosen) - exact_log_odds(rejected)
    reversed_odds = 1 / (1 + mpmath.exp(ratio))
    return (
        -1 + lambda_ * reversed_odds / mpmath.expm1(chosen),
        -lambda_ * reversed_odds / mpmath.expm1(rejected),
    )


def grid_of_pairs(dtype, extra=()):
    """Return every pair of the grid, and others, as leaves of the dtype."""
    values = [x for x in GRID if torch.tensor(x, dtype=dtype) != 0]
    pairs = [(a, c) for a in values for c in values] + list(extra)
    chosen, rejected = zip(*pairs, strict=True)
    return (
        torch.tensor(chosen, dtype=dtype, requires_grad=True),
        torch.tensor(rejected, dtype=dtype, requires_grad=True),
    )


def as_mpf(values):
    return [mpmath.mpf(value) for value in values.tolist()]


def largest_error(actual, exact, floor):
    """Return the largest error relative to the exact value, or to the floor if that is larger."""
    return max(
        float(abs(a - e) / max(abs(e), floor)) for a, e in zip(as_mpf(actual), exact, strict=True)
    )


def test_values_are_likelihood_plus_odds_ratio(policy, exact):
    # Worked with mpmath, 40 digits, from Eq. 6 and 7 at means of -2.5, -2.45 and -20.5/7, -6.
    output = orpo_loss(**policy, lambda_=0.5)
    exact(output.losses, [2.8604087303406589, 2.9500940671248575])
    exact(output.chosen_rewards, [-1.25, -20.5 / 14])
    exact(output.rejected_rewards, [-1.225, -3.0])


def test_gradient_is_that_of_the_paper(policy, exact):
    orpo_loss(**policy, lambda_=0.5).losses.sum().backward()
    means = [(mpmath.mpf(-10) / 4, mpmath.mpf(-12.25) / 5), (mpmath.mpf(-20.5) / 7, mpmath.mpf(-6))]
    slopes = [exact_slopes(chosen, rejected, mpmath.mpf("0.5")) for chosen, rejected in means]
    exact(policy["chosen_logps"].grad, [float(slopes[0][0] / 4), float(slopes[1][0] / 7)])
    exact(policy["rejected_logps"].grad, [float(slopes[0][1] / 5), float(slopes[1][1] / 3)])


def test_equal_completions_cost_the_likelihood_and_lambda_ln_2(policy, exact):
    same = {**policy, "rejected_logps": policy["chosen_logps"]}
    same["rejected_lengths"] = policy["chosen_lengths"]
    wanted = [2.5 + 0.5 * float(mpmath.log(2)), 20.5 / 7 + 0.5 * float(mpmath.log(2))]
    exact(orpo_loss(**same, lambda_=0.5).losses, wanted)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_value_and_gradient_are_exact_near_log_prob_zero(dtype, rtol):
    chosen, rejected = grid_of_pairs(dtype)
    ones = torch.ones(len(chosen), dtype=torch.long)
    losses = orpo_loss(chosen, rejected, ones, ones, lambda_=1.0).losses
    losses.sum().backward()
    points = list(zip(as_mpf(chosen), as_mpf(rejected), strict=True))
    slopes = [exact_slopes(a, c, 1) for a, c in points]
    # Absolute below a thousandth: the likelihood's own part of the gradient is -1.
    assert largest_error(losses, [exact_loss(a, c, 1) for a, c in points], 1e-3) < rtol
    assert largest_error(chosen.grad, [slope for slope, _ in slopes], 1e-3) < rtol
    assert largest_error(rejected.grad, [slope for _, slope in slopes], 1e-3) < rtol


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_log_odds_ratio_is_exact_with_its_gradient(dtype, rtol):
    chosen, rejected = grid_of_pairs(dtype)
    ratios = log_odds_ratio(chosen, rejected)
    ratios.sum().backward()
    points = list(zip(as_mpf(chosen), as_mpf(rejected), strict=True))
    wanted = [exact_log_odds(a) - exact_log_odds(c) for a, c in points]
    # A difference is as exact as what it is the difference of.
    sizes = [abs(exact_log_odds(a)) + abs(exact_log_odds(c)) + 1 for a, c in points]
    errors = zip(as_mpf(ratios), wanted, sizes, strict=True)
    assert max(float(abs(a - e) / size) for a, e, size in errors) < rtol
    slopes = [-1 / mpmath.expm1(a) for a, _ in points]
    assert largest_error(chosen.grad, slopes, 0) < rtol
    slopes = [1 / mpmath.expm1(c) for _, c in points]
    assert largest_error(rejected.grad, slopes, 0) < rtol


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_exact_on_the_golden_inputs_that_no_implementation_gets_right(shared_dir, dtype, rtol):
    sets = json.loads((shared_dir / "golden" / "inputs.json").read_text())["sets"]
    data = sets["avg_extreme"]
    chosen = torch.tensor(data["policy_chosen_logps"], dtype=dtype, requires_grad=True)
    rejected = torch.tensor(data["policy_rejected_logps"], dtype=dtype, requires_grad=True)
    ones = torch.ones(len(chosen), dtype=torch.long)
    losses = orpo_loss(chosen, rejected, ones, ones, lambda_=0.5).losses
    losses.sum().backward()
    points = list(zip(as_mpf(chosen), as_mpf(rejected), strict=True))
    slopes = [exact_slopes(a, c, 0.5) for a, c in points]
    assert largest_error(losses, [exact_loss(a, c, 0.5) for a, c in points], 1e-3) < rtol
    assert largest_error(chosen.grad, [slope for slope, _ in slopes], 1e-3) < rtol
    assert largest_error(rejected.grad, [slope for _, slope in slopes], 1e-3) < rtol


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("above", [0.0, 1e-7])
def test_at_log_prob_zero_loss_and_gradient_are_finite(dtype, above):
    """The odds are infinite there; a float32 sum rounds to it, and may even come out above."""
    chosen = torch.tensor([above, above, -2.0], dtype=dtype, requires_grad=True)
    rejected = torch.tensor([above, -2.0, above], dtype=dtype, requires_grad=True)
    ones = torch.ones(3, dtype=torch.long)
    losses = orpo_loss(chosen, rejected, ones, ones).losses
    losses.sum().backward()
    assert losses.isfinite().all()
    assert chosen.grad.tolist()[:2] == [-1, -1]
    assert rejected.grad.tolist()[::2] == [0, 0]
    assert chosen.grad.isfinite().all()
    assert rejected.grad.isfinite().all()


def test_lambda_must_not_be_negative(policy):
    with pytest.raises(ValueError, match="lambda_ must be at least 0"):
        orpo_loss(**policy, lambda_=-0.1)
