"""An evaluation as a whole: what is in its files, and that it repeats."""

import json

import pytest
from datasets import Dataset

from prefopt.data import WeightedDataset
from prefopt.evaluation.answers import SamplingPlan
from prefopt.evaluation.contests import first_answers
from prefopt.evaluation.judges import FunctionJudge
from prefopt.evaluation.policy import PolicyEvaluation, evaluate_policy, read_samples
from prefopt.evaluation.scoring import PolicyScorer
from prefopt.objective import parse_objective
from prefopt.training import reference as training_reference
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
    assert {"longer", "shorter", "start", "chosen_reward"} == set(record["data_baselines"])
    pairs = lines(tmp_path / "out" / "pairs.jsonl")
    assert [pair["row"] for pair in pairs] == list(range(8))
    for pair in pairs:
        log_ratio = pair["chosen_logps"] - pair["ref_chosen_logps"]
        assert pair["chosen_reward"] == pytest.approx(0.2 * log_ratio, rel=1e-5)
    right = [pair["chosen_reward"] > pair["rejected_reward"] for pair in pairs]
    assert record["metrics"]["accuracy"][0] == pytest.approx(sum(right) / 8)
    samples = lines(tmp_path / "out" / "samples.jsonl")
    assert len(samples) == 3 + 3 + 6
    assert all(sample["prompt"] == ROWS[sample["row"]]["prompt"] for sample in samples)
    of_data = [sample for sample in samples if sample.get("method") == "chosen"]
    assert samples[:3] == of_data
    for sample in of_data:
        assert sample["completion"] == ROWS[sample["row"]]["chosen"].strip()  # word by word
        assert (sample["temperature"], sample["truncated"]) == (None, False)
        assert sample["tokens"] == len(sample["completion"].split()) + 1  # and the EOS
    lengths = [len(sample["completion"]) for sample in of_data]
    assert [sample["reward"] for sample in of_data] == lengths
    assert record["data_baselines"]["chosen_reward"][0] == pytest.approx(sum(lengths) / 3)
    assert [(one.against, one.temperature) for one in made.win_rates] == [
        ("chosen", 0.0),
        ("start", 0.0),
        ("chosen", 1.0),
        ("start", 1.0),
    ]
    assert record["settings"]["judge"] == "characters"
    assert PolicyEvaluation.load(tmp_path / "out") == made


def test_the_same_seed_measures_the_same(scorer, tmp_path):
    first, again = (evaluate_policy(scorer, ROWS, plan=PLAN) for _ in range(2))
    assert first == again
    other = evaluate_policy(scorer, ROWS, plan=SamplingPlan(**vars(PLAN) | {"seed": 2}))
    assert other.pairs == first.pairs
    assert other.samples != first.samples


def test_equal_prompts_are_asked_once(scorer):
    rows = Dataset.from_list([ROWS[0], ROWS[1] | {"prompt": ROWS[0]["prompt"]}, ROWS[2]])
    plan = SamplingPlan((1.0,), max_new_tokens=3)
    assert [one.row for one in evaluate_policy(scorer, rows, plan=plan).samples] == [0, 2, 0, 2]


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


def test_the_start_answers_here_or_has_answered_before(scorer, tmp_path):
    start = PolicyScorer(tiny_model("llama", seed=2), config(tmp_path), None, tiny_tokenizer())
    evaluation = evaluate_policy(start, ROWS, plan=PLAN, objective=parse_objective("simpo"))
    evaluation.save(tmp_path / "start")
    before = first_answers(read_samples(tmp_path / "start" / "samples.jsonl"))
    here = evaluate_policy(scorer, ROWS, plan=PLAN, reward=characters)
    given = evaluate_policy(scorer, ROWS, plan=PLAN, reward=characters, start_answers=before)
    assert here.win_rates == given.win_rates
    # Each answer of ours against the start's, counted by hand.
    answers = first_answers(here.samples)
    for won in here.win_rates:
        if won.against == "start":
            wins = [
                (len(text) > len(before[key])) + 0.5 * (len(text) == len(before[key]))
                for key, text in answers.items()
                if key[1] == won.temperature
            ]
            assert won.rate.value == pytest.approx(sum(wins) / 3)


def test_a_judge_of_pairs_compares_and_rewards_nothing(scorer):
    class Longer:
        name = "longer"

        def preferences(self, prompts, first, second):
            return [
                0.5 + 0.5 * ((len(a) > len(b)) - (len(a) < len(b)))
                for a, b in zip(first, second, strict=True)
            ]

    made = evaluate_policy(scorer, ROWS, plan=PLAN, judge=Longer())
    by_reward = evaluate_policy(scorer, ROWS, plan=PLAN, reward=characters)
    assert "reward" not in made.metrics
    assert [one.rate for one in made.win_rates] == [one.rate for one in by_reward.win_rates]
    assert made.settings["judge"] == "longer"
    assert made.settings["reward_function"] is None


def test_prompts_without_room_for_an_answer_are_not_asked_and_said(tmp_path):
    model = tiny_model("llama", max_position_embeddings=24)
    short = PolicyScorer(model, config(tmp_path), None, tiny_tokenizer())
    lengths = [len(prompt.split()) for prompt in ROWS["prompt"]]
    room = sorted(lengths)[4]  # of the longer prompts, some leave none
    plan = SamplingPlan(max_new_tokens=24 - room)
    made = evaluate_policy(short, ROWS, plan=plan)
    asked = {sample.row for sample in made.samples}
    assert asked == {row for row, length in enumerate(lengths) if length <= room}
    left = len(ROWS) - len(asked)
    assert f"answers: {left} of 8 prompts leave the model no room" in made.notes[-1]
    with pytest.raises(ValueError, match="no prompt to ask"):
        evaluate_policy(short, ROWS, plan=SamplingPlan(max_new_tokens=24))


def test_the_reference_is_loaded_once_for_kl_and_answers(tmp_path, monkeypatch):
    start = tiny_model("llama", seed=2)
    start.save_pretrained(tmp_path / "start")
    tiny_tokenizer().save_pretrained(tmp_path / "start")
    scorer = PolicyScorer(
        tiny_model("llama"), config(tmp_path), str(tmp_path / "start"), tiny_tokenizer()
    )
    scorer.score(scorer.prepare(ROWS))  # what the store has is not computed again
    loaded = []
    original = training_reference.load_reference
    monkeypatch.setattr(
        training_reference,
        "load_reference",
        lambda *given: loaded.append(given) or original(*given),
    )
    evaluate_policy(scorer, ROWS, plan=PLAN, reward=characters)
    assert len(loaded) == 1


def test_answers_of_another_start_are_refused(scorer, tmp_path):
    with pytest.raises(ValueError, match="no answer to the prompt of row"):
        evaluate_policy(scorer, ROWS, plan=PLAN, reward=characters, start_answers={})
    (tmp_path / "samples.jsonl").write_text('{"prompt": "?"}\n')
    with pytest.raises(ValueError, match="holds no answers"):
        read_samples(tmp_path / "samples.jsonl")


def test_a_start_answers_once_and_a_judge_reads_an_answer_once(scorer, monkeypatch):
    read = []

    def counting(prompts: list[str], completions: list[str]) -> list[float]:
        read.extend(zip(prompts, completions, strict=True))
        return characters(prompts, completions)

    first = evaluate_policy(scorer, ROWS, plan=PLAN, judge=FunctionJudge(counting, "characters"))
    assert len(read) == len(set(read))
    asked = []
    monkeypatch.setattr(
        "prefopt.evaluation.policy.generate", lambda model, *given, **options: asked.append(model)
    )
    again = evaluate_policy(scorer, ROWS, plan=PLAN, judge=FunctionJudge(counting, "characters"))
    assert again == first
    assert asked == []


def test_missing_verdicts_are_noted(scorer):
    class Silent:
        name = "silent"

        def preferences(self, prompts, first, second):
            return [None, *[1.0] * (len(prompts) - 1)]

    plan = SamplingPlan((1.0,), max_prompts=3, max_new_tokens=4)
    made = evaluate_policy(scorer, ROWS, plan=plan, judge=Silent())
    assert [it.without_verdict for it in made.win_rates] == [1, 1]
    note = "wins over chosen at temperature 1: no verdict on 1 prompts, which do not count"
    assert note in made.notes
