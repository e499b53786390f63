"""A run's batches: in its layout, KTO's mismatched completions where they can be scored."""

from dataclasses import replace

import pytest
from accelerate import Accelerator

from prefopt.engine import Scorer
from prefopt.objective import parse_objective
from prefopt.reference.processes import Processes
from prefopt.training.collation import collator_of
from prefopt.training.launch import Launch
from tests.models import tiny_model
from tests.runs import config


def collator(tmp_path, loss, layout="auto", processes=1, pad=None, **options):
    launch = Launch.of(Accelerator(cpu=True))
    launch = replace(launch, processes=Processes(0, processes, list, sum, list))
    scorer = Scorer(tiny_model("llama"), layout)
    return collator_of(parse_objective(loss), scorer, config(tmp_path, **options), launch, pad)


@pytest.mark.parametrize("layout", ["shared_prefix", "padded"])
def test_batches_have_the_layout_of_the_scorer(tmp_path, layout):
    made = collator(tmp_path, "dpo", layout, pad=7)
    assert (made.layout, made.pad_token_id, made.mismatched) == (layout, 7, None)
    assert collator(tmp_path, "dpo", layout).pad_token_id == 0


@pytest.mark.parametrize(
    ("how", "options"),
    [
        ("continued", {}),
        ("continued", {"max_tokens_per_batch": 100}),
        ("separate", {"gradient_accumulation_steps": 2}),
        ("separate", {"max_tokens_per_batch": 100, "processes": 2}),
        ("separate", {"layout": "padded"}),
        ("separate", {"neftune_noise_alpha": 5.0}),
    ],
)
def test_mismatched_completions_continue_the_batch_where_one_pass_makes_the_step(
    tmp_path, how, options
):
    assert collator(tmp_path, "kto", **options).mismatched == how


def test_parts_and_kinds_are_those_of_the_run(tmp_path):
    made = collator(tmp_path, {"paired": "dpo", "unpaired": "kto"}, max_tokens_per_batch=100)
    assert (made.max_tokens, made.by_kind) == (100, True)
    assert not collator(tmp_path, "dpo").by_kind
