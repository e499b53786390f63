"""Wrong words on the command line: one line on stderr, exit code 2."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bad_input.case import Case, run_command
from tests.models import tiny_model, tiny_rows, tiny_tokenizer


def files(folder: Path) -> Path:
    """Write a model, data and configurations that commands may name."""
    tiny_model("llama").save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    lines = [json.dumps(row) + "\n" for row in tiny_rows(4)]
    bad = '{"prompt": "w3", "chosen": 5, "rejected": "w4"}\n'
    texts = {
        "pairs.jsonl": "".join(lines),
        "labels.jsonl": "".join(json.dumps(row) + "\n" for row in tiny_rows(4, "unpaired")),
        "null.jsonl": "".join([*lines, json.dumps({"prompt": "w3", "chosen": "w4"})]),
        "cut.jsonl": "".join(lines)[:-9],
        "late.jsonl": "".join([*(lines * 5), bad]),
        "same.jsonl": '{"prompt": "w3", "chosen": "w4", "rejected": "w4"}\n' * 4,
        "empty.jsonl": '{"prompt": "w3", "chosen": "", "rejected": "w4"}\n' * 4,
        "open.csv": 'prompt,chosen,rejected\nw3,w4,"w5\nw3,w4,w5\n',
        "broken.yaml": "a: [1",
        "list.yaml": "- 1",
        "unknown.yaml": "bata: 1",
        "nan.yaml": "beta: .nan\nmodel: model\ndataset: pairs.jsonl",
        "text.yaml": "max_length: long\nmodel: model\ndataset: pairs.jsonl",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / "empty").mkdir()
    damaged(folder)
    return folder


def damaged(folder: Path) -> None:
    """Make copies of the model that are broken in one way each."""

    def config(path: Path, **times: int) -> None:
        fields = json.loads((path / "config.json").read_text())
        for name, factor in times.items():
            fields[name] = fields[name] * factor
        (path / "config.json").write_text(json.dumps(fields))

    def cut(path: Path) -> None:
        weights = (path / "model.safetensors").read_bytes()
        (path / "model.safetensors").write_bytes(weights[: len(weights) // 2])

    breaks: dict[str, Callable[[Path], Any]] = {
        "cut": cut,
        "wide": lambda path: config(path, hidden_size=2),
        "deep": lambda path: config(path, num_hidden_layers=2),
        "bare": lambda path: (path / "config.json").unlink(),
        "mute": lambda path: [file.unlink() for file in path.glob("token*")],
    }
    for name, damage in breaks.items():
        shutil.copytree(folder / "model", folder / name)
        damage(folder / name)


def command(says: str, *words: str) -> Case:
    """Return the case of a command; words that name a file mean it."""

    def do(folder: Path) -> str:
        known = {path.name: path for path in files(folder).iterdir()}
        return run_command(*(known.get(word, word) for word in words))

    return Case(" ".join(words) or "nothing", do, says, None)


def train(says: str, *words: str, data: str = "pairs.jsonl", model: str = "model") -> Case:
    """Return the case of a training run that is refused."""
    fixed: list[Any] = ["train", "--model", model, "--dataset", data, "--output_dir", "out"]
    settings = ["--max_steps", "9", "--use_cpu", "--report_to", "none", "--save_strategy", "no"]
    case = command(says, *fixed, *settings, *words)
    return Case(" ".join(["train", model, data, *words]), case.do, says, None)


# Options that keep the best model; the name of a metric follows.
BEST = (
    *("--eval_fraction", "0.5", "--eval_strategy", "steps", "--eval_steps", "1"),
    *("--load_best_model_at_end", "true", "--save_strategy", "best", "--metric_for_best_model"),
)

CASES = [
    command("unknown command 'trian'; did you mean 'train'", "trian"),
    command("--model is missing", "train", "--dataset", "pairs.jsonl"),
    command("--dataset is missing", "train", "--model", "model"),
    train("unknown option '--bata'; did you mean '--beta'", "--bata", "1"),
    train("'words' belongs to no option", "words"),
    train("--learning_rate: invalid float value: 'x'", "--learning_rate", "x"),
    train("learning_rate must be a finite number", "--learning_rate", "nan"),
    train("learning_rate must be at least 0", "--learning_rate", "-1"),
    train("--max_length: invalid int value: 'x'", "--max_length", "x"),
    train("max_length must be at least 2", "--max_length", "0"),
    train("beta must be a finite number", "--beta", "nan"),
    train("beta must be greater than 0", "--beta", "-1"),
    train("unknown loss 'ipoo'; did you mean 'ipo'", "--loss_type", "ipoo"),
    train("not a JSON object", "--loss_type", "dpo", "--loss_kwargs", "{a: 1}"),
    train("no loss here takes the option 'a'", "--loss_type", "dpo", "--loss_kwargs", '{"a": 1}'),
    train("2 values for 1 losses", "--loss_type", "dpo", "--loss_weights", "1", "2"),
    train("eval_fraction must be in", "--eval_fraction", "nan"),
    train("no rows for them: name a split", "--eval_strategy", "steps"),
    train("only split is 'train', not 'test'", "--dataset_test_split", "test"),
    train("--layout: invalid choice: 'paded'", "--layout", "paded"),
    train("Truthy value expected: got maybe", "--disable_dropout", "maybe"),
    train("must be an object like", "--model_init_kwargs", "[1]"),
    train("can't load the model .*: TypeError: .*'a'", "--model_init_kwargs", '{"a": 1}'),
    train("--optim: invalid choice: 'adamww'; did you mean '", "--optim", "adamww"),
    train("optim_args must be like 'name=value", "--optim_args", "foo"),
    train("optim_args: eps must be a finite number, got nan", "--optim_args", "eps=nan"),
    train(
        "lr_scheduler_kwargs: min_lr must be a finite number, got nan",
        *("--lr_scheduler_type", "cosine_with_min_lr", "--lr_scheduler_kwargs", '{"min_lr": NaN}'),
    ),
    train(
        "should be set through the `lr_scheduler_kwargs`",
        "--lr_scheduler_type",
        "cosine_with_min_lr",
    ),
    train("unexpected keyword argument 'foo'", "--lr_scheduler_kwargs", '{"foo": 1}'),
    train("install `galore_torch`", "--optim", "galore_adamw", "--optim_target_modules", "q_proj"),
    train("install `lomo_optim`", "--optim", "lomo"),
    train("wandb is not installed; pip install wandb", "--report_to", "wandb"),
    train("wandbb is not supported, only", "--report_to", "wandbb"),
    train("parallelism_config has no 'tp_siz'; did you", "--parallelism_config", '{"tp_siz": 1}'),
    train("tp_size must be a whole number", "--parallelism_config", '{"tp_size": "x"}'),
    train("parallelism_config must be an object", "--parallelism_config", "[1]"),
    train("max_steps must be at least 1, or -1 for none, got 0", "--max_steps", "0"),
    train("save_steps must be above 0", "--save_steps", "-5"),
    train("drops all 4 rows: a batch takes 8", "--dataloader_drop_last", "true"),
    train("metric_for_best_model='acc' is no metric .* there are eval_loss", *BEST, "acc"),
    train("did you mean 'eval_rewards/margins'", *BEST, "reward/margins"),
    train("not found in the evaluation metrics", *BEST, "rewards/margins", "--loss_type", "sft"),
    train("no such file or folder .*, and as an id on the Hub", data="no_such_folder"),
    train("chosen and rejected are the same in each row", data="same.jsonl"),
    train("each row has a completion without a word", data="empty.jsonl"),
    train("opens a quote that no line closes", data="open.csv"),
    train(r"model.safetensors is cut off or damaged", model="cut"),
    train("lacks 18 of its weights", model="deep"),
    train("21 of other shapes, the first is lm_head", model="wide"),
    train("bare has no config.json, so it is not .* a model; it holds", model="bare"),
    train("there is none in that folder", model="mute"),
    train("it is a file, name the folder of a model", model="pairs.jsonl"),
    train("pad_token '<x>' is not in", "--pad_token", "<x>"),
    train("per_device_train_batch_size must be at least 1", "--per_device_train_batch_size", "0"),
    train("there is no checkpoint 'nowhere'", "--resume_from_checkpoint", "nowhere"),
    train("there is no checkpoint in out", "--resume_from_checkpoint", "true"),
    train("output_dir .*null.jsonl is a file", "--output_dir", "null.jsonl"),
    train("there is no file or folder nowhere.jsonl", data="nowhere.jsonl"),
    train("row 4, column 'rejected': is null", data="null.jsonl"),
    train("cut.jsonl, line 4: is no valid JSON", data="cut.jsonl"),
    train("has no data files", data="empty"),
    train("the data is unpaired, but the loss needs", "--loss_type", "dpo", data="labels.jsonl"),
    train("row 20, column 'chosen'", "--dataset_streaming", data="late.jsonl"),
    train("there is no model in ./nowhere", model="./nowhere"),
    train("empty has no config.json, so .*; it holds nothing", model="empty"),
    command("cannot read the config file", "train", "--config", "nowhere.yaml"),
    command("broken.yaml is not valid YAML", "train", "--config", "broken.yaml"),
    command("must map option names to values", "train", "--config", "list.yaml"),
    command("unknown.yaml: unknown option 'bata'", "train", "--config", "unknown.yaml"),
    command("beta must be a finite number, got nan", "train", "--config", "nan.yaml"),
    command("--max_length: invalid int value: 'long'", "train", "--config", "text.yaml"),
    command("there is no file or folder", "data", "report", "nowhere.jsonl"),
    command("row 4, column 'rejected': is null", "data", "report", "null.jsonl"),
    command("only split is 'train', not 'x'", "data", "report", "pairs.jsonl", "--split", "x"),
    command("at least 1, or none, got '0'", "data", "report", "pairs.jsonl", "--max_length", "0"),
    command("can't load the tokenizer", "data", "report", "pairs.jsonl", "--tokenizer", "./no"),
    command("can't load the tokenizer", "data", "report", "pairs.jsonl", "--tokenizer", "empty"),
    command("unknown loss 'ipoo'", "losses", "ipoo"),
    command("--steps must be at least 1", "demo", "--steps", "0"),
    command("no file nowhere.parquet", "cache", "import", "nowhere.parquet"),
]
