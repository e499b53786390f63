"""Metrics of pairs, worked by hand."""

import pytest
import torch

from prefopt.evaluation import PairLogps, wilson_interval
from prefopt.evaluation.pairs import evaluate_pairs
from prefopt.objective import parse_objective

# Six pairs: (policy chosen, rejected, reference chosen, rejected, tokens chosen, rejected).
TABLE = torch.tensor(
    [
        [-4.0, -9.0, -5.0, -8.0, 9, 4],  # log-ratios  1, -1
        [-7.0, -3.0, -5.0, -4.0, 4, 9],  # log-ratios -2,  1
        [-2.0, -6.0, -5.0, -6.0, 7, 5],  # log-ratios  3,  0
        [-5.0, -8.0, -5.0, -8.0, 6, 6],  # log-ratios  0,  0: a tie
        [-1.0, -9.0, -4.0, -3.0, 8, 2],  # log-ratios  3, -6
        [-6.0, -5.0, -6.5, -4.0, 2, 8],  # log-ratios .5, -1
    ]
)


def sides(first: int) -> PairLogps:
    lengths = TABLE[:, 4:].long()
    return PairLogps(TABLE[:, first], TABLE[:, first + 1], lengths[:, 0], lengths[:, 1])


POLICY, START = sides(0), sides(2)


def test_the_numbers_are_those_worked_by_hand():
    found = evaluate_pairs(POLICY, START)
    metrics, baselines = found.metrics, found.data_baselines
    # Right: pairs 0, 2, 4 and 5; wrong: 1; a tie: 3.
    assert metrics["accuracy"] == wilson_interval(4.5, 6)
    assert metrics["log_ratio_accuracy"] == metrics["accuracy"]
    # Margins 2, -3, 3, 0, 9, 1.5.
    assert metrics["margin"].value == pytest.approx(12.5 / 6)
    assert metrics["chosen_log_ratio"].value == pytest.approx(5.5 / 6)
    assert metrics["rejected_log_ratio"].value == pytest.approx(-7 / 6)
    # Lengths differ by 5, -5, 2, 0, 6, -6: only the pair with 2 has no counterpart.
    assert baselines["longer"] == wilson_interval(3.5, 6)
    assert baselines["shorter"] == wilson_interval(2.5, 6)
    assert metrics["balanced_accuracy"] == wilson_interval(3.5, 5)
    # The start prefers the chosen completion of 0, 2 and 3.
    assert baselines["start"] == wilson_interval(3, 6)
    # Alike: 0 and 2; the tie counts one half; 1 too, where both prefer the rejected one.
    assert metrics["start_agreement"] == wilson_interval(3.5, 6)
    # Spearman's: ranks of margins 4 1 5 2 6 3, of length differences 5 2 4 3 6 1.
    d = [4 - 5, 1 - 2, 5 - 4, 2 - 3, 6 - 6, 3 - 1]
    expected = 1 - 6 * sum(x * x for x in d) / (6 * 35)
    assert metrics["margin_length_correlation"].value == pytest.approx(expected)
    assert found.notes == ()
    assert found.rewards.chosen.tolist() == [1, -2, 3, 0, 3, 0.5]


def test_the_reward_is_that_of_the_loss_and_log_ratios_stay_comparable():
    # SimPO's reward is the mean log-prob, times its beta of 2: -4/9 > -9/4 and so on.
    found = evaluate_pairs(POLICY, START, objective=parse_objective("simpo"))
    of_chosen = 2 * TABLE[:, 0] / TABLE[:, 4]
    of_rejected = 2 * TABLE[:, 1] / TABLE[:, 5]
    torch.testing.assert_close(found.rewards.chosen, of_chosen)
    right = (of_chosen > of_rejected).sum().item()
    assert found.metrics["accuracy"] == wilson_interval(right, 6)
    assert found.metrics["log_ratio_accuracy"] == wilson_interval(4.5, 6)


def test_a_loss_without_rewards_is_measured_by_log_ratios_and_said():
    found = evaluate_pairs(POLICY, START, objective=parse_objective("sft"))
    assert found.metrics["accuracy"] == wilson_interval(4.5, 6)
    assert "'sft' defines no rewards" in found.notes[0]


def test_without_a_reference_what_needs_one_is_left_out_and_said():
    found = evaluate_pairs(POLICY, objective=parse_objective("simpo"))
    assert set(found.metrics) == {
        "accuracy",
        "balanced_accuracy",
        "margin_length_correlation",
    }
    assert set(found.data_baselines) == {"longer", "shorter"}
    assert "need a reference" in found.notes[0]
    with pytest.raises(ValueError, match="need the log-probs of the reference"):
        evaluate_pairs(POLICY, objective=parse_objective("dpo"))
    # The policy finds the chosen completion likelier but in pairs 1 and 5.
    plain = evaluate_pairs(POLICY)
    assert plain.metrics["accuracy"] == wilson_interval(4, 6)
    assert plain.rewards.chosen.tolist() == POLICY.chosen.tolist()


def test_pairs_of_one_row_widen_the_intervals():
    # Each row three times: as pairs of one ranking they say no more than once.
    tripled = [PairLogps(*(part.repeat(3) for part in side[:4])) for side in (POLICY, START)]
    alone = evaluate_pairs(*tripled)
    together = evaluate_pairs(*tripled, rows=torch.arange(6).repeat(3))
    for name in ("accuracy", "margin", "start_agreement"):
        narrow, wide = alone.metrics[name], together.metrics[name]
        assert narrow.value == pytest.approx(wide.value)
        assert wide.high - wide.low > 1.3 * (narrow.high - narrow.low)
        assert wide.size == 6


def test_what_cannot_be_measured_is_said():
    longer = POLICY._replace(rejected_lengths=POLICY.chosen_lengths - 1)
    found = evaluate_pairs(longer, START._replace(rejected_lengths=longer.rejected_lengths))
    assert "balanced_accuracy" not in found.metrics
    assert "margin_length_correlation" not in found.metrics
    assert [note.split(":")[0] for note in found.notes] == [
        "balanced_accuracy",
        "margin_length_correlation",
    ]
    with pytest.raises(ValueError, match="at least 2 rows, got 0"):
        evaluate_pairs(PairLogps(*(part[:0] for part in POLICY[:4])))
