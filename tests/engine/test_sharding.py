"""Models that FSDP2 shards: over one process here, over two in the matrix of launches."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from prefopt.engine import Scorer, build_layout
from prefopt.engine.layout import Example
from prefopt.engine.sharding import (
    in_own_forward,
    is_fsdp2,
    own_parts,
    parts_exchanged,
    put_away,
    weights_by_name,
)
from tests.models import move, tiny_model

EXAMPLES = [
    Example(np.array([3, 4, 5]), [np.array([6, 7]), np.array([8, 9, 10])]),
    Example(np.array([11]), [np.array([12]), np.array([13, 14])]),
]


@pytest.fixture(autouse=True)
def _one_process():
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def sharded(model, **options):
    """Shard a model as accelerate does: layers, the last norm with the head, and the rest."""
    for layer in model.model.layers:
        fully_shard(layer, **options)
    tail = [model.model.norm, model.lm_head]
    if model.lm_head.weight is model.model.embed_tokens.weight:
        tail.append(model.model.embed_tokens)
    fully_shard(tail, **options, reshard_after_forward=False)
    return fully_shard(model, **options)


def score(scorer, examples):
    return scorer.score(scorer.to_device(build_layout(examples, scorer.layout))).logps


@pytest.mark.parametrize("tied", [False, True])
def test_a_sharded_model_scores_and_learns_as_it_did_whole(tied):
    whole = tiny_model("llama", tie_word_embeddings=tied)
    parted = tiny_model("llama", tie_word_embeddings=tied)
    examples = EXAMPLES
    scorers = [Scorer(whole), Scorer(parted)]
    sharded(parted)
    assert is_fsdp2(parted)
    assert all(isinstance(weight, DTensor) for weight in parted.parameters())
    wanted, found = (score(scorer, examples) for scorer in scorers)
    torch.testing.assert_close(found, wanted)
    for logps in (wanted, found):
        logps.sum().backward()
    gradients = {name: it.grad.full_tensor() for name, it in weights_by_name(parted).items()}
    for name, weight in whole.named_parameters():
        torch.testing.assert_close(gradients[name], weight.grad)


def test_log_probs_are_not_rounded_to_the_dtype_that_weights_are_gathered_in():
    model = tiny_model("llama")
    scorer = Scorer(model)
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.bfloat16, output_dtype=torch.bfloat16)
    sharded(model, mp_policy=policy)
    logps = score(scorer, EXAMPLES)
    assert logps.dtype == torch.float32
    assert not torch.equal(logps, logps.bfloat16().float())
    in_own_forward(model, lambda: logps)
    assert "forward" not in vars(model)


def test_a_forward_pass_that_fails_leaves_the_models_own():
    model = sharded(tiny_model("llama"))
    with pytest.raises(ZeroDivisionError):
        in_own_forward(model, lambda: 1 / 0)
    assert "forward" not in vars(model)


def test_other_weights_are_those_of_every_pass_inside_and_of_none_after():
    model, other = tiny_model("llama"), move(tiny_model("llama"))
    examples = EXAMPLES
    scorer, of_other = Scorer(model), score(Scorer(other), examples)
    sharded(model)
    with torch.no_grad():
        before = score(scorer, examples)  # what stays gathered must not be used inside
        parts = own_parts(model, dict(other.named_parameters()))
        with parts_exchanged(model, parts):
            inside = score(scorer, examples)
        after = score(scorer, examples)
    torch.testing.assert_close(inside, of_other)
    assert torch.equal(before, after)
    for name, weight in other.named_parameters():
        assert torch.equal(parts[name], weight)
    again = own_parts(model, parts)
    assert all(again[name] is parts[name] for name in parts)


def test_weights_that_change_are_gathered_anew_after_an_evaluation():
    model = tiny_model("llama")
    examples = EXAMPLES
    scorer = Scorer(model)
    sharded(model)
    with scorer.evaluating(), torch.no_grad():
        before = score(scorer, examples)
    with torch.no_grad():
        model.lm_head.weight.to_local().mul_(2)
        after = score(scorer, examples)
    assert (after - before).abs().max() > 1
    put_away(model)


def test_a_process_without_rows_takes_part_in_every_pass():
    model = tiny_model("llama")
    scorer = Scorer(model)
    sharded(model)
    calls = []
    model.model.layers[0].register_forward_hook(lambda *_: calls.append("forward"))
    alone = Example(np.zeros(0, dtype=np.int64), [np.array([5])])  # nothing predicts its token
    logps = score(scorer, [alone])
    assert logps.tolist() == [0.0]
    assert calls == ["forward"]
    logps.sum().backward()
    assert all(not weight.grad.full_tensor().any() for weight in model.parameters())


def test_what_is_not_sharded_is_left_alone():
    model = nn.Linear(2, 2)
    put_away(model)
    assert not is_fsdp2(model)
    assert not is_fsdp2(None)
