"""Filling a store: what is missing, once, longest first, by all processes, and right per token."""

import copy
import threading
import tracemalloc
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from datasets import Dataset

from prefopt.data.prepared import completion_key
from prefopt.engine import Scorer, build_layout
from prefopt.engine.layout import Example
from prefopt.reference import fingerprint_of
from prefopt.reference.fill import CompletionIndex, Filler, FillOptions, _by_row
from prefopt.reference.live import ReferenceModel
from prefopt.reference.processes import Processes
from prefopt.reference.store.logp_store import MemoryStore
from tests.models import VOCABULARY, tiny_model


def ids(*tokens):
    return np.array(tokens, dtype=np.int64)


EXAMPLES = [
    Example(ids(3, 4, 5), [ids(6, 7, 8), ids(6, 9)]),
    Example(ids(10, 11), [ids(12), ids(13, 14, 15, 16)]),
    Example(ids(), [ids(20, 21), ids(22, 23, 24)]),
]


def dataset_of(examples, mismatched=None):
    columns = {
        "prompt_ids": [example.prompt_ids.tolist() for example in examples],
        "completion_ids": [
            [completion.tolist() for completion in example.completion_ids] for example in examples
        ],
    }
    if mismatched is not None:
        columns["kl_completion_ids"] = mismatched
    return Dataset.from_dict(columns)


class Counted:
    """A reference that counts what it is asked."""

    def __init__(self, scorer, in_step=False):
        self.scorer, self.shapes, self.loads, self.in_step = scorer, [], 0, in_step
        self._model = ReferenceModel(scorer)

    def score(self, batch, context):
        self.shapes.append(tuple(batch.input_ids.shape))
        return self._model.score(batch, context)

    def load(self):
        self.loads += 1
        return self


def stored(store, prompt, completion):
    """Return the log-probs that a store has of a completion."""
    (logps,) = store.look_up([completion_key(prompt, completion)])
    return logps


def filled(examples, scorer, store=None, **options):
    store = MemoryStore() if store is None else store
    reference, dataset = Counted(scorer), dataset_of(examples)
    filler = Filler(store, reference.load, FillOptions(show_progress=False, **options))
    computed = filler.fill(dataset, CompletionIndex.of(dataset, with_kl=False))
    return store, computed, reference


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
            got = stored(store, example.prompt_ids, completion)
            assert got.dtype == np.float32
            assert len(got) == len(completion)
            start = max(len(example.prompt_ids) - 1, 0)
            scored = got[1:] if len(example.prompt_ids) == 0 else got
            np.testing.assert_allclose(scored, wanted[start:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{"tokens_per_batch": 1}, {"rows_per_batch": 1}, {}])
def test_how_the_store_is_filled_does_not_matter(scorer, options):
    store, _, reference = filled(EXAMPLES, scorer, **options)
    whole, _, _ = filled(EXAMPLES, scorer)
    assert len(reference.shapes) == (1 if not options else 3)
    for example in EXAMPLES:
        for completion in example.completion_ids:
            np.testing.assert_allclose(
                stored(store, example.prompt_ids, completion),
                stored(whole, example.prompt_ids, completion),
                rtol=1e-5,
                atol=1e-5,
            )


def test_the_longest_come_first(scorer):
    _, _, reference = filled(EXAMPLES, scorer, rows_per_batch=1)
    widths = [shape[1] for shape in reference.shapes]
    assert widths == sorted(widths, reverse=True)


def test_only_what_is_missing_is_computed(scorer):
    store, _, _ = filled(EXAMPLES[:1], scorer)
    _, again, _ = filled(EXAMPLES * 2, scorer, store)
    assert again == 4
    assert len(store) == 6


def test_the_reference_is_not_loaded_where_nothing_is_missing(scorer):
    store, _, first = filled(EXAMPLES, scorer)
    _, computed, second = filled(EXAMPLES[::-1], scorer, store)
    assert (computed, first.loads, second.loads) == (0, 1, 0)


def test_a_completion_that_was_known_is_not_scored_again_beside_one_that_was_not(scorer):
    prompt, known, new = ids(3, 4), ids(5, 6, 7, 8), ids(9, 10)
    store, _, _ = filled([Example(prompt, [known])], scorer)
    before = stored(store, prompt, known)
    _, computed, reference = filled([Example(prompt, [known, new])], scorer, store)
    assert computed == 1
    assert reference.shapes == [(1, 3)]  # the last token predicts nothing
    assert stored(store, prompt, known) is before


def test_mismatched_completions_are_wanted_where_the_loss_needs_them(scorer):
    dataset = dataset_of(EXAMPLES[:2], mismatched=[[[12]], [[6, 7, 8], [6, 9]]])
    assert len(CompletionIndex.of(dataset, with_kl=False)) == 4
    wanted = CompletionIndex.of(dataset, with_kl=True)
    assert len(wanted) == 7
    store = MemoryStore()
    Filler(store, Counted(scorer).load, FillOptions(show_progress=False)).fill(dataset, wanted)
    alone, _, _ = filled([Example(ids(10, 11), [ids(6, 9)])], scorer)
    np.testing.assert_allclose(
        stored(store, ids(10, 11), ids(6, 9)),
        stored(alone, ids(10, 11), ids(6, 9)),
        rtol=1e-5,
        atol=1e-5,
    )


def test_the_border_between_prompt_and_completion_is_part_of_the_key():
    assert completion_key(ids(1, 2), ids(3)) != completion_key(ids(1), ids(2, 3))
    assert completion_key(ids(1, 2), ids(3)) == completion_key(ids(1, 2), ids(3))


def as_processes(work, count):
    """Run ``work(processes)`` in a thread each, with a gather that waits for all of them."""
    barrier, place = threading.Barrier(count), [None] * count
    results, errors = [None] * count, []

    def run(rank):
        def gather(value):
            place[rank] = value
            barrier.wait()
            gathered = list(place)
            barrier.wait()
            return gathered

        try:
            results[rank] = work(Processes(rank, count, gather))
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=[rank]) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def test_processes_share_the_work_and_end_with_complete_stores_of_their_own(scorer):
    lock = threading.Lock()

    class OneAtATime(Counted):
        def score(self, batch, context):
            with lock:
                return super().score(batch, context)

    known, _, _ = filled(EXAMPLES[:1], scorer)
    stores = [known, MemoryStore(), MemoryStore()]  # three nodes; one knows a row already
    references = [OneAtATime(scorer) for _ in stores]
    dataset = dataset_of(EXAMPLES)

    def work(processes):
        options = FillOptions(processes=processes, show_progress=False, rows_per_batch=1)
        load = references[processes.rank].load
        filler = Filler(stores[processes.rank], load, options)
        return filler.fill(dataset, CompletionIndex.of(dataset, with_kl=False))

    assert as_processes(work, 3) == [4, 4, 4]
    assert sum(len(reference.shapes) for reference in references) == 2
    whole, _, _ = filled(EXAMPLES, scorer)
    for store in stores:
        assert len(store) == 6
        for example in EXAMPLES:
            for completion in example.completion_ids:
                np.testing.assert_allclose(
                    stored(store, example.prompt_ids, completion),
                    stored(whole, example.prompt_ids, completion),
                    rtol=1e-5,
                    atol=1e-5,
                )


@pytest.mark.parametrize(("in_step", "passes"), [(False, [1, 1, 1, 0]), (True, [1, 1, 1, 1])])
def test_processes_that_share_weights_score_as_often_as_each_other(scorer, in_step, passes):
    """Each gathers weights from the others in every pass, also one that has nothing to score."""
    lock, references = threading.Lock(), [Counted(scorer, in_step) for _ in passes]
    stores, dataset = [MemoryStore() for _ in passes], dataset_of(EXAMPLES)

    def work(processes):
        options = FillOptions(processes=processes, show_progress=False)
        with lock:
            wanted = CompletionIndex.of(dataset, with_kl=False)
        reference = references[processes.rank]
        score = reference.score

        def in_turn(batch, context):
            with lock:
                return score(batch, context)

        reference.score = in_turn
        return Filler(stores[processes.rank], reference.load, options).fill(dataset, wanted)

    assert as_processes(work, len(passes)) == [6] * len(passes)
    assert [len(reference.shapes) for reference in references] == passes
    assert [len(store) for store in stores] == [6] * len(passes)


def test_scores_do_not_depend_on_the_layout():
    model = tiny_model("llama")
    shared, _, _ = filled(EXAMPLES, Scorer(model))
    padded, _, _ = filled(EXAMPLES, Scorer(model, "padded"))
    for example in EXAMPLES:
        for completion in example.completion_ids:
            np.testing.assert_allclose(
                stored(shared, example.prompt_ids, completion),
                stored(padded, example.prompt_ids, completion),
                rtol=1e-4,
                atol=1e-5,
            )


def test_filling_leaves_training_mode_and_gradients_alone():
    model = tiny_model("llama").train()
    scorer = Scorer(model)
    filled(EXAMPLES, scorer)
    assert all(module.training for module in model.modules())
    batch = build_layout(EXAMPLES)
    assert scorer.score(batch).logps.requires_grad


def test_what_is_wanted_is_held_in_numbers_and_not_in_tokens():
    """16 bytes for the key, 20 for row, place and length, whatever the length of the text."""
    long = [Example(ids(*range(row, row + 400)), [ids(*range(900))]) for row in range(2000)]
    dataset = dataset_of(long)
    tracemalloc.start()
    try:
        wanted = CompletionIndex.of(dataset, with_kl=False)
        groups = sum(len(group) for group in _by_row(wanted, np.arange(len(wanted)), Processes()))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert groups == len(wanted) == 2000
    assert held < 60 * len(wanted)  # the tokens are 5 KB each
    assert all(group.flags.owndata is False for group in _by_row(wanted, np.arange(9), Processes()))


def differences(wanted, got):
    """Return the largest difference of a token, and the mean signed one; nats."""
    apart = np.concatenate([a - b for a, b in zip(wanted, got, strict=True)]).astype(np.float64)
    return np.abs(apart).max(), abs(apart.mean())


def long_examples(count, tokens, seed=0):
    random = np.random.default_rng(seed)

    def text(most):
        return random.integers(3, VOCABULARY, random.integers(1, most + 1))

    return [Example(text(tokens), [text(tokens), text(tokens)]) for _ in range(count)]


# Nats for a token, and on average. Measured on a CPU: 1.2e-6 and 3e-9 in
# float32, 0.016 and 8e-6 under autocast, 0.016 and 5e-5 with weights in bfloat16.
@pytest.mark.parametrize(
    ("dtype", "autocast", "largest", "mean"),
    [
        (torch.float32, None, 1e-5, 1e-7),
        (torch.float32, torch.bfloat16, 0.04, 1e-4),
        (torch.bfloat16, None, 0.04, 2e-4),
    ],
    ids=["float32", "bf16 autocast", "bf16 weights"],
)
def test_where_values_are_computed_changes_their_rounding_only(dtype, autocast, largest, mean):
    """Padded or shared, alone or sixteen at a time; what a store serves may come from any."""
    examples = long_examples(16, 100)
    model = tiny_model("llama").to(dtype)
    context = nullcontext if autocast is None else partial(torch.autocast, "cpu", autocast)
    stores = []
    for layout in ("shared_prefix", "padded"):
        for rows in (1, 16):
            scorer = Scorer(model, layout, context=context)
            store, _, _ = filled(examples, scorer, rows_per_batch=rows, context=context)
            stores.append(
                [
                    stored(store, example.prompt_ids, completion)
                    for example in examples
                    for completion in example.completion_ids
                ]
            )
    for other in stores[1:]:
        apart, drift = differences(stores[0], other)
        assert apart < largest
        assert drift < mean


def test_half_precision_differs_from_float32_more_than_any_rounding_of_float32():
    """So it is another reference, and its fingerprint is another."""
    examples, model = long_examples(8, 60), tiny_model("llama")
    exact, _, _ = filled(examples, Scorer(model))
    half, _, _ = filled(examples, Scorer(copy.deepcopy(model).to(torch.bfloat16)))
    values = [
        [stored(store, e.prompt_ids, c) for e in examples for c in e.completion_ids]
        for store in (exact, half)
    ]
    apart, _ = differences(*values)
    assert apart > 0.01
    assert fingerprint_of(model).digest != fingerprint_of(model.to(torch.bfloat16)).digest
