"""Too little memory names the rows and tokens of the batch, and what to change."""

import pytest
import torch
from peft import LoraConfig

from prefopt.cli.errors import as_user_error
from prefopt.training.out_of_memory import TrainingMemoryError, is_out_of_memory, row_sizes
from tests.models import tiny_rows
from tests.runs import trainer

OF_A_CPU = (
    "[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
)
OF_A_GPU = "CUDA out of memory. Tried to allocate 20.00 MiB. " + "GPU 0 has a total capacity. " * 20


def failing(run, monkeypatch, error, at_step=2):
    """Have the forward pass of a step fail, and return what training raises."""
    score, seen = run._statistics.loss, []

    def loss(batch, *others):
        seen.append(batch)
        if run.state.global_step + 1 == at_step:
            raise error
        return score(batch, *others)

    monkeypatch.setattr(run._statistics, "loss", loss)
    with pytest.raises(TrainingMemoryError) as raised:
        run.train()
    assert raised.value.__cause__ is error
    return str(raised.value), seen[-1]


def test_the_error_names_step_rows_tokens_and_what_to_change(tmp_path, monkeypatch):
    run = trainer(tmp_path, tiny_rows(16))
    message, batch = failing(run, monkeypatch, RuntimeError(OF_A_CPU))
    numbers = [row.number for row in batch.rows]
    tokens = batch.texts.tokens.input_ids.numel()
    # Written down by hand: the prompt once, what both completions start with once.
    sizes = []
    for example in batch.texts.examples:
        first, second = (its.tolist() for its in example.completion_ids)
        common = 0
        while common < min(len(first), len(second)) and first[common] == second[common]:
            common += 1
        sizes.append(len(example.prompt_ids) + len(first) + len(second) - common)
    largest = numbers[sizes.index(max(sizes))]
    assert message.startswith(
        f"step 2: out of memory with a batch of 4 rows, {', '.join(map(str, numbers))}, "
        f"{tokens} tokens (most in row {largest}: {max(sizes)}). Less is needed with "
        f"max_tokens_per_batch={max(max(sizes), sum(sizes) // 2)}"
    )
    assert row_sizes(batch) == sizes
    assert "per_device_train_batch_size=2 and gradient_accumulation_steps=2" in message
    assert "gradient_checkpointing=True" in message
    assert "--use_peft" in message
    assert message.endswith(f"[{OF_A_CPU}]")


def test_of_a_single_row_the_length_is_to_blame(tmp_path, monkeypatch):
    run = trainer(
        tmp_path,
        tiny_rows(8),
        per_device_train_batch_size=1,
        gradient_checkpointing=True,
        peft_config=LoraConfig(r=2, target_modules=["q_proj"]),
    )
    message, batch = failing(run, monkeypatch, torch.OutOfMemoryError(OF_A_GPU))
    longest = max(len(text) for text in batch.texts.examples[0].texts())
    assert f"a max_length (now 1024) below the longest text's {longest} tokens" in message
    assert "load_in_4bit" in message
    for others in ("per_device", "max_tokens_per_batch", "gradient_checkpointing", "use_peft"):
        assert others not in message
    assert len(message) < 600


def test_outside_the_passes_no_batch_is_blamed(tmp_path, monkeypatch):
    run = trainer(tmp_path, tiny_rows(8))
    run.create_optimizer()
    monkeypatch.setattr(run.optimizer, "step", _raise)
    with pytest.raises(TrainingMemoryError, match="step 1: out of memory between the passes"):
        run.train()


def _raise(*_):
    raise RuntimeError(OF_A_CPU)


def test_other_errors_stay_what_they_are(tmp_path, monkeypatch):
    run = trainer(tmp_path, tiny_rows(8))
    monkeypatch.setattr(run._statistics, "loss", _shapes_differ)
    with pytest.raises(RuntimeError, match=r"^shapes differ$"):
        run.train()


def _shapes_differ(*_):
    raise RuntimeError("shapes differ")


def test_auto_find_batch_size_still_finds_one(tmp_path, monkeypatch):
    run = trainer(tmp_path, tiny_rows(16), auto_find_batch_size=True)
    score, sizes = run._statistics.loss, []

    def loss(batch, *others):
        sizes.append(len(batch.texts.examples))
        if sizes[-1] > 2:
            raise RuntimeError(OF_A_CPU)
        return score(batch, *others)

    monkeypatch.setattr(run._statistics, "loss", loss)
    run.train()
    assert sizes[0] == 4
    assert max(sizes[1:]) == 2


def test_the_command_reports_it_as_it_is():
    error = TrainingMemoryError("step 2: out of memory")
    assert error.exit_code == 1
    assert as_user_error(error) is None  # main prints an error that has an exit code


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("x"), True),
        (RuntimeError(OF_A_CPU), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (ValueError("out of memory"), False),
        (RuntimeError("index out of range"), False),
    ],
)
def test_what_is_an_error_of_memory(error, found):
    assert is_out_of_memory(error) is found
