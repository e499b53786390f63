"""KL(reference || policy) equals that of full logits, values and gradients."""

import numpy as np
import pytest
import torch
from torch import nn

from prefopt.engine import Scorer, divergences
from prefopt.engine.divergences import Predictions, chunked_divergences
from prefopt.engine.layout import Example
from prefopt.engine.logprobs import LMHead
from tests.engine.trees import assert_equal_gradients, batch_of, gradients, trees
from tests.models import tiny_model


def plain(logits, ref_logits):
    """Sum over the vocabulary by torch's own function, which wants log-probs of the policy."""
    return nn.functional.kl_div(
        logits.log_softmax(-1), ref_logits.log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)


def plain_divergences(model, reference, examples):
    """Sums over each completion's scored tokens, one text at a time; (N,)."""
    sums = []
    for example in examples:
        for index, completion in enumerate(example.completion_ids):
            text = torch.tensor(np.concatenate([example.prompt_ids, completion]))[None]
            with torch.no_grad():
                ref_logits = reference(input_ids=text).logits[0]
            apart = plain(model(input_ids=text).logits[0], ref_logits)
            places = np.flatnonzero(example.counted(index)) + len(example.prompt_ids) - 1
            sums.append(apart[torch.from_numpy(places)].sum())
    return torch.stack(sums)


def masked_trees():
    """Completions of which not every token counts, and a text without a prompt."""
    masks = [np.array([True, False, True, True]), np.array([False, True, False])]
    first, second = np.arange(5, 9), np.array([5, 6, 40])
    return [
        Example(np.arange(10, 16), [first, second], masks),
        Example(np.array([], dtype=np.int64), [np.arange(20, 26), np.arange(22, 25)]),
    ]


def both(name, dtype=torch.float32):
    return tiny_model(name).to(dtype), tiny_model(name, seed=5).to(dtype)


def predictions(model, batch, layout):
    with torch.no_grad():
        return Scorer(model, layout).score(batch, keep_predictions=True).predictions


@pytest.mark.parametrize("layout", ["shared_prefix", "padded"])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, torch.float32) for name in ("llama", "gemma2", "cohere", "gpt2", "phi")]
    # Of padded rows Gemma 2's own forward makes NaN in float64 (transformers 5.23).
    + [(name, torch.float64) for name in ("llama", "cohere", "gpt2")],
)
def test_equal_to_those_of_full_logits(name, dtype, layout):
    model, reference = both(name, dtype)
    examples = trees() + masked_trees()
    batch = batch_of(examples, layout)
    wanted = plain_divergences(model, reference, examples)
    wanted_gradients = gradients(model, wanted)
    scores = Scorer(model, layout).score(
        batch, divergence_from=predictions(reference, batch, layout)
    )
    assert scores.divergences.dtype == dtype
    # The norms of some architectures compute in float32 whatever the dtype; chunks below do not.
    precision = 1e-5 if dtype == torch.float32 else 1e-6
    torch.testing.assert_close(scores.divergences, wanted, rtol=precision, atol=precision)
    assert_equal_gradients(gradients(model, scores.divergences), wanted_gradients)


def test_both_gradients_meet_where_a_loss_takes_log_probs_and_divergences():
    model, reference = both("gemma2")
    batch = batch_of(trees(), "shared_prefix")
    scorer, given = Scorer(model), predictions(reference, batch, "shared_prefix")
    alone = gradients(model, scorer.score(batch).logps)
    apart = gradients(model, scorer.score(batch, divergence_from=given).divergences)
    scores = scorer.score(batch, divergence_from=given)
    together = gradients(model, scores.logps - 2 * scores.divergences)
    wanted = {name: gradient - 2 * apart[name] for name, gradient in alone.items()}
    assert_equal_gradients(together, wanted)


def test_a_model_does_not_diverge_from_itself():
    model = tiny_model("gemma2")
    batch = batch_of(trees(), "shared_prefix")
    given = predictions(model, batch, "shared_prefix")
    scores = Scorer(model).score(batch, divergence_from=given)
    assert scores.divergences.tolist() == [0.0] * len(scores.lengths)


def test_without_being_asked_nothing_is_taken_or_kept():
    scores = Scorer(tiny_model("llama")).score(batch_of(trees(), "padded"))
    assert scores.divergences is None
    assert scores.predictions is None


def test_a_batch_that_predicts_nothing_diverges_by_nothing():
    nothing = [Example(np.array([], dtype=np.int64), [np.array([7])])]
    model = tiny_model("llama")
    batch = batch_of(nothing, "shared_prefix")
    scores = Scorer(model).score(batch, divergence_from=predictions(model, batch, "shared_prefix"))
    assert scores.divergences.tolist() == [0.0]
    assert scores.divergences.requires_grad


def test_heads_that_only_their_models_know_are_compared_by_their_logits():
    model, reference = both("llama")
    for one, factor in ((model, 0.5), (reference, 0.8)):
        one.forward = _scaled(one.forward, factor)
    batch = batch_of(trees(), "padded")
    wanted = plain_divergences(model, reference, trees())
    wanted_gradients = gradients(model, wanted)
    scores = Scorer(model).score(batch, divergence_from=predictions(reference, batch, "padded"))
    torch.testing.assert_close(scores.divergences, wanted, rtol=1e-5, atol=1e-5)
    assert_equal_gradients(gradients(model, scores.divergences), wanted_gradients)


def _scaled(forward, factor):
    def scaled(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = output.logits * factor
        return output

    return scaled


def test_another_vocabulary_is_an_error():
    model, reference = tiny_model("llama"), tiny_model("llama", vocab_size=120)
    batch = batch_of(trees(), "shared_prefix")
    given = predictions(reference, batch, "shared_prefix")
    with pytest.raises(ValueError, match="policy predicts 97 tokens and the reference 120"):
        Scorer(model).score(batch, divergence_from=given)


# The output layer alone ---------------------------------------------------------------------------


def draw(*shape, seed, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def parts(rows=11, width=5, vocabulary=13, dtype=torch.float64):
    """Leaves of the policy, and a reference of another width."""
    leaves = [draw(rows, width, seed=0), draw(vocabulary, width, seed=1), draw(vocabulary, seed=2)]
    leaves = [leaf.to(dtype).requires_grad_() for leaf in leaves]
    head = nn.Linear(7, vocabulary).to(dtype)
    given = Predictions.of(LMHead(head, 1.3, 2.5), draw(rows, 7, seed=3).to(dtype))
    return leaves, given, given.reader()(slice(None)).detach()


@pytest.mark.parametrize("chunk_rows", [1, 4, 11, 100])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.3, None), (2.0, 1.5)])
def test_chunks_do_not_matter(chunk_rows, scale, softcap):
    (hidden, weight, bias), given, ref_logits = parts()
    upstream = torch.linspace(-1, 2, len(hidden), dtype=torch.float64)
    ours = chunked_divergences(
        hidden, weight, given, bias=bias, scale=scale, softcap=softcap, chunk_rows=chunk_rows
    )
    logits = (hidden @ weight.T + bias) * scale
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    wanted = plain(logits, ref_logits)
    torch.testing.assert_close(ours, wanted, rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(
        torch.autograd.grad((ours * upstream).sum(), [hidden, weight, bias]),
        torch.autograd.grad((wanted * upstream).sum(), [hidden, weight, bias]),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_the_hand_written_backward_pass_gradchecks():
    leaves, given, _ = parts(rows=4, vocabulary=6)

    def function(hidden, weight, bias):
        return chunked_divergences(
            hidden, weight, given, bias=bias, scale=0.7, softcap=2.0, chunk_rows=3
        )

    assert torch.autograd.gradcheck(function, leaves)


def test_a_frozen_head_gets_no_gradient():
    (hidden, weight, _), given, _ = parts()
    weight.requires_grad_(False)
    chunked_divergences(hidden, weight, given).sum().backward()
    assert weight.grad is None
    assert hidden.grad is not None


def test_bfloat16_is_summed_in_float32():
    (hidden, weight, bias), given, _ = parts(vocabulary=500, dtype=torch.bfloat16)
    ours = chunked_divergences(hidden, weight, given, bias=bias)
    assert ours.dtype == torch.float32
    exact = Predictions(given.hidden.double(), _in_float64(given.head), None)
    logits = hidden.double() @ weight.double().T + bias.double()
    wanted = plain(logits, exact.reader()(slice(None)))
    # bfloat16 keeps 8 bits of each logit; measured 0.007 nats here, of up to 8.
    assert (ours.double() - wanted).abs().max() < 0.02


def _in_float64(head):
    module = nn.Linear(head.module.in_features, head.module.out_features).double()
    module.load_state_dict(head.module.state_dict())
    return LMHead(module, head.scale, head.softcap)


@pytest.mark.parametrize("bare", [True, False])
def test_under_autocast_the_reference_is_read_again_as_it_was_computed(bare):
    (hidden, weight, bias), _, _ = parts(dtype=torch.float32)
    module = nn.Linear(7, 13)
    module = module if bare else nn.Sequential(module)
    with torch.autocast("cpu", torch.bfloat16):
        given = Predictions.of(LMHead(module), draw(11, 7, seed=3).float())
        inside = given.reader()(slice(None))
        ours = chunked_divergences(hidden, weight, given, bias=bias)
    assert torch.equal(given.reader()(slice(None)), inside)
    assert not torch.equal(inside, module(given.hidden))
    assert ours.dtype == torch.float32
    ours.sum().backward()
    wanted = plain(hidden @ weight.T + bias, inside)
    exact = torch.autograd.grad(wanted.sum(), [hidden, weight])
    for mine, theirs in zip((hidden.grad, weight.grad), exact, strict=True):
        assert (mine - theirs).norm() < 0.02 * theirs.norm()


def test_what_was_predicted_stays_when_weights_and_hooks_change():
    head = LMHead(nn.Linear(7, 13))
    given = Predictions.of(head, draw(11, 7, seed=3).float())
    before = given.reader()(slice(None))
    head.module.weight.data = torch.zeros(13, 7)
    head.module.register_forward_hook(lambda module, args, output: 2 * output)
    assert torch.equal(given.reader()(slice(None)), before)


def test_no_tensor_of_tokens_by_vocabulary_outlives_its_chunk(monkeypatch):
    """Neither do the graph and the reference hold one, nor is one made of more than a chunk."""
    monkeypatch.setattr(divergences, "CHUNK_BYTES", 2 * 4 * 16 * 1000)  # 16 rows of both models
    made = []
    original = divergences.LinearHead.logits

    def logits(*args):
        made.append(original(*args))
        return made[-1]

    monkeypatch.setattr(divergences.LinearHead, "logits", logits)
    (hidden, weight, _), given, _ = parts(rows=64, vocabulary=1000, dtype=torch.float32)
    made.clear()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.numel()) or tensor, lambda tensor: tensor
    ):
        apart = chunked_divergences(hidden, weight, given)
    apart.sum().backward()
    assert sum(kept) < weight.numel() + hidden.numel() + 3 * 64
    assert {len(chunk) for chunk in made} == {16}
    assert len(made) == 2 * 2 * 4  # both models, there and back, four chunks
