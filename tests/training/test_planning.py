"""What a run will need is measured with steps of its own, and nothing is left of them."""

from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from prefopt.training.planning import (
    epoch_batches,
    lora_weights,
    plan_run,
    spread_rows,
    steps_of_run,
)
from tests.models import tiny_model, tiny_rows, tiny_tokenizer
from tests.runs import config, trainer


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store that knows the reference log-probs of the first half of the rows."""
    folder = tmp_path_factory.mktemp("store")
    half = tiny_rows(32).select(range(16))
    trainer(folder / "run", half, reference_cache_dir=str(folder))
    return folder


@pytest.fixture(scope="module")
def planned(store, tmp_path_factory):
    """A plan of a run over 32 pairs, and the folder that it would write to."""
    folder = tmp_path_factory.mktemp("planned")
    args = config(
        folder / "run",
        max_steps=-1,
        num_train_epochs=2,
        gradient_accumulation_steps=2,
        save_strategy="steps",
        save_steps=3,
        reference_cache_dir=str(store),
    )
    arguments = {"model": tiny_model("llama"), "args": args, "processing_class": tiny_tokenizer()}
    found = plan_run(arguments, tiny_rows(32), tiny_rows(8), before=100.0, most_seconds=0)
    return found, folder, args


def test_steps_rows_and_tokens_are_those_of_the_run(planned):
    found, _, _ = planned
    assert (found.steps, found.rows_of_pass, found.passes_of_step) == (8, 4, 2)
    assert len(found.sizes) == 32
    assert found.epoch_tokens == found.sizes.sum()
    row = found.largest_row
    assert row.tokens == found.sizes.max() == row.prompt + sum(row.completions)
    assert found.largest_batch <= np.sort(found.sizes)[-4:].sum()
    assert found.largest_batch >= found.sizes.mean() * 4
    assert found.loss == "dpo"


def test_memory_is_that_of_the_model_its_moments_and_a_pass(planned):
    found, _, _ = planned
    weights = sum(p.numel() for p in tiny_model("llama").parameters())
    assert found.trained == found.parameters == weights
    memory = found.memory
    assert memory.gradients == 4 * weights
    assert memory.weights == pytest.approx(4 * weights, rel=0.01)  # and buffers
    assert memory.optimizer == pytest.approx(8 * weights, rel=0.01)  # and counts of steps
    # Gradients stand beside what the backward pass has not freed yet.
    assert memory.step.at(found.largest_batch) > 4 * weights
    assert memory.of(found.largest_batch) == pytest.approx(found.peak_bytes)


def test_time_is_that_of_all_parts(planned):
    found, _, _ = planned
    times = found.times
    assert times.start > 100  # what the command took before
    assert times.steps == pytest.approx(8 * found.seconds_per_step)
    assert min(times.reference, times.evaluations, times.saving) > 0
    assert found.unknown is not None
    missing, wanted = found.unknown
    # The store knows half of them, and was not told what the plan computed of the others.
    assert 0 < missing <= 32 < wanted


def test_nothing_is_left_of_it(planned):
    _, folder, args = planned
    assert list(folder.iterdir()) == []
    assert args.gradient_accumulation_steps == 2


def test_the_batches_are_those_that_training_sees(tmp_path):
    run = trainer(tmp_path, tiny_rows(24), max_steps=6)
    rows = run.train_dataset
    batches = epoch_batches(rows, np.array([len(r["prompt_ids"]) for r in rows]), run.args)
    seen = []
    for inputs in run.get_train_dataloader():
        seen.append(sorted(its.number for batch in inputs["batches"] for its in batch.rows))
    assert [sorted(batch) for batch in batches] == seen


def test_what_cannot_be_planned_is_an_error(tmp_path):
    arguments = {"model": "nowhere", "args": config(tmp_path)}
    stream = Dataset.from_list([{"prompt": "a"}]).to_iterable_dataset()
    with pytest.raises(ValueError, match="a stream does not tell its rows"):
        plan_run(arguments, stream)


def test_steps_are_counted_as_transformers_counts_them(tmp_path):
    for passes, of_step, epochs in ((8, 2, 2), (7, 2, 1.5), (3, 4, 1)):
        args = config(tmp_path, max_steps=-1, num_train_epochs=epochs)
        wanted = int(np.ceil(epochs * max(passes // of_step + (passes % of_step > 0), 1)))
        assert steps_of_run(args, passes, of_step) == wanted
    assert steps_of_run(config(tmp_path, max_steps=5), 8, 2) == 5


def test_an_adapter_is_as_large_as_peft_makes_it():
    from peft import LoraConfig, get_peft_model
    from torch import nn

    model = tiny_model("llama")
    linear = [m for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"]
    found = lora_weights(model, linear)
    made = get_peft_model(tiny_model("llama"), LoraConfig(r=16))
    assert found == sum(p.numel() for p in made.parameters() if p.requires_grad)


def test_rows_of_a_sample_come_from_everywhere():
    assert spread_rows(np.full(100, 10), 50) == [0, 25, 50, 74, 99]
    assert spread_rows(np.full(3, 10), 10_000) == [0, 1, 2]
    assert spread_rows(np.array([500]), 10) == [0]
    assert not list(Path().glob("prefopt-plan-*"))
