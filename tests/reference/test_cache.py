"""The store of reference log-probs: keyed by content, filled once, served per token."""

import numpy as np
import pytest
import torch

from prefopt.data.collate import PreferenceCollator
from prefopt.engine import Scorer, build_layout
from prefopt.engine.layout import Example
from prefopt.engine.score import layout_tensors
from prefopt.reference import MemoryStore, ReferenceModel, fill
from tests.models import tiny_model


def ids(*tokens):
    return np.array(tokens, dtype=np.int64)


EXAMPLES = [
    Example(ids(3, 4, 5), [ids(6, 7, 8), ids(6, 9)]),
    Example(ids(10, 11), [ids(12), ids(13, 14, 15, 16)]),
    Example(ids(), [ids(20, 21), ids(22, 23, 24)]),
]


def filled(examples, scorer, **options):
    store, calls = MemoryStore(), []
    score = ReferenceModel(scorer).score

    def counted(batch):
        calls.append(batch["input_ids"].shape)
        return score(batch)

    computed = fill(store, examples, counted, scorer, show_progress=False, **options)
    return store, computed, calls


@pytest.fixture(scope="module")
def scorer():
    return Scorer(tiny_model("llama"))


def test_values_are_those_of_the_model_per_token(scorer):
    store, computed, _ = filled(EXAMPLES, scorer)
    assert computed == len(store) == 6
    model = scorer.model
    for example in EXAMPLES:
        for completion in example.completion_ids:
            text = torch.tensor(np.concatenate([example.prompt_ids, completion]))[None]
            logps = model(input_ids=text).logits[0, :-1].log_softmax(-1)
            wanted = logps.gather(-1, text[0, 1:, None])[:, 0].detach().numpy()
            got = store.get(example.prompt_ids, completion)
            assert got.dtype == np.float32
            assert len(got) == len(completion)
            start = max(len(example.prompt_ids) - 1, 0)
            scored = got[1:] if len(example.prompt_ids) == 0 else got
            np.testing.assert_allclose(scored, wanted[start:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{"tokens_per_batch": 1}, {"examples_per_batch": 1}, {}])
def test_how_the_store_is_filled_does_not_matter(scorer, options):
    store, _, calls = filled(EXAMPLES, scorer, **options)
    whole, _, _ = filled(EXAMPLES, scorer)
    assert len(calls) == (1 if not options else 3)
    for example in EXAMPLES:
        for completion in example.completion_ids:
            np.testing.assert_allclose(
                store.get(example.prompt_ids, completion),
                whole.get(example.prompt_ids, completion),
                rtol=1e-5,
                atol=1e-5,
            )


def test_the_longest_come_first(scorer):
    _, _, calls = filled(EXAMPLES, scorer, examples_per_batch=1)
    widths = [shape[1] for shape in calls]
    assert widths == sorted(widths, reverse=True)


def test_only_what_is_missing_is_computed(scorer):
    store, _, _ = filled(EXAMPLES[:1], scorer)
    again = fill(store, EXAMPLES * 2, ReferenceModel(scorer).score, scorer, show_progress=False)
    assert again == 4
    assert len(store) == 6


def test_the_border_between_prompt_and_completion_is_part_of_the_key():
    store = MemoryStore()
    store.put(ids(1, 2), ids(3), np.zeros(1, dtype=np.float32))
    assert store.get(ids(1), ids(2, 3)) is None
    assert store.get(ids(1, 2), ids(3)) is not None


def test_masks_are_applied_when_serving_and_are_no_part_of_the_key(scorer):
    example = Example(ids(3, 4), [ids(5, 6, 7), ids(8, 9)])
    store, _, _ = filled([example], scorer)
    row = {
        "prompt_ids": [3, 4],
        "completion_ids": [[5, 6, 7], [8, 9]],
        "completion_masks": [[True, False, True], [False, True]],
        "ranks": [0, 1],
        "desirable": [True, False],
    }
    batch = PreferenceCollator(reference=store)([row])
    whole = [store.get(ids(3, 4), completion) for completion in example.completion_ids]
    wanted = np.concatenate([whole[0][[0, 2]], whole[1][[1]]])
    np.testing.assert_array_equal(batch["ref_per_token_logps"].numpy(), wanted)
    assert len(batch["ref_per_token_logps"]) == len(batch["token_index"])


def test_unknown_completions_are_not_served(scorer):
    row = {"prompt_ids": [3], "completion_ids": [[4]], "ranks": [], "desirable": [True]}
    assert "ref_per_token_logps" not in PreferenceCollator(reference=MemoryStore())([row])


def test_processes_share_the_work_and_end_with_the_same_store(scorer):
    """Two processes, played one after the other."""
    parts = []
    stores = [MemoryStore(), MemoryStore()]
    for rank in (0, 1):
        fill(
            stores[rank],
            EXAMPLES,
            ReferenceModel(scorer).score,
            scorer,
            rank=rank,
            world_size=2,
            gather=lambda part: parts.append(part) or [part],
            show_progress=False,
        )
    assert sum(map(len, parts)) == 6
    assert not set(parts[0]) & set(parts[1])


def test_scores_do_not_depend_on_the_layout():
    model = tiny_model("llama")
    shared, _, _ = filled(EXAMPLES, Scorer(model))
    padded, _, _ = filled(EXAMPLES, Scorer(model, "padded"))
    for example in EXAMPLES:
        for completion in example.completion_ids:
            np.testing.assert_allclose(
                shared.get(example.prompt_ids, completion),
                padded.get(example.prompt_ids, completion),
                rtol=1e-4,
                atol=1e-5,
            )


def test_filling_leaves_training_mode_and_gradients_alone():
    model = tiny_model("llama").train()
    scorer = Scorer(model)
    filled(EXAMPLES, scorer)
    assert all(module.training for module in model.modules())
    batch = layout_tensors(build_layout(EXAMPLES))
    assert scorer.score(batch).logps.requires_grad
