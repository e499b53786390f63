"""``prefopt convert-config``, and the same files through ``prefopt train --config``."""

import json
import re

import pytest
import yaml
from safetensors.torch import load_file

from tests.cli.conftest import write_rows

FAST = ("--report_to=none", "--use_cpu", "--disable_tqdm=true", "--max_steps=2", "--bf16=false")
USER = {"role": "user", "content": "2 + 2 ="}


def pairs(count=8):
    return [
        {"instruction": f"{i} + 1 =", "chosen": f"{i + 1}", "rejected": f"{i + 2}"}
        for i in range(count)
    ]


def llama_factory(folder, model, **values):
    """Write a file in the style of LLaMA-Factory, its data and their description."""
    (folder / "data").mkdir(exist_ok=True)
    rows = [
        {"ask": row["instruction"], "good": row["chosen"], "bad": row["rejected"]}
        for row in pairs()
    ]
    talk = [
        {
            "talk": [{"from": "human", "value": row["ask"]}],
            "good": {"from": "gpt", "value": row["good"]},
            "bad": {"from": "gpt", "value": row["bad"]},
        }
        for row in rows
    ]
    thumbs = [{"ask": r["ask"], "said": r["good"], "liked": i % 2 == 0} for i, r in enumerate(rows)]
    for name, its in (("sums", rows), ("talk", talk), ("thumbs", thumbs)):
        (folder / "data" / f"{name}.json").write_text(json.dumps(its))
    ranked = {"chosen": "good", "rejected": "bad"}
    info = {
        "sums": {"file_name": "sums.json", "ranking": True, "columns": {"prompt": "ask", **ranked}},
        "talk": {
            "file_name": "talk.json",
            "formatting": "sharegpt",
            "ranking": True,
            "columns": {"messages": "talk", **ranked},
        },
        "thumbs": {
            "file_name": "thumbs.json",
            "columns": {"prompt": "ask", "response": "said", "kto_tag": "liked"},
        },
    }
    (folder / "data" / "dataset_info.json").write_text(json.dumps(info))
    values = {
        "model_name_or_path": str(model),
        "stage": "dpo",
        "do_train": True,
        "dataset": "sums,talk",
        "dataset_dir": str(folder / "data"),
        "template": "llama3",
        "max_samples": 100,
        "cutoff_len": 128,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.1,
        "overwrite_output_dir": True,
        "plot_loss": True,
        **values,
    }
    return write(folder / "theirs.yaml", values)


def axolotl(folder, model, **values):
    """Write a file in the style of Axolotl, and its data."""
    rows = [
        {"talk": [{**USER, "content": r["instruction"]}], "good": r["chosen"], "bad": r["rejected"]}
        for r in pairs()
    ]
    intel = [{"question": r["instruction"], **r, "instruction": None} for r in pairs()]
    intel = [{k: v for k, v in row.items() if k != "instruction"} for row in intel]
    thumbs = [
        {"question": r["instruction"], "completion": r["chosen"], "label": i % 2 == 0}
        for i, r in enumerate(pairs())
    ]
    for name, its in (("talk", rows), ("intel", intel), ("thumbs", thumbs)):
        write_rows(folder / f"{name}.jsonl", its)
    values = {
        "base_model": str(model),
        "model_type": "LlamaForCausalLM",
        "load_in_8bit": False,
        "rl": "dpo",
        "chat_template": "llama3",
        "datasets": [
            {
                "path": str(folder / "talk.jsonl"),
                "ds_type": "json",
                "type": "chat_template.default",
                "field_messages": "talk",
                "field_chosen": "good",
                "field_rejected": "bad",
            },
            {"path": str(folder / "intel.jsonl"), "type": "chatml.intel", "split": "train"},
        ],
        "val_set_size": 0.25,
        "sequence_len": 128,
        "sample_packing": False,
        "micro_batch_size": 2,
        "learning_rate": 1e-2,
        "optimizer": "adamw_torch",
        "flash_attention": True,
        "wandb_project": None,
        "evals_per_epoch": 1,
        "logging_steps": 1,
        **values,
    }
    return write(folder / "theirs.yml", values)


def handbook(folder, model, **values):
    """Write a file in the style of alignment-handbook, and its data in two splits."""
    rows = [
        {
            "prompt": row["instruction"],
            "chosen": [{**USER, "content": row["instruction"]}, said(row["chosen"])],
            "rejected": [{**USER, "content": row["instruction"]}, said(row["rejected"])],
        }
        for row in pairs()
    ]
    for name in ("ultra", "other"):
        (folder / name).mkdir(exist_ok=True)
        for split in ("train", "test"):
            write_rows(folder / name / f"{split}.jsonl", rows)
    values = {
        "model_name_or_path": str(model),
        "torch_dtype": "float32",
        "attn_implementation": "flash_attention_2",
        "dataset_mixer": {str(folder / "ultra"): 1.0, str(folder / "other"): 0.5},
        "dataset_splits": ["train", "test"],
        "preprocessing_num_workers": 1,
        "beta": 0.05,
        "do_eval": True,
        "eval_strategy": "epoch",
        "learning_rate": "1e-2",
        "max_length": 128,
        "max_prompt_length": 64,
        "optim": "adamw_torch",
        "per_device_train_batch_size": 2,
        "warmup_ratio": 0.1,
        **values,
    }
    return write(folder / "theirs.yaml", values)


def said(text):
    return {"role": "assistant", "content": text}


def write(path, values):
    path.write_text(yaml.safe_dump(values))
    return path


LORA = {"lora_r": 2, "lora_alpha": 4, "lora_target_linear": True, "adapter": "lora"}
THUMBS = {"stage": "kto", "dataset": "thumbs"}


def moved(folder, model):
    """Whether weights were trained: an adapter's B, which starts at 0, or the model's own."""
    if (folder / "adapter_model.safetensors").is_file():
        saved = load_file(folder / "adapter_model.safetensors")
        return all(bool(w.abs().sum() > 0) for name, w in saved.items() if "lora_B" in name)
    saved, start = (load_file(place / "model.safetensors") for place in (folder, model))
    return any(not saved[name].equal(start[name]) for name in saved)


@pytest.mark.parametrize(
    ("make", "values", "loss", "adapter"),
    [
        (llama_factory, {"pref_loss": "simpo", "pref_ftx": 0.1}, r"simpo \+ 0.1\*sft", True),
        (llama_factory, {"finetuning_type": "full", "pref_bco_weight": 1}, r"0.5\*dpo \+", False),
        (llama_factory, THUMBS | {"lora_rank": 2, "val_size": 3}, "kto", True),
        (axolotl, {"rl": "orpo", "orpo_alpha": 0.3}, "orpo", False),
        (axolotl, {**LORA, "rl": "ipo", "bf16": "auto"}, "ipo", True),
        (handbook, {"use_peft": True, "lora_r": 2, "lora_alpha": 2}, "dpo", True),
        (handbook, {"loss_type": "apo_zero"}, "apo_zero", False),
    ],
)
def test_a_file_of_theirs_trains_the_loss_that_it_means(
    prefopt, model_folder, tmp_path, make, values, loss, adapter
):
    path = make(tmp_path, model_folder, **values)
    result = prefopt("train", "--config", path, "--output_dir", tmp_path / "out", *FAST)
    assert result.code == 0, result.err
    assert re.search(rf"prefopt: loss {loss}", result.err), result.err
    assert (tmp_path / "out" / "adapter_config.json").is_file() == adapter
    assert moved(tmp_path / "out", model_folder)
    assert re.search(r"^prefopt: .*theirs.ya?ml is a file of ", result.err, re.MULTILINE)


def test_a_converted_file_trains_as_theirs_does(prefopt, model_folder, tmp_path):
    path = axolotl(tmp_path, model_folder, rl="simpo", simpo_gamma=1, cpo_alpha=0, bf16=False)
    ours = tmp_path / "ours.yaml"
    result = prefopt("convert-config", path, "-o", ours)
    assert result.code == 0, result.err
    assert "loss_type simpo, beta 0.1, loss_kwargs {'gamma': 1.0}" in result.out
    weights = []
    for name, config in (("a", path), ("b", ours)):
        out = tmp_path / name
        result = prefopt("train", "--config", config, "--output_dir", out, *FAST)
        assert result.code == 0, result.err
        weights.append(load_file(out / "model.safetensors"))
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])


def test_what_cannot_be_had_is_one_error_of_training(prefopt, model_folder, tmp_path):
    path = llama_factory(tmp_path, model_folder, use_galore=True, pref_lose="ipo", dataset="no")
    result = prefopt("train", "--config", path, "--output_dir", tmp_path / "out", *FAST)
    assert result.code == 2
    error = result.err[result.err.rindex("prefopt: error: ") :]
    for said_ in ("use_galore: True: use optim", "did you mean 'pref_loss'", "no dataset 'no'"):
        assert said_ in error
    assert "prefopt convert-config" in error
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_had_is_listed_and_trains_only_when_it_is_removed(
    prefopt, model_folder, tmp_path
):
    path = llama_factory(tmp_path, model_folder, use_galore=True)
    ours = tmp_path / "ours.yaml"
    result = prefopt("convert-config", path, "-o", ours)
    assert result.code == 1
    assert "use_galore: True" in result.err
    assert yaml.safe_load(ours.read_text())["not_converted"] == {"use_galore": True}
    result = prefopt("train", "--config", ours, "--output_dir", tmp_path / "out", *FAST)
    assert result.code == 2
    assert "not_converted" in result.err
    assert "decide on each, and remove the list instead" in result.err


def test_a_file_of_ours_is_not_converted(prefopt, tmp_path):
    path = write(tmp_path / "run.yaml", {"model": "m", "dataset": "d", "loss_type": "ipo"})
    result = prefopt("convert-config", path)
    assert result.code == 2
    assert "is one of ours" in result.err


def test_the_command_line_goes_before_their_file(prefopt, model_folder, tmp_path):
    path = handbook(tmp_path, model_folder)
    run = ("train", "--config", path, "--output_dir", tmp_path / "out", *FAST)
    result = prefopt(*run, "--loss_type", "orpo")
    assert result.code == 0, result.err
    assert "prefopt: loss orpo" in result.err
    assert "beta" not in result.err.split("is a file of")[1].splitlines()[0].split("loss_kwargs")[0]
