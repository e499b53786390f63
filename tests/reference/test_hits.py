"""When a run finds what an earlier one has computed, and when it must not."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset, concatenate_datasets

from tests.models import tiny_model, tiny_rows, tiny_tokenizer
from tests.runs import trainer


@pytest.fixture
def run(tmp_path, scored):
    """A function that makes a trainer and returns how many completions it had to compute."""

    def started(train=None, folder="out", **options):
        scored.clear()
        train = tiny_rows(8) if train is None else train
        trainer(tmp_path / folder, train, **options)
        return sum(scored)

    assert started() == 16
    return started


def lora(**options):
    peft = pytest.importorskip("peft")
    fields = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    return peft.LoraConfig(**(fields | options))


# Hits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [
    {"loss_type": "ipo"},
    {"beta": 0.7},
    {"learning_rate": 1e-5},
    {"folder": "elsewhere"},
    {"seed": 5, "data_seed": 6},
    {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3},
    {"max_tokens_per_batch": 30},
    {"precompute_ref_batch_size": 1},
    {"layout": "padded"},
    {"disable_dropout": False},
    {"gradient_checkpointing": True},
    {"reference": "cached"},
    {"peft_config": lora()},
    {"peft_config": lora(r=4, lora_alpha=1, target_modules="all-linear"), "seed": 7},
    {"ref_model": tiny_model("llama")},
    {"max_length": 200},
], ids=str)  # fmt: skip
def test_another_run_computes_nothing(run, options):
    assert run(**options) == 0


def test_kto_computes_only_its_mismatched_completions_and_those_once(run):
    assert 0 < run(loss_type="kto") <= 16
    assert run(loss_type="kto", beta=0.3) == 0
    assert run() == 0


def test_the_first_steps_of_a_second_run_need_no_reference_forward(tmp_path, monkeypatch):
    trainer(tmp_path, tiny_rows(8), loss_type="dpo").train()
    monkeypatch.delattr("prefopt.reference.live.ReferenceModel.score")  # the others inherit it
    second = trainer(tmp_path, tiny_rows(8), loss_type="ipo", seed=3, max_steps=4)
    second.train()
    assert second.state.global_step == 4


def test_rows_in_another_order_are_known(run):
    assert run(tiny_rows(8).shuffle(seed=1)) == 0


def test_some_of_the_rows_are_known(run):
    assert run(tiny_rows(8).select([1, 5])) == 0


def test_of_more_rows_only_the_new_are_computed(run):
    new = tiny_rows(3, seed=9)
    assert run(concatenate_datasets([new, tiny_rows(8)])) == 6
    assert run(new) == 0


def test_rows_for_evaluation_are_known_from_training(run):
    assert run(eval_dataset={"a": tiny_rows(8), "b": tiny_rows(2, seed=9)}) == 4


def test_rows_made_from_scratch_are_known(run):
    again = tiny_rows(8).map(dict, new_fingerprint="of another file", load_from_cache_file=False)
    assert run(again) == 0


def test_a_prompt_with_another_completion_computes_only_that(run):
    rows = tiny_rows(8).to_list()
    rows[0]["rejected"] = " w3 w4 w5 w6"
    assert run(Dataset.from_list(rows)) == 1


def test_a_model_that_was_saved_and_loaded_is_known(run, tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "model")
    assert run(model=str(tmp_path / "model"), processing_class=tiny_tokenizer()) == 0


def test_a_reference_by_name_is_not_even_loaded_the_second_time(run, tmp_path, monkeypatch):
    tiny_model("llama", seed=1).save_pretrained(tmp_path / "reference")
    tiny_tokenizer().save_pretrained(tmp_path / "reference")
    name = str(tmp_path / "reference")
    assert run(ref_model=name) == 16
    monkeypatch.setattr("prefopt.training.model.load_model", None)
    assert run(ref_model=name, loss_type="ipo") == 0


_ANOTHER_PROCESS = """
import sys
from pathlib import Path
from prefopt.reference import fill
from tests.models import tiny_rows
from tests.runs import trainer
scored = []
original = fill.score_completions
fill.score_completions = lambda *args: scored.append(1) or original(*args)
trainer(Path(sys.argv[1]), tiny_rows(8), loss_type="ipo")
print("batches scored:", len(scored))
"""


@pytest.mark.slow
def test_another_process_computes_nothing(run, tmp_path):
    answer = subprocess.run(
        [sys.executable, "-c", _ANOTHER_PROCESS, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert "batches scored: 0" in answer.stdout


# Misses -------------------------------------------------------------------------------------------


def test_one_changed_weight_is_another_reference(run):
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 4] += 1e-6
    assert run(model=model) == 16


def test_another_base_is_another_reference(run):
    assert run(model=tiny_model("llama", seed=1)) == 16
    assert run(model=tiny_model("qwen2")) == 16
    assert run(ref_model=tiny_model("llama", seed=2)) == 16
    assert run() == 0


def test_a_base_under_the_same_adapter_is_another_reference(run):
    assert run(model=tiny_model("llama", seed=1), peft_config=lora()) == 16


def test_the_precision_of_the_computation_makes_another_reference(run):
    assert run(bf16=True) == 16
    assert run(model=tiny_model("llama").to(torch.bfloat16)) == 16
    assert run(bf16=True, loss_type="ipo") == 0


def test_an_adapter_that_was_trained_is_another_reference(run):
    peft = pytest.importorskip("peft")
    computed = []
    for seed in (0, 0, 1):
        base = tiny_model("llama")
        torch.manual_seed(seed)
        computed.append(run(model=peft.get_peft_model(base, lora(init_lora_weights=False))))
    assert computed == [16, 0, 16]


def test_other_weights_in_the_same_folder_are_another_reference(run, tmp_path):
    folder = tmp_path / "reference"
    tiny_tokenizer().save_pretrained(folder)
    for seed in (1, 2):
        tiny_model("llama", seed=seed).save_pretrained(folder)
        assert run(ref_model=str(folder)) == 16
        assert run(ref_model=str(folder)) == 0


@pytest.mark.slow
def test_quantisation_makes_another_reference(run, tmp_path):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    # A block of 4-bit weights is 64 wide.
    model = tiny_model("llama", hidden_size=64, intermediate_size=128)
    model.save_pretrained(tmp_path / "model")
    options = {"processing_class": tiny_tokenizer(), "peft_config": lora()}
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    name = str(tmp_path / "model")
    assert run(model=name, **options) == 16
    assert run(model=name, **options) == 0
    assert run(model=name, quantization_config=config, **options) == 16
    assert run(model=name, quantization_config=config, loss_type="ipo", **options) == 0


def chat_rows(count):
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": f"w{row + 3} w4"}],
                "chosen": [{"role": "assistant", "content": " w5 w6"}],
                "rejected": [{"role": "assistant", "content": " w7"}],
            }
            for row in range(count)
        ]
    )


def test_another_chat_template_is_another_text(run):
    answers = []
    for mark in ("w90", "w91", "w90"):
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = (
            "{% for m in messages %}" + mark + " {{ m['content'] }} {% endfor %}"
            "{% if add_generation_prompt %}" + mark + " {% endif %}"
        )
        answers.append(run(chat_rows(4), processing_class=tokenizer))
    assert answers == [8, 8, 0]


def test_truncation_that_changes_ids_is_another_text(run):
    assert 0 < run(max_length=12) < 16  # shorter rows are as they were
    assert run(max_length=12) == 0


def test_a_mask_is_not_another_text(run):
    """Values are kept for each token, so what counts of them is decided when they are served."""
    rows = [
        {"prompt_ids": [3, 4], "completion_ids": [[5, 6], [7]], "ranks": [0, 1], "desirable": []},
        {"prompt_ids": [8], "completion_ids": [[5, 6], [9]], "ranks": [0, 1], "desirable": []},
    ]
    assert run(Dataset.from_list(rows)) == 4
    masked = [row | {"completion_masks": [[False, True], [True]]} for row in rows]
    assert run(Dataset.from_list(masked)) == 0
