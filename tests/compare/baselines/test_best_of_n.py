"""Best-of-N: what is picked, and what is measured of it."""

import json
import math
import random

import pytest

from prefopt.compare.baselines.best_of_n import best_of_n, kl_bound, pick_best
from prefopt.evaluation.answers import SampledAnswer

WORDS = " i loved the music ."


@pytest.fixture
def make_options(tmp_path, toy_files):
    """Write N + 1 answers to each prompt as ``prefopt eval`` does; return options, and these."""

    def make(n=4, prompts=30, **more):
        rng = random.Random(0)
        rows = [
            {
                "row": row,
                "prompt": f"p{row}",
                "completion": f"{WORDS} {row} {draw}",
                "temperature": temperature,
                "reward": rng.gauss(0, 1),
                "tokens": rng.randrange(5, 20),
                "truncated": rng.random() < 0.2,
            }
            for temperature in (1.0, 0.0)
            for row in range(0, 2 * prompts, 2)
            for draw in range(n + 1)
        ]
        of_data = [
            {**rows[0], "row": row, "completion": f"{WORDS} data", "temperature": None}
            | {"method": "chosen"}
            for row in range(0, 2 * prompts, 2)
        ]
        (tmp_path / "samples").mkdir(exist_ok=True)
        text = "".join(json.dumps(row) + "\n" for row in (*of_data, *rows))
        (tmp_path / "samples" / "samples.jsonl").write_text(text)
        options = {
            "model": "start",
            "dataset": toy_files["held_out"],
            "samples": "samples",
            "output_dir": str(tmp_path / "evaluation"),
            "n": n,
            "by": "reward",
        }
        warm = [row for row in rows if row["temperature"] == 1]
        return {**options, **more}, [warm[at + 1 : at + 1 + n] for at in range(0, len(warm), n + 1)]

    return make


def found_in(folder):
    found = json.loads((folder / "evaluation.json").read_text())
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    return found, [row for row in samples if row["method"] != "chosen"]


def test_the_reward_is_the_mean_over_prompts_of_the_largest_of_n(make_options, tmp_path):
    options, groups = make_options(n=4, prompts=30)
    best_of_n(options)
    found, samples = found_in(tmp_path / "evaluation")
    largest = [max(row["reward"] for row in group) for group in groups]
    value, low, high, size = found["metrics"]["reward"]
    assert value == pytest.approx(sum(largest) / 30, rel=1e-12)
    assert low < value < high
    assert size == 30
    assert [row["reward"] for row in samples] == largest
    tokens, truncated = (found["metrics"][name][0] for name in ("completion_tokens", "truncated"))
    assert tokens == pytest.approx(sum(row["tokens"] for row in samples) / 30)
    assert truncated == pytest.approx(sum(row["truncated"] for row in samples) / 30)


def test_a_judge_compares_with_the_data_and_with_an_answer_that_was_not_picked_from(
    make_options, tmp_path
):
    judge = tmp_path / "judge.py"
    judge.write_text(
        "def last(prompts, completions):\n"
        "    return [5 if c.endswith('data') else int(c[-1]) for c in completions]"
    )
    options, _ = make_options(n=3, by="judge", judge=f"function:{judge}:last")
    best_of_n(options)
    found, samples = found_in(tmp_path / "evaluation")
    assert [row["completion"][-1] for row in samples] == ["3"] * 30
    won = {one["against"]: (one["rate"][0], one["temperature"]) for one in found["win_rates"]}
    assert won == {"chosen": (0.0, 1.0), "start": (1.0, 1.0)}


def test_the_kl_is_the_bound(make_options, tmp_path):
    options, _ = make_options(n=8)
    best_of_n(options)
    found, _ = found_in(tmp_path / "evaluation")
    assert found["metrics"]["kl"] == [pytest.approx(math.log(8) - 7 / 8)] * 3 + [30]


def test_the_bound_is_the_kl_of_a_start_that_never_repeats_itself():
    """Of equally likely answers the k-th best of ``size`` has (k^N - (k-1)^N) / size^N."""
    size, n = 20_000, 5
    shares = [((k / size) ** n - ((k - 1) / size) ** n) for k in range(1, size + 1)]
    kl = sum(share * math.log(share * size) for share in shares if share)
    assert kl == pytest.approx(kl_bound(n), abs=1e-3)
    assert kl <= kl_bound(n)


def test_a_judge_may_pick_in_place_of_the_reward(make_options, tmp_path):
    judge = tmp_path / "judge.py"
    judge.write_text(
        "def last(prompts, completions):\n    return [int(c[-1]) for c in completions]"
    )
    rewarded = {"reward": f"{judge}:last", "judge": f"function:{judge}:last"}
    options, groups = make_options(n=3, by="judge", **rewarded)
    (tmp_path / "samples" / "samples.jsonl").write_text(
        (tmp_path / "samples" / "samples.jsonl").read_text().replace("data", "0")
    )
    best_of_n(options)
    found, _ = found_in(tmp_path / "evaluation")
    assert found["metrics"]["reward"][0] == pytest.approx(
        sum(its[2]["reward"] for its in groups) / 30
    )


def test_a_judge_of_pairs_and_missing_answers_are_errors(make_options, tmp_path):
    judge = tmp_path / "judge.py"
    judge.write_text("def prefer(prompts, first, second):\n    return [1] * len(prompts)")
    options, _ = make_options(by="judge", judge=f"function:{judge}:prefer")
    with pytest.raises(ValueError, match="best-of-N needs a judge that scores"):
        best_of_n(options)
    options, _ = make_options(n=4)
    with pytest.raises(ValueError, match=r"needs 6 answers .*: 5 to that of row 0"):
        best_of_n({**options, "n": 5})


def test_without_rewards_nothing_is_picked_by_reward(make_options, tmp_path):
    options, _ = make_options()
    path = tmp_path / "samples" / "samples.jsonl"
    rows = [{**json.loads(line), "reward": None} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="the answers were not rewarded"):
        best_of_n(options)


def test_of_equals_the_first_is_picked():
    def answer(row, text):
        return SampledAnswer(row, "p", text, 1.0, None, 1, False)

    samples = [answer(0, "a"), answer(0, "b"), answer(3, "c")]
    assert [one.completion for one in pick_best(samples, [1.0, 1.0, 0.0])] == ["a", "c"]
