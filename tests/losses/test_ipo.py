import pytest

from prefopt.losses.ipo import ipo_loss


def test_values_of_the_sum_are_those_of_the_paper(pairs, lengths, exact):
    # Eq. 17 by hand: margins 1.75 and -1.75, target 1 / (2 * 0.25) = 2.
    output = ipo_loss(**pairs, **lengths, beta=0.25, normalize="sum")
    exact(output.losses, [0.25**2, 3.75**2])


def test_values_of_the_mean_divide_each_log_ratio_by_its_length(pairs, lengths, exact):
    # By hand: 1/4 + 0.75/5 - 2 and -0.5/7 - 1.25/3 - 2.
    output = ipo_loss(**pairs, **lengths, beta=0.25, normalize="mean")
    exact(output.losses, [1.6**2, (-0.5 / 7 - 1.25 / 3 - 2) ** 2])


@pytest.mark.parametrize("normalize", ["mean", "sum"])
def test_rewards_are_of_the_sum_as_trl_logs_them(pairs, lengths, exact, normalize):
    output = ipo_loss(**pairs, **lengths, beta=0.25, normalize=normalize)
    exact(output.chosen_rewards, [0.25, -0.125])
    exact(output.rejected_rewards, [-0.1875, 0.3125])


def test_gradient_is_twice_the_distance_to_the_target_per_token(pairs, lengths, exact):
    ipo_loss(**pairs, **lengths, beta=0.25).losses.sum().backward()
    distances = [-1.6, -0.5 / 7 - 1.25 / 3 - 2]
    exact(pairs["chosen_logps"].grad, [2 * distances[0] / 4, 2 * distances[1] / 7])
    exact(pairs["rejected_logps"].grad, [-2 * distances[0] / 5, -2 * distances[1] / 3])


@pytest.mark.parametrize("normalize", ["mean", "sum"])
def test_policy_equal_to_reference_costs_the_squared_target(pairs, lengths, exact, normalize):
    same = {**pairs, "ref_chosen_logps": pairs["chosen_logps"]}
    same["ref_rejected_logps"] = pairs["rejected_logps"]
    losses = ipo_loss(**same, **lengths, beta=0.2, normalize=normalize).losses
    exact(losses, [6.25, 6.25])


def test_a_margin_at_the_target_costs_nothing_and_beyond_it_costs_again(pairs, lengths, exact):
    beta = 1 / (2 * 1.75)
    exact(ipo_loss(**pairs, **lengths, beta=beta, normalize="sum").losses, [0.0, 3.5**2])
    exact(ipo_loss(**pairs, **lengths, beta=0.5, normalize="sum").losses, [0.75**2, 2.75**2])


def test_the_mean_of_one_token_is_the_sum(pairs, lengths, exact):
    ones = {name: value.clamp(max=1) for name, value in lengths.items()}
    mean = ipo_loss(**pairs, **ones, normalize="mean").losses
    exact(mean, ipo_loss(**pairs, **lengths, normalize="sum").losses.tolist())


def test_a_completion_without_tokens_has_no_part_in_the_margin(pairs, lengths, exact):
    empty = {**pairs, "rejected_logps": pairs["ref_rejected_logps"]}
    none = {**lengths, "rejected_lengths": lengths["rejected_lengths"] * 0}
    exact(ipo_loss(**empty, **none, beta=0.25).losses, [1.75**2, (-0.5 / 7 - 2) ** 2])


def test_beta_must_be_positive(pairs, lengths):
    with pytest.raises(ValueError, match="beta must be greater than 0"):
        ipo_loss(**pairs, **lengths, beta=0.0)


def test_normalize_must_be_one_of_two_words(pairs, lengths):
    with pytest.raises(ValueError, match="normalize must be 'mean' or 'sum', got 'token'"):
        ipo_loss(**pairs, **lengths, normalize="token")
