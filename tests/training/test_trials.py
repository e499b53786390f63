"""Steps that are measured: on which batches, with which arguments, how their memory is read."""

import json

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from prefopt.training.trials import (
    most_allocated,
    tokens_at_once,
    trial_arguments,
    tried_batches,
)
from tests.runs import config


def test_the_largest_batch_comes_first_and_a_rest_is_not_tried():
    sizes = np.array([1, 2, 3, 4, 5, 6, 90])
    tried = tried_batches([[0, 1], [2, 3], [4, 5], [6]], sizes)
    assert tried[0] == [4, 5]
    assert sorted(map(tuple, tried)) == [(0, 1), (2, 3), (4, 5)]
    assert tried_batches([[6]], sizes) == [[6]]


def test_a_trial_tells_and_keeps_nothing(tmp_path):
    args = config(
        tmp_path / "run",
        report_to="tensorboard",
        gradient_accumulation_steps=8,
        eval_strategy="steps",
        eval_steps=5,
        save_strategy="epoch",
        model_init_kwargs={"dtype": "float32"},
        reference_cache_dir="store",
        learning_rate=0.5,
    )
    trial = trial_arguments(args, tmp_path / "trial")
    assert trial.output_dir == str(tmp_path / "trial" / "run")
    assert trial.reference_cache_dir == str(tmp_path / "trial" / "store")
    assert (trial.report_to, trial.eval_strategy, trial.save_strategy) == ([], "no", "no")
    assert (trial.gradient_accumulation_steps, trial.model_init_kwargs) == (1, None)
    assert trial.learning_rate == 0.5
    # Those of the run are what they were.
    assert (args.gradient_accumulation_steps, args.reference_cache_dir) == (8, "store")
    assert args.eval_strategy == "steps"


def test_the_most_that_is_allocated_is_read_from_a_trace(tmp_path):
    """Four of 1 MiB are there at most, of five that are made."""
    size, kept = 2**20 // 4, []
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as traced:
        for _ in range(4):
            kept.append(torch.ones(size))
        del kept[1:]
        kept.append(torch.ones(size))
    traced.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert 4 * 2**20 <= most_allocated(events) < 4 * 2**20 + 2**16
    assert most_allocated([]) == 0


def test_a_batch_that_is_cut_up_is_held_part_by_part():
    sizes = np.array([10, 40, 20])
    for most, held in ((None, 70), (100, 70), (50, 50), (5, 40)):
        assert tokens_at_once([0, 1, 2], sizes, most) == held
