"""Diagnostics of held-out pairs and samples, beside those of the logs."""

import math

import numpy as np
import pytest
import torch

from prefopt.evaluation import Estimate, diagnose, summary_of_pairs
from prefopt.training.diagnosis import DIAGNOSTICS
from tests.toy_runs import pairs, run

RNG = np.random.default_rng(0)
FIELDS = (
    "chosen_reward",
    "rejected_reward",
    "chosen_logps",
    "rejected_logps",
    "ref_chosen_logps",
    "ref_rejected_logps",
    "chosen_tokens",
    "rejected_tokens",
)


def table(count=400, **changed):
    """Return pairs of a healthy policy; columns by name replace its own."""
    columns = {
        "chosen_tokens": RNG.integers(5, 30, count),
        "rejected_tokens": RNG.integers(5, 30, count),
        "ref_chosen_logps": RNG.normal(-40, 8, count),
        "ref_rejected_logps": RNG.normal(-40, 8, count),
    }
    for side, rise in (("chosen", 0.5), ("rejected", -1.5)):
        log_ratios = RNG.normal(rise, 1.5, count)
        columns[f"{side}_logps"] = columns[f"ref_{side}_logps"] + log_ratios
        columns[f"{side}_reward"] = 0.1 * log_ratios
    columns |= changed
    assert set(columns) == set(FIELDS)
    return [
        dict(zip(columns, map(float, row), strict=True))
        for row in zip(*columns.values(), strict=True)
    ]


def by_name(*args, **kwargs):
    found = diagnose(*args, **kwargs)
    assert [one.name for one in found] == list(DIAGNOSTICS)
    return {one.name: one for one in found}


def fires(*args, **kwargs):
    return {name for name, one in by_name(*args, **kwargs).items() if one.fires}


def test_a_summary_is_that_of_numpy():
    rows = table()
    found = summary_of_pairs(rows)
    column = {name: np.array([row[name] for row in rows]) for name in FIELDS}
    margins = column["chosen_reward"] - column["rejected_reward"]
    gaps = column["chosen_tokens"] - column["rejected_tokens"]
    chosen = column["chosen_logps"] - column["ref_chosen_logps"]
    rejected = column["rejected_logps"] - column["ref_rejected_logps"]
    both = np.concatenate
    label = both([np.ones(400), -np.ones(400)])

    def correlation(first, second):
        return np.corrcoef(first, second)[0, 1]

    margin, gap = both([margins, -margins]), both([gaps, -gaps])
    assert (found.pairs, found.chosen_count) == (400, 400)
    numbers = {
        "chosen_log_ratio": chosen.mean(),
        "chosen_log_ratio_std": chosen.std(ddof=1),
        "chosen_tokens": column["chosen_tokens"].mean(),
        "kept_mass": np.minimum(1, np.exp(both([chosen, rejected]))).mean(),
        "longer_chosen": np.heaviside(gaps, 0.5).mean(),
        "data_length_correlation": correlation(label, gap),
        "reward_length_correlation": correlation(margin, gap),
        "reward_label_correlation": correlation(margin, label),
        "saturated_pairs": (margins > math.log(99)).mean(),
    }
    for name, value in numbers.items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-9), name


def test_a_healthy_table_is_silent_and_each_fault_is_found():
    assert fires([], table()) == set()
    rows = table()
    for row in rows:
        row["chosen_logps"] -= 4.0
    assert fires([], rows) == {"likelihood displacement"}
    for row in rows:
        row["chosen_logps"] -= 8.0
        row["rejected_logps"] -= 12.0
    assert fires([], rows) == {"likelihood displacement", "KL drift"}
    tokens = RNG.integers(5, 30, 400)
    longer = np.where(RNG.random(400) < 0.8, tokens + 3, tokens - 3)
    assert "length bias of the data" in fires(
        [], table(chosen_tokens=longer, rejected_tokens=tokens)
    )
    rows = table()
    for row in rows:
        gap = row["chosen_tokens"] - row["rejected_tokens"]
        row["chosen_reward"] = row["rejected_reward"] + 0.05 * gap + 0.1
    assert fires([], rows) == {"length bias of the reward"}
    assert fires([], table(chosen_reward=np.full(400, 9.0))) == {"saturated pairs"}


def test_rows_of_a_policy_without_reference_are_measured_as_far_as_they_go():
    rows = [row | {"ref_chosen_logps": None, "ref_rejected_logps": None} for row in table()]
    found = by_name([], rows)
    assert found["likelihood displacement"].value is None
    assert found["length bias of the reward"].value is not None


def test_pairs_of_one_ranking_make_nothing_surer():
    rows = [row | {"row": number // 10} for number, row in enumerate(table())]
    assert summary_of_pairs(rows).pairs == 40
    of_two = [row | {"dataset": str(number % 2)} for number, row in enumerate(rows)]
    assert summary_of_pairs(of_two).pairs == 80
    loose = [row | {"chosen_logps": row["chosen_logps"] - 2.2} for row in table()]
    assert "likelihood displacement" in fires([], loose)
    together = [row | {"row": number // 10} for number, row in enumerate(loose)]
    assert "likelihood displacement" not in fires([], together)  # 1.7 - 4 * 1.5 / sqrt(40) < ln 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chosen_reward": math.nan}, "'chosen_reward' of pair 2 is nan"),
        ({"rejected_tokens": None}, "pair 2 has no 'rejected_tokens'"),
        ({"rejected_logps": None}, "pair 2 has no 'rejected_logps'"),
    ],
)
def test_a_wrong_row_is_named(change, message):
    rows = table(5)
    rows[2] |= change
    with pytest.raises(ValueError, match=message):
        diagnose([], rows)
    with pytest.raises(ValueError, match="no pairs"):
        summary_of_pairs([])


def history(saturated):
    return [
        {
            "loss": 0.5,
            "step": 10,
            "epoch": 0.5,
            "rewards/margins": 2.0,
            "diagnostics/pairs": 400.0,
            "diagnostics/saturated_pairs": saturated,
            "diagnostics/chosen_count": 400.0,
            "diagnostics/chosen_log_ratio": -9.0,
            "diagnostics/chosen_log_ratio_std": 1.0,
        }
    ]


def test_held_out_pairs_say_more_than_logs_but_for_saturated_pairs():
    found = by_name(history(0.9), table())
    assert not found["likelihood displacement"].fires
    assert "held-out" in found["likelihood displacement"].text
    assert found["saturated pairs"].fires
    assert "likelihood displacement" in fires(history(0.9))
    # A loss without margins has no saturated pairs, whatever log-ratios a table has.
    logs = [{k: v for k, v in history(0.9)[0].items() if "saturated" not in k}]
    assert by_name(logs, table(chosen_reward=np.full(400, 9.0)))["saturated pairs"].value is None


def test_what_was_sampled_says_drift_and_a_lost_reward():
    estimate = {"kl": Estimate(8.0, 7.0, 9.0, 500), "reward": Estimate(1.0, 0.9, 1.1, 500)}
    better = {"reward": Estimate(0.5, 0.4, 0.6, 500)}
    found = by_name(history(0.0), table(), measured=estimate, start=better)
    assert found["KL drift"].fires  # log 400 = 5.99
    assert "KL of 8.0 nats" in found["KL drift"].text
    assert not found["over-optimisation"].fires
    assert found["over-optimisation"].value is not None
    found = by_name(history(0.0), table(), measured=estimate, start=better, training_pairs=60_000)
    assert not found["KL drift"].fires
    worse = {"reward": Estimate(1.5, 1.4, 1.6, 500)}  # 0.5 is more than 4 * 0.072
    found = by_name(history(0.0), table(), measured=estimate, start=worse)
    assert found["over-optimisation"].fires
    assert "reward of samples was best, 1.500, at step 0" in found["over-optimisation"].text


def test_a_table_and_a_log_of_one_evaluation_agree(tmp_path):
    """Of a real run: the pairs scored apart give what the last evaluation logged."""
    done = run(tmp_path, pairs(320), learning_rate=2e-3, max_steps=20, eval_steps=20)
    made = done.trainer
    reward = {}
    chosen, rejected = made.predict(made.eval_dataset).predictions
    reward["chosen"], reward["rejected"] = torch.tensor(chosen), torch.tensor(rejected)
    rows = [
        {
            # Of a log-ratio reward, with a reference at 0.
            **{f"{side}_reward": float(reward[side][row]) for side in reward},
            **{f"{side}_logps": float(reward[side][row]) / 0.3 for side in reward},
            **{f"ref_{side}_logps": 0.0 for side in reward},
            **{
                f"{side}_tokens": len(made.eval_dataset[row]["completion_ids"][place])
                for place, side in enumerate(reward)
            },
        }
        for row in range(len(chosen))
    ]
    found = summary_of_pairs(rows)
    logged = next(entry for entry in done.history if "eval_loss" in entry)
    names = ("chosen_log_ratio", "chosen_log_ratio_std", "kept_mass", "longer_chosen")
    names += ("reward_length_correlation", "data_length_correlation", "saturated_pairs")
    for name in (*names, "reward_label_correlation"):
        wanted = logged[f"eval_diagnostics/{name}"]
        assert getattr(found, name) == pytest.approx(wanted, rel=1e-4, abs=1e-6), name
