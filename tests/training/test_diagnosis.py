"""The rules of diagnostics, on numbers: each at its limit, and on noise alone."""

import math
from dataclasses import replace

import numpy as np
import pytest

from prefopt.training.diagnosis import (
    DIAGNOSTICS,
    PairSummary,
    Point,
    diagnostics_of_pairs,
    likelihood_displacement,
    over_fitting,
    over_optimisation,
    partial_correlation,
    sampled_drift,
    worst,
)

# A run in which nothing is wrong.
HEALTHY = PairSummary(
    "1000 pairs",
    pairs=1000,
    chosen_count=1000,
    chosen_log_ratio=-0.3,
    chosen_log_ratio_std=2.0,
    chosen_tokens=20.0,
    kept_mass=0.5,
    longer_chosen=0.55,
    data_length_correlation=0.1,
    reward_length_correlation=0.2,
    reward_label_correlation=0.5,
    saturated_pairs=0.1,
)


def firing(**changes):
    found = diagnostics_of_pairs(replace(HEALTHY, **changes))
    assert [one.name for one in found] == list(DIAGNOSTICS[:5])
    return {one.name for one in found if one.fires}


def test_a_healthy_run_is_silent():
    assert firing() == set()


@pytest.mark.parametrize(
    ("name", "beyond", "within"),
    [
        # A standard error of 2 / sqrt(1000) = 0.063; 4 of them beyond ln 2 are 0.946.
        (
            "likelihood displacement",
            {"chosen_log_ratio": -0.95},
            {"chosen_log_ratio": -0.94},
        ),
        ("length bias of the data", {"longer_chosen": 0.651}, {"longer_chosen": 0.649}),
        ("length bias of the data", {"longer_chosen": 0.349}, {"longer_chosen": 0.351}),
        # Of 100 pairs, 4 standard errors of 0.05 are 0.2.
        (
            "length bias of the data",
            {"longer_chosen": 0.71, "pairs": 100},
            {"longer_chosen": 0.69, "pairs": 100},
        ),
        # Of 2000 completions, 4 standard errors at 0.05 are 0.0195.
        ("KL drift", {"kept_mass": 0.030}, {"kept_mass": 0.031}),
        # 4 standard errors at one half are 0.063.
        ("saturated pairs", {"saturated_pairs": 0.564}, {"saturated_pairs": 0.563}),
        # r^2 above 1/2: 0.756 - 4 (1 - 0.756^2) / sqrt(1000) = 0.7018 < 0.7071 < 0.7078.
        (
            "length bias of the reward",
            {"reward_length_correlation": 0.7605, "reward_label_correlation": 0.1},
            {"reward_length_correlation": 0.756, "reward_label_correlation": 0.1},
        ),
    ],
)
def test_a_limit_is_where_it_is_said_to_be(name, beyond, within):
    assert firing(**beyond) == {name}
    assert firing(**within) == set()


def test_the_limit_of_what_the_labels_explain():
    """Partial correlation by regression on all pairs in both orders, of numbers that have it."""
    # 0.1 = r_yd and r_md r_ym at 0.2 * 0.5: nothing is left of length once the margin is known.
    assert partial_correlation(0.1, 0.2, 0.5) == 0
    # r_md = 0.5: (0.1 - 0.25) / sqrt(0.75 * 0.75) = -0.2, beyond 0.1 and 4 errors of 0.031.
    assert partial_correlation(0.1, 0.5, 0.5) == pytest.approx(-0.2)
    assert firing(reward_length_correlation=0.5) == {"length bias of the reward"}
    # As much towards shorter answers, which the labels do not prefer.
    assert firing(reward_length_correlation=-0.5, data_length_correlation=0.1) == {
        "length bias of the reward"
    }
    # A reward that follows length less than the labels is no fault of it.
    assert firing(reward_length_correlation=0.05, data_length_correlation=0.3) == set()
    assert firing(reward_length_correlation=-0.05, data_length_correlation=0.3) == set()


def test_a_partial_correlation_is_that_of_residuals():
    rng = np.random.default_rng(0)
    z = rng.standard_normal(500)
    x, y = z + rng.standard_normal(500), 0.5 * z + rng.standard_normal(500)
    residuals = [v - z * (v @ z) / (z @ z) for v in (x, y)]

    def correlation(a, b):
        return a @ b / math.sqrt((a @ a) * (b @ b))

    found = partial_correlation(correlation(x, y), correlation(z, y), correlation(x, z))
    assert found == pytest.approx(correlation(*residuals), rel=1e-12)
    assert partial_correlation(0.3, 1.0, 0.3) == 0.0


@pytest.mark.parametrize("seed", range(20))
def test_a_calibrated_reward_on_noisy_labels_is_silent(seed):
    """Labels follow the reward by Bradley and Terry, and the reward follows length somewhat.

    Labels are noisy, so the reward correlates with length more than they do; yet it is right.
    """
    rng = np.random.default_rng(seed)
    gaps = rng.normal(0, 10, 1000)
    rewards = 0.05 * gaps + rng.standard_normal(1000)
    signs = np.where(rng.random(1000) < 1 / (1 + np.exp(-rewards)), 1, -1)
    margins, gaps = rewards * signs, gaps * signs
    label = np.ones(1000)

    def correlation(a, b):
        return a @ b / math.sqrt((a @ a) * (b @ b))

    of_reward, of_data = correlation(margins, gaps), correlation(label, gaps)
    assert of_reward > of_data + 0.1
    numbers = {
        "reward_length_correlation": of_reward,
        "data_length_correlation": of_data,
        "reward_label_correlation": correlation(margins, label),
    }
    assert firing(**numbers) == set()
    # The same labels, and a reward that gives length three times its worth.
    over = (rewards + 0.1 * gaps * signs) * signs
    numbers["reward_length_correlation"] = correlation(over, gaps)
    numbers["reward_label_correlation"] = correlation(over, label)
    assert firing(**numbers) == {"length bias of the reward"}


def test_what_is_not_known_is_said_and_does_not_fire():
    unknown = diagnostics_of_pairs(PairSummary("no pairs"))
    few = diagnostics_of_pairs(
        replace(HEALTHY, pairs=14, chosen_count=14, chosen_log_ratio=-99.0, saturated_pairs=1.0)
    )
    for found, word in ((unknown, "Not measured"), (few, "14 pairs of one epoch")):
        assert not any(one.fires for one in found)
        assert {one.value for one in found if one.name != "KL drift"} == {None}
        assert all(word in one.text for one in found if one.name != "KL drift")


def test_texts_have_the_numbers_and_what_to_do():
    one = likelihood_displacement(-4.0, 0.2, 20.0, "500 pairs")
    assert one.fires
    assert "-4.00 nats" in one.text
    assert "-0.200 per token" in one.text
    assert "sft" in one.text
    assert one.value == -4.0
    quiet = likelihood_displacement(-0.1, 0.2, None, "500 pairs")
    assert "per token" not in quiet.text
    assert "half as likely" in quiet.text


def test_samples_drift_beyond_the_best_of_all_pairs():
    # log 400 = 5.99
    assert sampled_drift(7.0, 6.1, 400).fires
    assert not sampled_drift(7.0, 5.9, 400).fires
    assert "is within 6.0" in sampled_drift(7.0, 5.9, 400).text


TRAINING = [Point(0, 0.7), Point(10, 0.5), Point(20, 0.3)]


def test_over_fitting_is_a_rise_beyond_errors_while_training_falls():
    held_out = [Point(0, 0.69, 0.03), Point(10, 0.60, 0.03), Point(20, 0.78, 0.03)]
    found = over_fitting(held_out, TRAINING)  # 0.18 is more than 4 * 0.0424
    assert found.fires
    assert found.value == pytest.approx(0.18)
    assert "step 10" in found.text
    noise = [*held_out[:2], Point(20, 0.76, 0.03)]
    assert not over_fitting(noise, TRAINING).fires
    assert not over_fitting(held_out, TRAINING[::-1]).fires  # training becomes worse too
    assert over_fitting(held_out[:1], TRAINING).value is None


def test_over_optimisation_is_a_fall_beyond_errors_while_the_margin_grows():
    margins = [Point(0, 0.0), Point(10, 0.5), Point(20, 1.0)]
    quality = [Point(0, 0.5, 0.02), Point(10, 0.7, 0.02), Point(20, 0.58, 0.02)]
    found = over_optimisation(quality, margins)  # 0.12 is more than 4 * 0.0283
    assert found.fires
    assert found.value == pytest.approx(0.12)
    assert not over_optimisation([*quality[:2], Point(20, 0.60, 0.02)], margins).fires
    assert not over_optimisation(quality, [*margins[:1], Point(10, 2.0), Point(20, 1.0)]).fires
    assert not over_optimisation(quality[::-1], margins).fires
    assert over_optimisation(quality, margins[:1]).value is None


def test_noise_alone_is_silent():
    """2000 runs of 20 evaluations at a constant accuracy: 4 errors leave about one false alarm."""
    rng = np.random.default_rng(0)
    margins = [Point(step, float(step)) for step in range(20)]
    fired = 0
    for _ in range(2000):
        shares = rng.binomial(500, 0.7, 20) / 500
        quality = [
            Point(step, share, math.sqrt(share * (1 - share) / 500))
            for step, share in enumerate(shares)
        ]
        fired += over_optimisation(quality, margins).fires
    assert fired <= 4


def test_the_worst_fires_or_else_was_measured():
    unknown = over_fitting([], [])
    silent = sampled_drift(1.0, 0.5, 400)
    fires = sampled_drift(9.0, 8.0, 400)
    assert worst([unknown, silent, fires]) is fires
    assert worst([unknown, silent]) is silent
    assert worst([unknown]) is unknown
