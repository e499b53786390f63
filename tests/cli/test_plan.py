"""``prefopt plan`` says what a run will need, in words and numbers that can be acted on."""

import json
from dataclasses import replace

import numpy as np
import pytest

from prefopt.cli import main
from prefopt.cli.errors import UserError
from prefopt.cli.plan import Device, device_of, lines_of
from prefopt.training.needs import Line, Memory, Model, Times
from prefopt.training.planning import LargestRow, RunPlan
from tests.models import tiny_model, tiny_rows, tiny_tokenizer

GIB = 2**30
PLAN = RunPlan(
    loss="dpo",
    scorer="layout shared_prefix",
    sizes=np.array([100] * 99 + [400]),
    largest_row=LargestRow(99, None, 400, 200, (120, 80)),
    rows_of_pass=8,
    passes_of_step=2,
    steps=7,
    epoch_tokens=10_300,
    largest_batch=1_100,
    is_cut=False,
    seconds_per_step=3.0,
    times=Times(start=20, reference=10, steps=21, evaluations=0, saving=4),
    unknown=(150, 200),
    memory=Memory(2 * GIB, 2 * GIB, 4 * GIB, Line(2 * GIB, GIB / 100), GIB / 2),
    peak_bytes=20 * GIB,
    model=Model(10, 100, 4, 2**28, GIB, 2**20),
    flops=35e12,
    trained=2**29,
    parameters=2**29,
    is_adapter=False,
    is_quantised=False,
    checkpointing=False,
    on_cpu=True,
    measured_steps=9,
)


def text(plan=PLAN, gpu=None):
    return "\n".join(lines_of(plan, gpu))


def test_it_says_rows_memory_and_time():
    said = text()
    assert "largest row  99: 400 tokens (prompt 200, completions 120 + 80)" in said
    assert "steps        7 of 16 rows in 2 passes; the largest pass has 1,100 tokens" in said
    # 0.5 + 2 + 4 of what is always there, 2 + 11 of a pass.
    assert "memory       19.50 GiB (measured here" in said
    assert "time         55.0 s end to end" in said
    assert "training 21.0 s" in said
    assert "evaluations" not in said  # there are none
    assert "200 completions, 50 of them in the store" in said


def test_it_says_what_other_options_would_change():
    said = text()
    # The largest row alone: 8.5 + 4 GiB.
    assert "--max_tokens_per_batch 400" in said
    assert "12.50 GiB" in said
    # An adapter of a MiB of weights: 0.5 + 2 and 4 x 4 MiB, and the pass without gradients.
    assert f" {0.5 + 2 + 11 + 16 / 1024:.2f} GiB  (LoRA of rank 16)" in said
    assert "--use_peft --load_in_4bit" in said
    used = replace(PLAN, is_adapter=True, is_quantised=True, checkpointing=True)
    assert "with, in place" not in text(replace(used, largest_batch=400))


def test_it_says_what_fits_into_a_gpu_that_is_not_here():
    said = text(gpu=device_of("24GB"))
    assert "computed for a GPU of 24 GiB" in said
    # 93% of 24, less 8.6 GiB: 1372 tokens, the largest row and nine of the others.
    assert (
        "yes; per_device_train_batch_size up to 10, or passes of max_tokens_per_batch=1372" in said
    )
    assert "not known: name the GPU" in said
    small = text(gpu=device_of("12"))
    assert "fits         no: the largest row needs 12.60 GiB alone" in small
    large = text(gpu=Device("X", 1000 * GIB, 100e12))
    assert "all rows at once" in large
    assert "time         1.0 s of training if it reaches 35% of its peak (100 TFLOP/s)" in large


def test_where_batches_are_cut_up_it_says_how_large_their_parts_can_be():
    said = text(replace(PLAN, is_cut=True), gpu=device_of("24GB"))
    assert "fits         yes; max_tokens_per_batch up to 1372 (" in said


def test_a_gpu_is_a_memory_or_a_name():
    assert device_of("RTX 4090") == Device("RTX 4090", 24 * GIB, 165e12)
    assert device_of("a100").memory == 80 * GIB
    assert device_of("40GiB").memory == 40 * GIB
    for wrong in ("Voodoo", "0GB", "-3"):
        with pytest.raises(UserError, match="--gpu takes a memory such as 24GB, or one of"):
            device_of(wrong)


@pytest.mark.slow  # a whole plan, by the command
def test_the_command_measures_and_writes_nothing(tmp_path, capsys, monkeypatch):
    tiny_model("llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    rows = [dict(row) for row in tiny_rows(16)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    options = ["--output_dir", "out", "--use_cpu", "--report_to", "none", "--seconds", "0"]
    argv = ["plan", "--model", "model", "--dataset", "rows.jsonl", *options]
    assert main([*argv, "--num_train_epochs", "1", "--gpu", "24GB"]) == 0
    said = capsys.readouterr().out
    assert "\ntraining     dpo; " in f"\n{said}"  # libraries may have said something before
    assert "steps        2 of 8 rows" in said
    assert sorted(tmp_path.rglob("*")) == before


def test_a_stream_is_refused(capsys):
    argv = ["plan", "--model", "m", "--dataset", "d", "--dataset_streaming", "--max_steps", "3"]
    assert main(argv) == 2
    assert "a stream does not tell its rows" in capsys.readouterr().err
