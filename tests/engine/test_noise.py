"""NEFTune's noise is as large in a packed row as for each text alone."""

import math

import numpy as np
import pytest
import torch
from transformers.integrations.neftune import neftune_post_forward_hook

from prefopt.engine import Scorer, build_layout
from prefopt.engine.company import ANY
from prefopt.engine.layout import Example
from prefopt.engine.noise import Noise, inverse_lengths_of, noisy_embeddings
from tests.engine.companions import COMPANIONS, companion, uneven_examples
from tests.engine.trees import batch_of, trees
from tests.models import tiny_config, tiny_model

ALPHA = 5.0


def ids(*tokens):
    return np.array(tokens, dtype=np.int64)


# Texts of 5 and 8 tokens that share 3, and one of 12 alone.
EXAMPLES = [
    Example(ids(3, 4, 5), [ids(6, 7), ids(8, 9, 10, 11, 12)]),
    Example(ids(*range(20, 26)), [ids(*range(30, 36))]),
]


class Recorder:
    """Keeps what the first layer of a model is given."""

    def __init__(self, model):
        self.seen = []
        model.model.layers[0].register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, layer, args, kwargs):
        self.seen.append((args or (kwargs["hidden_states"],))[0].detach().clone())


def wide_model():
    """Return a model whose embeddings have enough values to measure noise on."""
    return type(tiny_model("llama"))(tiny_config("llama", hidden_size=512)).train()


def noise_of(layout, examples=EXAMPLES, **options):
    """Return the largest noise on each token of a row; (R, T)."""
    model = wide_model()
    recorder = Recorder(model)
    scorer = Scorer(model, layout)
    recorder.seen.clear()
    batch = build_layout(examples, scorer.layout)
    for noise in (None, Noise(ALPHA, 1)):
        scorer.score(batch, noise=noise, **options)
    clean, noisy = recorder.seen
    return (noisy - clean).abs().amax(-1), batch


def largest(*lengths):
    """Return the largest noise that a token of texts of these lengths gets."""
    return ALPHA * math.sqrt(np.mean([1 / length for length in lengths]) / 512)


def test_in_a_packed_row_noise_is_that_of_each_text():
    found, batch = noise_of("shared_prefix")
    wanted = [largest(5, 8)] * 3 + [largest(5)] * 1 + [largest(8)] * 4 + [largest(12)] * 11
    assert batch.input_ids.tolist()[0][:4] == [3, 4, 5, 6]
    # The largest of 512 uniform values is within two in a hundred of the bound, and never above.
    torch.testing.assert_close(found[0], torch.tensor(wanted), rtol=0.03, atol=0)
    assert (found[0] <= torch.tensor(wanted) * (1 + 1e-5)).all()


def test_in_padded_rows_noise_does_not_depend_on_the_padding():
    found, _ = noise_of("padded")
    for row, length in zip(found, (5, 8, 12), strict=True):
        wanted = torch.full((length - 1,), largest(length))
        torch.testing.assert_close(row[: length - 1], wanted, rtol=0.03, atol=0)


def test_noise_is_as_large_as_transformers_adds_to_a_text_alone():
    embeddings = torch.nn.Embedding(9, 512).train()
    embeddings.neftune_noise_alpha = ALPHA
    text = torch.zeros(1, 12, dtype=torch.int64)
    theirs = neftune_post_forward_hook(embeddings, (text,), embeddings(text)) - embeddings(text)
    assert theirs.abs().max().item() == pytest.approx(largest(12), rel=0.01)


def test_noise_comes_again_from_its_seed_and_leaves_nothing_behind():
    model = tiny_model("llama").train()
    scorer = Scorer(model)
    batch = batch_of(trees(), scorer.layout)
    clean = scorer.score(batch).logps
    first, again, other = (scorer.score(batch, noise=Noise(ALPHA, n)).logps for n in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert torch.equal(scorer.score(batch).logps, clean)
    assert not model.get_input_embeddings()._forward_hooks


@pytest.mark.parametrize("name", COMPANIONS)
def test_texts_that_are_computed_apart_have_noise_of_their_own(name):
    model = companion(name).train()
    examples = uneven_examples()
    scorer = Scorer(model, "padded")
    assert scorer.company != ANY
    recorder = Recorder(model)
    batch = build_layout(examples, "padded")
    lengths = batch.attention_mask.sum(1) + 1
    noisy = scorer.score(batch, noise=Noise(ALPHA, 1)).logps
    passes = len(recorder.seen)
    clean = scorer.score(batch).logps
    assert not torch.allclose(noisy, clean)
    of_rows = {}
    for first, second in zip(recorder.seen[:passes], recorder.seen[passes:], strict=True):
        for row in (first - second).abs().amax(-1):
            length = int((row > 0).sum())
            of_rows.setdefault(first.shape[1], []).append(row.max().item())
            assert length
    largest_of_all = max(most for its in of_rows.values() for most in its)
    assert largest_of_all <= ALPHA * math.sqrt(1 / int(lengths.min()) / 32) * (1 + 1e-5)
    assert sum(map(len, of_rows.values())) == len(lengths)


def test_the_lengths_of_padded_rows_are_those_of_their_texts():
    shares = inverse_lengths_of(torch.tensor([[True, True, False]]), left_out=1)
    torch.testing.assert_close(shares, torch.full((1, 3), 1 / 3))


def test_without_noise_nothing_is_hooked():
    model = tiny_model("llama")
    with noisy_embeddings(model, torch.ones(1, 1), None):
        assert not model.get_input_embeddings()._forward_hooks
    with noisy_embeddings(model, torch.ones(1, 1), Noise(ALPHA, 1)):
        assert len(model.get_input_embeddings()._forward_hooks) == 1
    assert not model.get_input_embeddings()._forward_hooks


def test_the_seed_follows_from_numbers_and_texts():
    noise = Noise.of(ALPHA, (0, 3), EXAMPLES)
    assert noise == Noise.of(ALPHA, (0, 3), EXAMPLES)
    assert noise.alpha == ALPHA
    others = {Noise.of(ALPHA, (0, 4), EXAMPLES), Noise.of(ALPHA, (0, 3), EXAMPLES[:1])}
    assert noise not in others
    assert Noise.of(ALPHA, (0, 3), []).seed != noise.seed
