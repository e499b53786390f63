"""Statistics of tokens equal those of full logits, for each completion."""

import numpy as np
import pytest
import torch

from prefopt.engine import Scorer
from prefopt.engine.logprobs import LMHead, chunked_logps
from prefopt.engine.token_statistics import StatisticsCollector, TokenStatistics
from tests.engine.trees import assert_equal_gradients, batch_of, gradients, trees
from tests.models import tiny_model, tiny_rows
from tests.runs import steps, trainer

EVERY = TokenStatistics._fields


def plain_statistics(model, examples):
    """Sums over each completion from the model's own full logits, as TRL defines the values."""
    sums = []
    for example in examples:
        for completion in example.completion_ids:
            text = torch.tensor(np.concatenate([example.prompt_ids, completion]))[None]
            logits = model(input_ids=text).logits[0, len(example.prompt_ids) - 1 : -1].detach()
            entropies = torch.distributions.Categorical(logits=logits).entropy()
            hits = logits.argmax(-1) == text[0, len(example.prompt_ids) :]
            log_collisions = logits.softmax(-1).square().sum(-1).log()
            of_tokens = (entropies, hits, logits.mean(-1), log_collisions)
            sums.append([values.sum() for values in of_tokens])
    return torch.tensor(sums).T


@pytest.mark.parametrize("layout", ["shared_prefix", "padded"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "cohere"])
def test_they_equal_those_of_full_logits(name, layout):
    model = tiny_model(name)
    examples = trees()
    wanted = plain_statistics(model, examples)
    scores = Scorer(model, layout).score(batch_of(examples, layout), statistics=EVERY)
    torch.testing.assert_close(torch.stack(scores.statistics), wanted, rtol=1e-5, atol=1e-5)
    assert not any(values.requires_grad for values in scores.statistics)


def test_hits_are_counted():
    model = tiny_model("llama")
    example = trees()[0]
    best = model(torch.tensor(example.prompt_ids)[None]).logits[0, -1].argmax()
    example.completion_ids[0][0] = example.completion_ids[1][0] = int(best)  # shared by both
    batch = batch_of([example], "shared_prefix")
    hits = Scorer(model).score(batch, statistics=EVERY).statistics.hits
    assert hits.tolist() == plain_statistics(model, [example])[1].tolist()
    assert (hits >= 1).all()


def test_without_being_asked_nothing_is_taken(monkeypatch):
    monkeypatch.setattr(StatisticsCollector, "add", lambda *_: pytest.fail("taken"))
    assert Scorer(tiny_model("llama")).score(batch_of(trees(), "padded")).statistics is None


@pytest.mark.parametrize("name", EVERY)
def test_one_is_taken_without_the_others(name):
    model = tiny_model("llama")
    batch = batch_of(trees(), "padded")
    taken = Scorer(model, "padded").score(batch, statistics=[name]).statistics
    wanted = plain_statistics(model, trees())[EVERY.index(name)]
    torch.testing.assert_close(getattr(taken, name), wanted, rtol=1e-5, atol=1e-5)
    assert [field for field in EVERY if getattr(taken, field) is not None] == [name]


def test_an_unknown_one_is_an_error():
    with pytest.raises(ValueError, match="no statistic is called 'entropy'; there is entropies"):
        StatisticsCollector(["entropy"])


def test_collisions_of_a_uniform_and_of_a_certain_prediction():
    # Two draws from V equal tokens are the same with probability 1 / V; from one token, always.
    logits = torch.stack([torch.zeros(4), torch.tensor([900.0, 0.0, 0.0, 0.0])])
    collector = StatisticsCollector(["log_collisions"])
    collector.add(logits, logits.logsumexp(-1), torch.zeros(2, dtype=torch.long), 2)
    found = collector.summed(torch.arange(2), torch.arange(2), 2).log_collisions
    torch.testing.assert_close(found, torch.tensor([-1.3862943611198906, 0.0]))


def test_log_probs_and_gradients_are_the_same_with_them():
    model = tiny_model("llama")
    scorer = Scorer(model)
    batch = batch_of(trees(), scorer.layout)
    wanted = gradients(model, scorer.score(batch).logps)
    ours = gradients(model, scorer.score(batch, statistics=EVERY).logps)
    assert_equal_gradients(ours, wanted)


def test_an_adapted_head_gives_them():
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(
        tiny_model("llama"), peft.LoraConfig(target_modules=["lm_head"], r=2)
    )
    wanted = plain_statistics(model, trees())
    scores = Scorer(model).score(batch_of(trees(), "shared_prefix"), statistics=EVERY)
    torch.testing.assert_close(torch.stack(scores.statistics), wanted, rtol=1e-5, atol=1e-5)


def test_chunks_computed_again_in_the_backward_pass_are_not_taken_again():
    head = LMHead(torch.nn.Sequential(torch.nn.Linear(8, 30)))  # not bare: checkpointed
    collector = StatisticsCollector(EVERY)
    hidden = torch.randn(5, 8, requires_grad=True)
    head.logps(hidden, torch.arange(5), collector).sum().backward()
    assert [len(chunks) for chunks in collector._chunks.values()] == [1] * len(EVERY)


def test_chunks_do_not_matter():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(50, 8, generator=generator)
    weight = torch.randn(30, 8, generator=generator, requires_grad=True)
    targets = torch.randint(0, 30, (50,), generator=generator)
    found = []
    for rows, kept in ((7, 0), (7, 20), (64, 64)):
        collector = StatisticsCollector(EVERY)
        chunked_logps(
            hidden, weight, targets, chunk_rows=rows, stored_rows=kept, collector=collector
        ).sum().backward()
        found.append(collector.summed(torch.arange(50), torch.zeros(50, dtype=torch.long), 1))
    for one in found[1:]:
        torch.testing.assert_close(torch.stack(one), torch.stack(found[0]), rtol=1e-6, atol=1e-5)


def test_a_batch_that_predicts_nothing_has_statistics_of_zero():
    nothing = torch.zeros(0, dtype=torch.long)
    summed = StatisticsCollector().summed(nothing, nothing, 2)
    assert summed.entropies.tolist() == [0, 0]


# In training --------------------------------------------------------------------------------------

NAMES = {"entropy", "mean_token_accuracy", "logits/chosen", "logits/rejected"}


def logged(folder, rows, **options):
    trained = trainer(folder, rows, max_steps=1, per_device_train_batch_size=8, **options)
    trained.train()
    return steps(trained)[0]


def test_the_trainer_logs_them_only_when_asked(tmp_path):
    assert not NAMES & set(logged(tmp_path, tiny_rows(8)))
    assert set(logged(tmp_path, tiny_rows(8), log_token_metrics=True)) >= NAMES


def test_they_are_means_over_completion_tokens_as_trl_logs_them(tmp_path):
    rows = tiny_rows(8)
    found = logged(tmp_path, rows, log_token_metrics=True)
    sides = {"chosen": [], "rejected": []}
    model = tiny_model("llama")
    for row in rows:
        prompt = [int(word[1:]) for word in row["prompt"].split()]
        for side, values in sides.items():
            text = prompt + [int(word[1:]) for word in row[side].split()] + [2]
            logits = model(torch.tensor([text])).logits[0, len(prompt) - 1 : -1].detach()
            targets = torch.tensor(text[len(prompt) :])
            entropies = torch.distributions.Categorical(logits=logits).entropy()
            hits = (logits.argmax(-1) == targets).float()
            values.append(torch.stack([entropies, hits, logits.mean(-1)]))
    chosen, rejected = (torch.cat(values, dim=1) for values in sides.values())
    every = torch.cat([chosen, rejected], dim=1)
    assert found["entropy"] == pytest.approx(float(every[0].mean()), rel=1e-5)
    assert found["mean_token_accuracy"] == pytest.approx(float(chosen[1].mean()))
    assert found["logits/chosen"] == pytest.approx(float(chosen[2].mean()), abs=1e-6)
    assert found["logits/rejected"] == pytest.approx(float(rejected[2].mean()), abs=1e-6)


def test_accumulation_and_layout_do_not_change_them(tmp_path):
    wanted = logged(tmp_path, tiny_rows(8), log_token_metrics=True)
    for options in (
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
        {"layout": "padded"},
    ):
        options = {"max_steps": 1, "per_device_train_batch_size": 8} | options
        trained = trainer(tmp_path, tiny_rows(8), log_token_metrics=True, **options)
        trained.train()
        for name in NAMES:
            assert steps(trained)[0][name] == pytest.approx(wanted[name], rel=1e-5, abs=1e-6)


def test_thumbs_and_evaluation_have_them_too(tmp_path):
    trained = trainer(
        tmp_path,
        tiny_rows(8, "unpaired"),
        loss_type="kto",
        eval_dataset=tiny_rows(8, "unpaired", seed=1),
        log_token_metrics=True,
    )
    found = trained.evaluate()
    assert {f"eval_{name}" for name in NAMES} <= set(found)
