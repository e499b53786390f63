"""The toy language model: its tokenizer gives words back, and fitting it learns the language."""

import pytest
import torch

from prefopt.toy.data import sample_texts
from prefopt.toy.model import build_model, build_tokenizer, fit_model


def test_the_tokenizer_gives_texts_back_word_by_word(tmp_path):
    tokenizer = build_tokenizer()
    for row in sample_texts(200):
        text = row["prompt"] + row["completion"]
        ids = tokenizer(text)["input_ids"]
        assert len(ids) == len(text.split())
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text


def test_prompt_and_completion_tokenised_separately_are_those_tokenised_together():
    tokenizer = build_tokenizer()
    for row in sample_texts(50):
        separate = [
            *tokenizer(row["prompt"])["input_ids"],
            *tokenizer(row["completion"])["input_ids"],
        ]
        assert separate == tokenizer(row["prompt"] + row["completion"])["input_ids"]


def test_the_tokenizer_survives_saving(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "review of the film Foxglove : i loved the music ."
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert (loaded.eos_token, loaded.pad_token) == ("</s>", "<pad>")
    assert loaded.decode(loaded(text)["input_ids"]) == text


def test_weights_follow_the_seed_and_leave_the_global_generator_alone():
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first, again = build_model(tokenizer, seed=1), build_model(tokenizer, seed=1)
    other = build_model(tokenizer, seed=2)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.lm_head.weight, again.lm_head.weight)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_fitting_lowers_the_loss_and_counts_completions_only():
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, hidden_size=32)
    losses: list[float] = []
    assert fit_model(model, tokenizer, steps=30, batch_size=16, on_step=losses.append) is model
    assert not model.training
    assert len(losses) == 30
    # Random weights give each of 13.5 tokens (12.5 words and the end) some log(60) = 4.1 nats.
    assert losses[0] > 13.5 * 3.5
    assert sum(losses[-5:]) / 5 < 0.75 * losses[0]


@pytest.mark.slow
def test_the_start_of_the_demo_is_close_to_the_grammar():
    from prefopt.evaluation import completion_logps
    from prefopt.toy.grammar import grammar_logp

    tokenizer = build_tokenizer()
    model = fit_model(build_model(tokenizer), tokenizer)
    rows = sample_texts(1000, seed=99)
    prompts = [tokenizer(row["prompt"])["input_ids"] for row in rows]
    texts = [[*tokenizer(r["completion"])["input_ids"], tokenizer.eos_token_id] for r in rows]
    logps = completion_logps(model, prompts, texts).mean().item()
    exact = sum(grammar_logp(row["prompt"], row["completion"]) for row in rows) / len(rows)
    assert 0 <= exact - logps < 0.2  # KL(grammar || start): measured 0.06 nats
