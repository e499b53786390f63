"""A run shorter than an epoch asks the reference about the rows that it sees, and no others."""

import logging
import math

import pytest
from peft import LoraConfig

from prefopt.training.loaders import rows_seen
from tests.models import tiny_model, tiny_rows
from tests.runs import steps, trainer

ROWS = 24


def lora():
    return LoraConfig(task_type="CAUSAL_LM", r=2)


@pytest.mark.parametrize("kind", ["paired", "unpaired"])
@pytest.mark.parametrize("order", ["random", "sequential"])
def test_only_the_rows_of_its_steps_are_scored(tmp_path, caplog, kind, order):
    rows, held_out = tiny_rows(ROWS, kind), tiny_rows(3, kind, seed=1)
    run = trainer(
        *(tmp_path, rows),
        eval_dataset=held_out,
        peft_config=lora(),
        max_steps=2,
        train_sampling_strategy=order,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=2,
    )
    per_row = 2  # a pair; or a completion and the one that it is mismatched with
    assert run.references.computed <= per_row * (2 * 4 + 3)
    assert run.references.computed >= 2 * 4 + 3
    before = run.references.computed
    with caplog.at_level(logging.WARNING, "prefopt"):
        run.train()
        run.evaluate()
    assert "the store lacks" not in caplog.text
    assert run.references.computed == before
    if kind == "paired":
        assert steps(run)[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_a_run_that_goes_on_scores_what_it_sees_then_and_evaluation_the_rest(tmp_path):
    rows = tiny_rows(ROWS)
    options = {"peft_config": None, "save_strategy": "steps", "save_steps": 2}
    short = trainer(tmp_path, rows, max_steps=2, **options | {"peft_config": lora()})
    assert short.references.computed == 2 * 8
    short.train()
    longer = trainer(tmp_path, rows, max_steps=4, **options | {"peft_config": lora()})
    assert longer.references.computed == 2 * 8  # those behind the first ones
    longer.train(resume_from_checkpoint=True)
    assert longer.state.global_step == 4
    assert longer.references.computed == 2 * 8
    longer.evaluate(longer.train_dataset)
    assert longer.references.computed == 2 * (ROWS - 8)


def test_a_reference_that_is_gone_after_training_scores_all_rows_before(tmp_path):
    run = trainer(tmp_path, tiny_rows(ROWS), model=tiny_model("llama"), max_steps=2)
    assert run.references.computed == 2 * ROWS


def test_an_order_of_ones_own_is_not_guessed(tmp_path):
    class Own(type(trainer(tmp_path, tiny_rows(4)))):
        def _get_train_sampler(self, train_dataset=None):
            return list(reversed(range(len(self.train_dataset))))

    plain = trainer(tmp_path, tiny_rows(ROWS), peft_config=lora(), max_steps=2)
    own = Own(
        tiny_model("llama"),
        args=plain.args,
        train_dataset=tiny_rows(ROWS),
        processing_class=plain.processing_class,
        peft_config=lora(),
    )
    assert own._to_serve()[0].only is None
    assert len(plain._to_serve()[0].only) == 8


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({"max_steps": 2}, 8),
        ({"max_steps": 6}, None),
        ({"max_steps": -1, "num_train_epochs": 0.5}, 12),
        ({"max_steps": -1, "num_train_epochs": 1}, None),
    ],
)
def test_how_many_rows_a_run_sees(tmp_path, options, rows):
    run = trainer(tmp_path, tiny_rows(ROWS), loss_type="simpo", **options)
    found = rows_seen(run.train_dataset, run._get_train_sampler(), run.args, run._launch.processes)
    assert (None if found is None else len(set(found.tolist()))) == rows
    if found is not None:
        first = next(iter(run.get_train_dataloader().batch_sampler))
        assert set(first) == set(found[: len(first)].tolist())
