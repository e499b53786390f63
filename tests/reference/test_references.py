"""Serving a run's reference: streams scored once, several processes, what a checkpoint records."""

import logging
import threading

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader

from prefopt.data.collate import BATCHES, PreferenceCollator
from prefopt.engine import Scorer
from prefopt.reference.fill import CompletionIndex, FillOptions
from prefopt.reference.processes import Processes
from prefopt.reference.references import References
from prefopt.reference.sources import InitialPolicy, MovingPolicy, OtherModel
from prefopt.reference.store.database import PAGE_BYTES
from prefopt.reference.store.logp_store import FILE_NAME, FileStore, MemoryStore, open_database
from prefopt.reference.store.maintain import delete_reference, references_of
from tests.models import tiny_model
from tests.reference.store.test_logp_store import index_pages, overwrite
from tests.reference.test_fill import as_processes

KINDS = {"ranks": [0, 1], "desirable": [True, False]}


def row(prompt, first, second, mismatched=None, masks=None):
    fields = {"prompt_ids": prompt, "completion_ids": [first, second]} | KINDS
    if mismatched is not None:
        fields["kl_completion_ids"] = [mismatched]
    if masks is not None:
        fields["completion_masks"] = masks
    return fields


ROWS = [
    row([3, 4, 5], [6, 7, 8], [6, 9], mismatched=[20, 21, 22]),
    row([10, 11], [12], [13, 14, 15], mismatched=[6, 7, 8]),
    row([], [30, 31], [32, 33, 34], mismatched=[12]),  # its first tokens are predicted by nothing
]
MASKED = [
    row([3, 4, 5], [6, 7, 8], [6, 9], masks=[[True, False, True], [False, True]]),
    row([], [30, 31], [32, 33, 34], masks=[[True, True], [True, False, True]]),
]


def texts_of(rows, layout="shared_prefix"):
    """Return the completions of rows, laid out as one batch."""
    (batch,) = PreferenceCollator(layout=layout).batches(rows)
    return batch.texts


class Stream:
    """What the trainer takes for a stream: no length."""


class CountedModel(OtherModel):
    """A reference that counts how often it scores at a step."""

    def __init__(self, model, scorer_of):
        super().__init__(model, lambda m: m, {}, "none", scorer_of, None)
        self.passes = 0

    def live(self):
        live = super().live()
        score = live.score

        def counted(*args, **options):
            self.passes += 1
            return score(*args, **options)

        live.score = counted
        return live


def initial(model):
    return InitialPolicy(Scorer(model), "none", None, Scorer)


def references(source, database=None, mode="auto", with_kl=False, **options):
    options = FillOptions(show_progress=False, **options)
    return References(source, mode, database, with_kl=with_kl, options=options, origin={})


def streaming(layout="auto", database=None):
    model = tiny_model("llama")
    source = CountedModel(model, lambda m: Scorer(m, layout))
    served = references(source, database)
    served.prepare(("train", Stream()))
    return served, source, model


def wanted_logps(model, prompt, completion, mask=None):
    """Sum the log-probs of a completion's tokens by the model's plain forward."""
    text = torch.tensor([*prompt, *completion])[None]
    logps = model(input_ids=text).logits[0, :-1].log_softmax(-1)
    each = logps.gather(-1, text[0, 1:, None])[:, 0].detach()[max(len(prompt) - 1, 0) :]
    counted = [True] * len(completion) if mask is None else mask
    return float(each[torch.tensor(counted[len(completion) - len(each) :], dtype=torch.bool)].sum())


@pytest.mark.parametrize("layout", ["shared_prefix", "padded"])
@pytest.mark.parametrize("disk", [True, False])
def test_what_a_stream_brings_is_scored_once_and_remembered(layout, disk, tmp_path):
    database = open_database(tmp_path) if disk else None
    served, source, model = streaming(layout, database)
    first = served.logps(texts_of(ROWS, layout)).logps
    again = served.logps(texts_of(ROWS[::-1], layout)).logps
    assert source.passes == 1
    assert served.computed == 6
    assert type(served.store) is (FileStore if disk else MemoryStore)
    wanted = [
        wanted_logps(model, r["prompt_ids"], ids) for r in ROWS for ids in r["completion_ids"]
    ]
    torch.testing.assert_close(first, torch.tensor(wanted), rtol=1e-5, atol=1e-5)
    order = [4, 5, 2, 3, 0, 1]
    torch.testing.assert_close(again, first[order], rtol=1e-6, atol=1e-6)


def test_masks_count_when_scored_and_when_remembered():
    served, source, model = streaming()
    scored = served.logps(texts_of(MASKED)).logps
    remembered = served.logps(texts_of(MASKED)).logps
    # Neither masked tokens, nor the first ones of a text.
    assert len(served.logps(texts_of(MASKED)).per_token_logps) == 5
    wanted = [
        wanted_logps(model, r["prompt_ids"], ids, mask)
        for r in MASKED
        for ids, mask in zip(r["completion_ids"], r["completion_masks"], strict=True)
    ]
    for got in (scored, remembered):
        torch.testing.assert_close(got, torch.tensor(wanted), rtol=1e-5, atol=1e-5)
    whole = [row(r["prompt_ids"], *r["completion_ids"]) for r in MASKED]
    served.logps(texts_of(whole))  # masks are no part of what is kept
    assert source.passes == 1


@pytest.mark.parametrize("how", ["separate", "continued"])
def test_mismatched_completions_of_a_stream_are_remembered_too(how):
    served, source, model = streaming()
    collator = PreferenceCollator(mismatched=how)
    wanted = [wanted_logps(model, r["prompt_ids"], r["kl_completion_ids"][0]) for r in ROWS]
    for _ in range(2):
        (batch,) = collator.batches(ROWS)
        assert batch.continues == (how == "continued")
        got = served.logps(batch.mismatched).logps
        torch.testing.assert_close(got, torch.tensor(wanted), rtol=1e-5, atol=1e-5)
    assert source.passes == 1
    assert len(served.store) == 3


@pytest.mark.parametrize("disk", [True, False])
@pytest.mark.parametrize("layout", ["shared_prefix", "padded"])
def test_batches_of_worker_processes_cost_no_second_pass(disk, layout, tmp_path):
    served, source, model = streaming(layout, open_database(tmp_path) if disk else None)
    collator = PreferenceCollator(layout=layout)
    loader = DataLoader(
        ROWS, batch_size=1, num_workers=1, persistent_workers=True, collate_fn=collator
    )
    epochs = [
        [served.logps(batch.texts).logps for inputs in loader for batch in inputs[BATCHES]]
        for _ in range(2)
    ]
    assert source.passes == 3
    torch.testing.assert_close(torch.cat(epochs[0]), torch.cat(epochs[1]), rtol=1e-6, atol=1e-6)
    wanted = [
        wanted_logps(model, r["prompt_ids"], ids) for r in ROWS for ids in r["completion_ids"]
    ]
    torch.testing.assert_close(torch.cat(epochs[1]), torch.tensor(wanted), rtol=1e-5, atol=1e-5)


# Rows that are known before training --------------------------------------------------------------


def test_rows_are_computed_once_and_looked_up_at_every_step(tmp_path):
    database, model = open_database(tmp_path), tiny_model("llama")
    served = references(initial(model), database)
    rows = Dataset.from_list(ROWS)
    assert [served.prepare(("train", rows)) for _ in range(2)] == [6, 0]
    assert served.computed == 6
    wanted = [
        wanted_logps(model, r["prompt_ids"], ids) for r in ROWS for ids in r["completion_ids"]
    ]
    got = served.logps(texts_of(ROWS))
    torch.testing.assert_close(got.logps, torch.tensor(wanted), rtol=1e-5, atol=1e-5)
    assert len(got.per_token_logps) == 12
    other_run = references(initial(model), database)
    assert other_run.prepare(("train", rows), ("eval", rows.select([1]))) == 0
    database.close()


@pytest.fixture
def large(monkeypatch):
    """Rows that count as a large dataset; how often they were read is told."""
    monkeypatch.setattr("prefopt.reference.references.LARGE", len(ROWS))
    read = []
    of = CompletionIndex.of
    monkeypatch.setattr(CompletionIndex, "of", lambda *asked: read.append(asked) or of(*asked))
    return Dataset.from_list(ROWS), read


def reloadable(model):
    return InitialPolicy(Scorer(model), "none", lambda: model, Scorer)


def test_a_large_dataset_that_was_known_whole_is_not_read_again(tmp_path, large):
    (rows, read), model = large, tiny_model("llama")
    database = open_database(tmp_path)
    assert references(reloadable(model), database).prepare(("train", rows)) == 6
    other_run = references(reloadable(model), database)
    assert other_run.prepare(("train", rows), at_steps=True) == 0
    assert len(read) == 1
    assert len(other_run.logps(texts_of(ROWS)).logps) == 6
    # Read all the same: a part that was not asked for, by who cannot compute at steps, for KTO,
    # where the reference is gone by then, and for another reference.
    other_run.prepare(("eval", rows.select(range(2))), at_steps=True)
    references(reloadable(model), database).prepare(("train", rows))
    references(reloadable(model), database, with_kl=True).prepare(("train", rows), at_steps=True)
    references(initial(model), database).prepare(("train", rows), at_steps=True)
    other = reloadable(tiny_model("llama", seed=9))
    assert references(other, database).prepare(("train", rows), at_steps=True) == 6
    assert len(read) == 6
    database.close()


def test_what_was_deleted_or_lost_is_not_taken_for_known(tmp_path, large):
    (rows, read), model = large, tiny_model("llama")
    database = open_database(tmp_path)
    references(reloadable(model), database).prepare(("train", rows))
    database.connection.execute("DELETE FROM completion WHERE tokens = 2")
    lost = references(reloadable(model), database).prepare(("train", rows), at_steps=True)
    assert (lost > 0, len(read)) == (True, 2)
    (info,) = references_of(database)
    delete_reference(database, info)
    assert references(reloadable(model), database).prepare(("train", rows), at_steps=True) == 6
    database.close()


def test_mismatched_completions_are_computed_where_the_loss_takes_them():
    rows = Dataset.from_list(ROWS)
    assert references(initial(tiny_model("llama")), with_kl=True).prepare(("train", rows)) == 9
    assert references(initial(tiny_model("llama")), with_kl=False).prepare(("train", rows)) == 6


def test_a_stream_cannot_be_computed_ahead():
    served = references(initial(tiny_model("llama")), mode="cached")
    with pytest.raises(ValueError, match=r"reference='cached' .* a stream \(train\) has no"):
        served.prepare(("train", Stream()))


def test_a_store_has_no_predictions():
    served = references(initial(tiny_model("llama")))
    with pytest.raises(ValueError, match="divergences need reference='live'"):
        served.logps(texts_of(ROWS), with_predictions=True)


def test_what_the_store_lacks_though_it_was_prepared_is_computed_then(caplog):
    served = references(initial(tiny_model("llama")))
    served.prepare(("train", Dataset.from_list(ROWS)))
    wanted = served.logps(texts_of(ROWS)).logps
    served.store._values.clear()
    torch.testing.assert_close(served.logps(texts_of(ROWS)).logps, wanted, rtol=1e-5, atol=1e-5)
    assert "the store lacks a completion that it had" in caplog.text
    assert len(served.store) == 6


def test_rows_of_a_damaged_store_are_all_computed_again(tmp_path, caplog):
    served = references(initial(tiny_model("llama")), open_database(tmp_path))
    train, evaluation = Dataset.from_list(ROWS[:2]), Dataset.from_list(ROWS[2:])
    assert served.prepare(("train", train)) == 4
    wanted = served.logps(texts_of(ROWS[:2])).logps
    served.store.database.close()
    path = tmp_path / FILE_NAME
    overwrite(path, index_pages(path)[0], b"\x55" * PAGE_BYTES)
    served.prepare(("train", train), ("eval", evaluation))
    assert "was set aside" in caplog.text
    known = served.computed
    torch.testing.assert_close(served.logps(texts_of(ROWS[:2])).logps, wanted)
    served.logps(texts_of(ROWS[2:]))
    assert served.computed == known
    served.store.database.close()


# Several processes --------------------------------------------------------------------------------


def test_the_fingerprint_is_that_of_the_main_process():
    lock = threading.Lock()

    def work(processes):
        with lock:
            source = initial(tiny_model("llama", seed=processes.rank))
        return references(source, processes=processes).fingerprint

    first, second = as_processes(work, 2)
    assert first == second == initial(tiny_model("llama")).fingerprint()


@pytest.mark.parametrize("rank", [0, 1])
def test_sharded_weights_are_kept_in_memory_and_said_once(tmp_path, caplog, rank):
    model = tiny_model("llama")
    source = initial(model)
    model.lm_head.weight.device_mesh = None  # as a DTensor has one
    source = initial(model)
    processes = Processes(rank, 2, lambda value: [value, value])
    with caplog.at_level(logging.WARNING, "prefopt"):
        served = references(source, open_database(tmp_path), processes=processes)
    assert type(served.store) is MemoryStore
    assert served.fingerprint is None
    said = [entry for entry in caplog.messages if "spread over processes" in entry]
    assert len(said) == (1 if rank == 0 else 0)


# What a checkpoint records ------------------------------------------------------------------------


def test_a_record_is_of_the_same_model_in_whatever_precision(tmp_path):
    model = tiny_model("llama")
    record = references(initial(model)).record()
    assert record["description"] == "the initial policy"
    assert record["loaded_from"] == {}
    assert references(initial(tiny_model("llama"))).is_of(record)
    assert not references(initial(tiny_model("llama", seed=1))).is_of(record)
    in_bfloat16 = InitialPolicy(Scorer(tiny_model("llama")), "bf16", None, Scorer)
    other_precision = references(in_bfloat16)
    assert other_precision.fingerprint.digest != record["fingerprint"]
    assert other_precision.is_of(record)


def test_what_moves_is_computed_at_each_step_and_recorded_without_a_fingerprint():
    policy = tiny_model("llama")
    served = references(MovingPolicy(Scorer(policy)), mode="live")
    record = served.record()
    assert (record["fingerprint"], served.store) == (None, None)
    assert str(served) == "a copy that follows the policy (TR-DPO), computed at each step"
    texts = texts_of(ROWS)
    before = served.logps(texts).logps
    with torch.no_grad():
        policy.lm_head.weight.mul_(2)
    torch.testing.assert_close(served.logps(texts).logps, before)
    served.source.copy.follow(0.5)
    assert (served.logps(texts).logps - before).abs().max() > 1e-3


def test_another_reference_serves_nothing_of_the_one_before(tmp_path):
    first, second = initial(tiny_model("llama")), initial(tiny_model("llama", seed=1))
    served = references(first, open_database(tmp_path))
    served.store.add([(b"k" * 16, np.zeros(2, dtype=np.float32))])
    served.switch_to(second)
    assert served.store.look_up([b"k" * 16]) == [None]
    assert served.fingerprint == second.fingerprint()
