"""Log-probs of a dataset's completions: those of training, whatever the model and the rows."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from prefopt.evaluation import implicit_rewards, sequence_kl
from prefopt.evaluation.pairs import evaluate_pairs
from prefopt.evaluation.scoring import PolicyScorer, known_start
from tests.models import move, tiny_model, tiny_rows, tiny_tokenizer
from tests.quantisers import SIZES, kinds, load, save_base
from tests.runs import config, trainer


def scorer_of(folder, model=None, ref_model=None, **options) -> PolicyScorer:
    model = tiny_model("llama") if model is None else model
    return PolicyScorer(model, config(folder, **options), ref_model, tiny_tokenizer())


def saved(model, folder) -> str:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def plain_logps(model, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """Return the log-prob of each token of a completion, by transformers alone."""
    with torch.no_grad():
        # Nothing is predicted from the last token; int8 layers would see it in the others.
        table = model(torch.tensor([prompt + completion[:-1]])).logits[0].double().log_softmax(-1)
    first = len(prompt) - 1
    return torch.stack([table[first + place, token] for place, token in enumerate(completion)])


@pytest.mark.parametrize("kind", ["paired", "unpaired", "ranked"])
def test_every_completion_has_the_log_probs_of_the_plain_forward(tmp_path, kind):
    policy, start = tiny_model("llama", seed=1), tiny_model("llama", seed=2)
    scorer = scorer_of(tmp_path, policy, start)
    prepared = scorer.prepare(tiny_rows(6, kind))
    scores = scorer.score(prepared)
    number = 0
    for place, row in enumerate(prepared):
        for ids in row["completion_ids"]:
            for model, logps, tokens in (
                (policy, scores.logps, scores.per_token_logps),
                (start, scores.ref_logps, scores.ref_per_token_logps),
            ):
                expected = plain_logps(model, row["prompt_ids"], ids)
                torch.testing.assert_close(tokens[number].double(), expected, rtol=0, atol=1e-4)
                assert logps[number].item() == pytest.approx(expected.sum().item(), abs=1e-3)
            assert scores.places[number] == place
            assert scores.lengths[number] == len(ids)
            number += 1
    assert len(scores.logps) == number
    torch.testing.assert_close(scores.log_ratios, scores.logps - scores.ref_logps)
    pairs = {"paired": 6, "unpaired": 0}.get(kind)
    if pairs is None:
        pairs = sum(len(ids) * (len(ids) - 1) // 2 for ids in prepared["completion_ids"])
    assert len(scores.pair_places) == pairs


@pytest.mark.parametrize(
    "options",
    [
        {"loss_type": "dpo", "beta": 0.3},
        {"loss_type": "ipo", "beta": 0.2},
        {"loss_type": "simpo"},
        {"loss_type": "orpo"},
        {"loss_type": "kto"},
        {"loss_type": "chi_po + 0.2*sft"},
        {"loss_type": "dpo", "length_normalize": True},
        {"loss_type": "dpo", "ld_alpha": 0.5},
        {"loss_type": "dpo", "f_divergence_type": "js_divergence"},
    ],
    ids=str,
)
def test_rewards_are_those_of_the_trainers_evaluation(tmp_path, options):
    held_out = tiny_rows(12, seed=5)
    run = trainer(tmp_path, tiny_rows(16), eval_dataset=held_out, **options)
    run.train()
    theirs = run.evaluate()
    start = tiny_model("llama") if run.objective.needs_reference else None
    scorer = scorer_of(tmp_path, run.model, start, **options)
    scores = scorer.score(scorer.prepare(held_out))
    rewards = implicit_rewards(run.objective, scores.pairs(), scores.ref_pairs())
    found = evaluate_pairs(scores.pairs(), scores.ref_pairs(), objective=run.objective)
    ours = {"chosen": rewards.chosen.mean(), "rejected": rewards.rejected.mean()}
    ours["margins"] = ours["chosen"] - ours["rejected"]
    assert abs(ours["margins"].item()) > 1e-3  # else the test would see nothing
    for name, value in ours.items():
        if f"eval_rewards/{name}" in theirs:  # kto's are means over completions too
            assert theirs[f"eval_rewards/{name}"] == pytest.approx(value.item(), abs=2e-5)
    accuracy = (rewards.chosen > rewards.rejected).double().mean().item()
    assert found.metrics["accuracy"].value == pytest.approx(accuracy)  # there are no ties
    if "eval_rewards/accuracies" in theirs:
        assert theirs["eval_rewards/accuracies"] == pytest.approx(accuracy)
    assert theirs["eval_logps/chosen"] == pytest.approx(
        scores.pairs().chosen.mean().item(), abs=1e-3
    )


def test_rankings_are_compared_pair_by_pair_as_in_training(tmp_path):
    held_out = tiny_rows(10, "ranked", seed=5)
    run = trainer(tmp_path, tiny_rows(12, "ranked"), eval_dataset=held_out)
    run.train()
    theirs = run.evaluate()
    scorer = scorer_of(tmp_path, run.model, tiny_model("llama"))
    scores = scorer.score(scorer.prepare(held_out))
    found = evaluate_pairs(
        scores.pairs(), scores.ref_pairs(), objective=run.objective, rows=scores.pair_places
    )
    assert found.metrics["accuracy"].value == pytest.approx(theirs["eval_rewards/accuracies"])
    margin = (found.rewards.chosen - found.rewards.rejected).mean().item()
    assert margin == pytest.approx(theirs["eval_rewards/margins"], abs=1e-5)
    assert found.metrics["accuracy"].size == 10  # rows, whose pairs are not independent


def test_an_adapter_is_scored_against_its_base_and_the_store_knows_the_base(tmp_path, scored):
    base = saved(tiny_model("llama"), tmp_path / "base")
    held_out = tiny_rows(8, seed=3)
    run = trainer(
        tmp_path / "run",
        tiny_rows(8),
        base,
        eval_dataset=held_out,
        peft_config=LoraConfig(r=4, target_modules="all-linear"),
        learning_rate=0.05,
        loss_type="dpo",
    )
    run.train()
    theirs = run.evaluate()
    run.save_model(str(tmp_path / "run"))
    adapter = str(tmp_path / "run")
    assert known_start(adapter, config(tmp_path)) == base
    scored.clear()
    scorer = PolicyScorer(adapter, config(tmp_path), known_start(adapter, config(tmp_path)))
    scores = scorer.score(scorer.prepare(held_out))
    assert sum(scored) == 16  # the policy; what the reference gives, training has computed
    rewards = implicit_rewards(run.objective, scores.pairs(), scores.ref_pairs())
    assert rewards.chosen.mean().item() == pytest.approx(theirs["eval_rewards/chosen"], abs=1e-5)
    assert scorer.reference_name == base

    # A second run against the same start neither scores nor loads it.
    scored.clear()
    again = PolicyScorer(adapter, config(tmp_path), base)
    torch.testing.assert_close(again.score(again.prepare(held_out)).ref_logps, scores.ref_logps)
    assert sum(scored) == 16


def test_a_start_scored_against_itself_is_scored_once(tmp_path, monkeypatch):
    start = saved(tiny_model("llama"), tmp_path / "start")
    scorer = PolicyScorer(start, config(tmp_path), start)
    monkeypatch.setattr(scorer, "_of_policy", None)  # would be called for another policy
    scores = scorer.score(scorer.prepare(tiny_rows(4)))
    assert torch.equal(scores.logps, scores.ref_logps)
    assert (scores.logps < -1).all()
    with torch.no_grad():
        scorer.model.get_output_embeddings().weight.mul_(2)
    with pytest.raises(TypeError, match="not callable"):
        scorer.score(scorer.prepare(tiny_rows(4)))


def test_the_start_of_a_model_is_what_its_folder_says(tmp_path):
    assert known_start("some/id", config(tmp_path)) is None
    assert known_start(saved(tiny_model("llama"), tmp_path / "whole"), config(tmp_path)) is None
    record = {"loaded_from": {"name_or_path": "org/start"}}
    (tmp_path / "whole" / "prefopt_reference.json").write_text(json.dumps(record))
    assert known_start(str(tmp_path / "whole"), config(tmp_path)) == "org/start"
    # One that moved, or was made in memory, was loaded from nowhere: of an adapter, its base.
    (tmp_path / "adapter").mkdir()
    fields = {"peft_type": "LORA", "base_model_name_or_path": "org/base"}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(fields))
    (tmp_path / "adapter" / "prefopt_reference.json").write_text('{"loaded_from": {}}')
    assert known_start(str(tmp_path / "adapter"), config(tmp_path)) == "org/base"


def test_masked_tokens_do_not_count(tmp_path):
    rows = Dataset.from_list(
        [
            {
                "prompt_ids": [5, 6, 7],
                "chosen_ids": [8, 9, 10],
                "rejected_ids": [11, 12],
                "chosen_mask": [True, False, True],
                "rejected_mask": [True, True],
            }
        ]
        * 2
    )
    model = tiny_model("llama")
    scorer = scorer_of(tmp_path, model)
    scores = scorer.score(scorer.prepare(rows))
    whole = plain_logps(model, [5, 6, 7], [8, 9, 10])
    assert scores.lengths.tolist() == [2, 2, 2, 2]
    assert scores.logps[0].item() == pytest.approx((whole[0] + whole[2]).item(), abs=1e-4)
    assert scores.ref_logps is None
    assert scores.ref_pairs() is None
    with pytest.raises(ValueError, match="need a reference"):
        _ = scores.log_ratios


@pytest.mark.parametrize("name", ["llama", "mamba"])  # shared prefixes, and padded rows
def test_the_kl_along_samples_is_that_of_plain_forwards(tmp_path, name):
    policy, start = tiny_model(name, seed=1), tiny_model(name, seed=2)
    scorer = scorer_of(tmp_path, policy, start)
    generator = np.random.default_rng(0)
    prompts = [generator.integers(3, 90, n).tolist() for n in (4, 9, 6) for _ in range(3)]
    completions = [generator.integers(3, 90, n).tolist() for n in (5, 1, 8, 2, 7, 3, 4, 6, 2)]
    expected = sequence_kl(policy, start, prompts, completions)
    assert expected.min() > 0.01
    torch.testing.assert_close(
        scorer.divergences(prompts, completions), expected, rtol=1e-4, atol=1e-4
    )
    same = scorer_of(tmp_path, policy, policy)
    assert same.divergences(prompts, completions).abs().max() < 1e-4


def test_the_kl_of_layouts_that_differ(tmp_path):
    policy, start = tiny_model("llama", seed=1), tiny_model("mamba", seed=2)
    prompts, completions = [[4, 5], [4, 5], [9, 8, 7]], [[6, 2], [7, 8, 2], [3, 2]]
    for one, other in ((policy, start), (start, policy)):
        torch.testing.assert_close(
            scorer_of(tmp_path, one, other).divergences(prompts, completions),
            sequence_kl(one, other, prompts, completions),
            rtol=1e-4,
            atol=1e-4,
        )


def test_a_kl_needs_a_reference(tmp_path):
    with pytest.raises(ValueError, match="needs a reference"):
        scorer_of(tmp_path).divergences([[4]], [[5]])


def test_the_reference_can_be_asked_and_is_told_from_others(tmp_path):
    start = move(tiny_model("llama"))
    scorer = scorer_of(tmp_path, tiny_model("llama"), start)
    with scorer.reference_model() as model:
        assert model is start
    scorer.score(scorer.prepare(tiny_rows(4)))
    assert list(scorer.store_folder.iterdir())  # what was scored is there
    other = scorer_of(tmp_path, tiny_model("llama"), tiny_model("llama"))
    assert len({scorer.reference_mark, other.reference_mark, None}) == 3
    alone = scorer_of(tmp_path)
    assert (alone.reference_mark, alone.store_folder) == (None, None)
    with pytest.raises(ValueError, match="needs a reference"), alone.reference_model():
        pass


def test_the_policy_is_left_as_it_was(tmp_path):
    model = tiny_model("llama").train()
    weights = {name: weight.clone() for name, weight in model.named_parameters()}
    needed = [weight.requires_grad for weight in model.parameters()]
    scorer = scorer_of(tmp_path, model, move(tiny_model("llama")))
    scorer.score(scorer.prepare(tiny_rows(4)))
    scorer.divergences([[4, 5]], [[6, 2]])
    assert model.training
    assert [weight.requires_grad for weight in model.parameters()] == needed
    assert all(torch.equal(weights[name], weight) for name, weight in model.named_parameters())


@pytest.mark.parametrize("kind", kinds(quick=("nf4",)))
def test_a_quantised_policy_is_scored_as_it_computes_against_a_whole_start(tmp_path, kind):
    folder = save_base(tmp_path / "base")
    tiny_tokenizer().save_pretrained(folder)
    quantised = load(folder, kind)
    scorer = scorer_of(tmp_path, quantised, folder)
    prepared = scorer.prepare(tiny_rows(3))
    scores = scorer.score(prepared)
    whole = tiny_model("llama", **SIZES)
    ids = [(row["prompt_ids"], its) for row in prepared for its in row["completion_ids"]]
    for number, (prompt, completion) in enumerate(ids):
        with scorer.scorer.evaluating():  # 8-bit layers compute as they are trained
            expected = plain_logps(quantised, prompt, completion)
        torch.testing.assert_close(
            scores.per_token_logps[number].double(), expected, rtol=0, atol=1e-4
        )
        start = plain_logps(whole, prompt, completion)
        torch.testing.assert_close(
            scores.ref_per_token_logps[number].double(), start, rtol=0, atol=1e-4
        )
    assert scores.log_ratios.abs().max() > 1e-2  # quantisation is seen
