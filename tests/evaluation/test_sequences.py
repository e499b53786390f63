"""Samples, log-probs and KL of sequences, against exact enumeration on tiny models."""

import itertools
import math

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from prefopt.evaluation import (
    completion_logps,
    mean_interval,
    pad_sequences,
    per_token_logps,
    sample_completions,
    sequence_kl,
)

VOCABULARY, EOS, LONGEST = 5, 1, 3


def tiny_model(seed: int) -> LlamaForCausalLM:
    """Return a random model, far from uniform, of five tokens."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=16,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=0,
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config).eval()


def tiny_gpt2(seed: int) -> GPT2LMHeadModel:
    """Return a random model whose positions are absolute, so that shifted ones would be seen."""
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=16,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=0,
    )
    torch.manual_seed(seed)
    return GPT2LMHeadModel(config).eval()


def all_completions() -> list[list[int]]:
    """Return every completion: up to LONGEST tokens, the end-of-text token only as the last."""
    words = [token for token in range(VOCABULARY) if token != EOS]
    ended = [[*start, EOS] for n in range(LONGEST) for start in itertools.product(words, repeat=n)]
    return ended + [list(cut) for cut in itertools.product(words, repeat=LONGEST)]


def exact_logps(
    model: LlamaForCausalLM | GPT2LMHeadModel, prompt: list[int], completions: list[list[int]]
) -> list[float]:
    """Return log-probs, one unpadded forward per completion."""
    logps = []
    with torch.no_grad():
        for completion in completions:
            ids = torch.tensor([[*prompt, *completion]])
            table = model(ids).logits[0].double().log_softmax(-1)
            places = range(len(prompt) - 1, len(prompt) + len(completion) - 1)
            logps.append(sum(table[i, t].item() for i, t in zip(places, completion, strict=True)))
    return logps


def test_log_probs_do_not_depend_on_padding_and_sum_to_one():
    model = tiny_model(0)
    completions = all_completions()
    prompts = [[2, 3]] * len(completions)
    logps = completion_logps(model, prompts, completions, batch_size=7)
    torch.testing.assert_close(
        logps.double(),
        torch.tensor(exact_logps(model, [2, 3], completions), dtype=torch.float64),
        rtol=1e-5,
        atol=1e-5,
    )
    assert logps.double().exp().sum().item() == pytest.approx(1.0, abs=1e-5)


def test_per_token_log_probs_lie_on_the_completion_only():
    batch = pad_sequences([[2, 3], [4]], [[3, 1], [2, 3, 4, 1]])
    assert batch.input_ids.tolist() == [[2, 3, 3, 1, 0], [4, 2, 3, 4, 1]]
    assert batch.completion_mask.int().tolist() == [[0, 0, 1, 1, 0], [0, 1, 1, 1, 1]]
    with torch.no_grad():
        logps = per_token_logps(tiny_model(0), batch)
    assert logps.dtype == torch.float32
    assert ((logps != 0) == batch.completion_mask).all()


def test_the_kl_of_samples_is_the_kl_by_enumeration():
    policy, reference = tiny_model(0), tiny_model(1)
    prompt = [2, 3]
    completions = all_completions()
    ours = torch.tensor(exact_logps(policy, prompt, completions))
    theirs = torch.tensor(exact_logps(reference, prompt, completions))
    exact = (ours.exp() * (ours - theirs)).sum().item()
    assert exact > 0.3  # otherwise the test would see nothing

    # Weighing every completion by its probability removes the noise of sampling: only the
    # estimator is left, and its expectation must be the KL.
    terms = sequence_kl(policy, reference, [prompt] * len(completions), completions)
    assert (ours.exp() * terms).sum().item() == pytest.approx(exact, rel=1e-4)
    assert terms.min() >= 0

    samples = sample_completions(
        policy, [prompt] * 4000, max_new_tokens=LONGEST, eos_token_id=EOS, seed=3
    )
    estimate = mean_interval(
        sequence_kl(policy, reference, [prompt] * 4000, samples), confidence=0.9999
    )
    assert estimate.low < exact < estimate.high


def test_the_kl_of_a_policy_from_itself_is_zero():
    model = tiny_model(0)
    completions = all_completions()
    terms = sequence_kl(model, model, [[2]] * len(completions), completions)
    assert terms.abs().max() < 1e-5


@pytest.mark.parametrize("make", [tiny_model, tiny_gpt2])
def test_sampled_frequencies_are_the_models_probabilities_whatever_the_prompt_lengths(make):
    model = make(0)
    prompts = [[2, 3], [4], [3, 3, 2]]
    count = 3000
    samples = sample_completions(
        model,
        [prompt for _ in range(count) for prompt in prompts],
        max_new_tokens=LONGEST,
        eos_token_id=EOS,
        seed=1,
        batch_size=1000,
    )
    completions = all_completions()
    for index, prompt in enumerate(prompts):
        drawn = samples[index :: len(prompts)]
        probabilities = [math.exp(logp) for logp in exact_logps(model, prompt, completions)]
        for completion, probability in zip(completions, probabilities, strict=True):
            spread = math.sqrt(probability * (1 - probability) / count)
            assert abs(drawn.count(completion) / count - probability) < 4.5 * spread + 1 / count


def test_samples_repeat_with_their_seed_and_leave_the_global_generator_alone():
    model = tiny_model(0)
    before = torch.random.get_rng_state()
    options = {"max_new_tokens": 5, "eos_token_id": EOS}
    first = sample_completions(model, [[2]] * 20, seed=1, **options)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first == sample_completions(model, [[2]] * 20, seed=1, **options)
    assert first != sample_completions(model, [[2]] * 20, seed=2, **options)
    for completion in first:
        assert EOS not in completion[:-1]
        assert completion[-1] == EOS or len(completion) == 5


def test_wrong_input_is_an_error():
    with pytest.raises(ValueError, match="prompt is empty"):
        pad_sequences([[]], [[1]])
    with pytest.raises(ValueError, match="2 prompts and 1 completions"):
        pad_sequences([[1], [2]], [[1]])
