"""An evaluation as a whole: what is in its files, and that it repeats."""

import json

import pytest
from datasets import Dataset

from prefopt.data import WeightedDataset
from prefopt.evaluation.answers import SamplingPlan
from prefopt.evaluation.policy import PolicyEvaluation, evaluate_policy
from prefopt.evaluation.scoring import PolicyScorer
from prefopt.objective import parse_objective
from tests.models import tiny_model, tiny_rows, tiny_tokenizer
from tests.runs import config

ROWS = tiny_rows(8, seed=4)
PLAN = SamplingPlan((0.0, 1.0), samples_per_prompt=2, max_prompts=3, max_new_tokens=4, seed=1)


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def characters(prompts: list[str], completions: list[str]) -> list[float]:
    assert all(prompt.startswith("w") for prompt in prompts)  # as the data have them
    return [float(len(text)) for text in completions]


@pytest.fixture
def scorer(tmp_path) -> PolicyScorer:
    policy, start = tiny_model("llama", seed=1), tiny_model("llama", seed=2)
    return PolicyScorer(policy, config(tmp_path), start, tiny_tokenizer())


def test_the_files_hold_what_was_measured(scorer, tmp_path):
    made = evaluate_policy(
        scorer,
        ROWS,
        objective=parse_objective("ipo", options={"beta": 0.2}),
        plan=PLAN,
        reward=characters,
        model_name="mine",
    )
    made.save(tmp_path / "out")
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert record["model"] == "mine"
    assert record["metrics"]["accuracy"][3] == 8
    assert record["settings"]["reward"] == "ipo"
    assert record["settings"]["options"][0]["beta"] == 0.2
    assert {"longer", "shorter", "start", "chosen_reward", "rejected_reward"} == set(
        record["data_baselines"]
    )
    pairs = lines(tmp_path / "out" / "pairs.jsonl")
    assert [pair["row"] for pair in pairs] == list(range(8))
    for pair in pairs:
        log_ratio = pair["chosen_logps"] - pair["ref_chosen_logps"]
        assert pair["chosen_reward"] == pytest.approx(0.2 * log_ratio, rel=1e-5)
    right = [pair["chosen_reward"] > pair["rejected_reward"] for pair in pairs]
    assert record["metrics"]["accuracy"][0] == pytest.approx(sum(right) / 8)
    samples = lines(tmp_path / "out" / "samples.jsonl")
    assert len(samples) == 3 + 6
    assert all(sample["prompt"] == ROWS[sample["row"]]["prompt"] for sample in samples)
    assert PolicyEvaluation.load(tmp_path / "out") == made
    # The data's own answers end with an EOS that is no text.
    lengths = [len(text) for text in ROWS["chosen"]]
    assert made.data_baselines["chosen_reward"].value == pytest.approx(sum(lengths) / 8, abs=1)


def test_the_same_seed_measures_the_same(scorer, tmp_path):
    first, again = (evaluate_policy(scorer, ROWS, plan=PLAN) for _ in range(2))
    assert first == again
    other = evaluate_policy(scorer, ROWS, plan=SamplingPlan(**vars(PLAN) | {"seed": 2}))
    assert other.pairs == first.pairs
    assert other.samples != first.samples


def test_equal_prompts_are_asked_once(scorer):
    rows = Dataset.from_list([ROWS[0], ROWS[1] | {"prompt": ROWS[0]["prompt"]}, ROWS[2]])
    plan = SamplingPlan((1.0,), max_new_tokens=3)
    assert [one.row for one in evaluate_policy(scorer, rows, plan=plan).samples] == [0, 2]


def test_pairs_of_several_datasets_say_which_they_are_of(scorer):
    parts = [WeightedDataset(ROWS, name="a"), WeightedDataset(tiny_rows(3, "ranked"), name="b")]
    plan = SamplingPlan((1.0,), max_prompts=None, max_new_tokens=3)
    made = evaluate_policy(scorer, parts, plan=plan)
    assert {pair.dataset for pair in made.pairs} == {"held-out: a", "held-out: b"}
    assert made.dataset == "held-out: a, held-out: b"
    assert made.metrics["accuracy"].size == 11
    assert len({sample.prompt for sample in made.samples}) == 11


def test_rows_with_a_label_are_counted_and_said(scorer):
    made = evaluate_policy(scorer, [ROWS, tiny_rows(3, "unpaired")])
    assert made.metrics["accuracy"].size == 8
    assert made.samples == ()
    assert "3 rows have a label and no pair" in made.notes[-1]
    with pytest.raises(ValueError, match="at least 2 rows, got 0"):
        evaluate_policy(scorer, tiny_rows(4, "unpaired"))
