"""Run scripts of ``tests/trl_scripts`` in folders of their own, under TRL or ``prefopt.trl``."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.models import tiny_model, tiny_tokenizer

SCRIPTS = Path(__file__).parent.parent / "trl_scripts"

# Each turn ends with EOS, as those of Zephyr and Llama 3 do.
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|> {{ message['content'] }} <eos> "
    "{% endfor %}{% if add_generation_prompt %}<|assistant|> {% endif %}"
)
ROLES = ["<|system|>", "<|user|>", "<|assistant|>"]

_ONLY_CPU = "--bf16 False --use_cpu --report_to none --disable_tqdm True --logging_steps 1"
_ADAPTER = "--use_peft --lora_r 4 --lora_alpha 16 --lora_target_modules all-linear"
# What those scripts are given that read the command line.
ARGUMENTS = {
    "dpo_lora": "--model_name_or_path model --dataset_name pairs --output_dir aligned "
    "--learning_rate 1e-2 --max_steps 6 --per_device_train_batch_size 2 "
    "--gradient_accumulation_steps 2 --eval_strategy steps --eval_steps 3 "
    f"--no_remove_unused_columns --beta 0.2 {_ADAPTER} {_ONLY_CPU}",
    "kto_lora": "--model_name_or_path model --dataset_name chat_thumbs --output_dir aligned "
    "--loss_type apo_zero_unpaired --learning_rate 1e-2 --lr_scheduler_type cosine "
    "--max_steps 6 --per_device_train_batch_size 4 --gradient_accumulation_steps 2 "
    f"--eval_strategy steps --eval_steps 3 {_ADAPTER} {_ONLY_CPU}",
    "orpo_lora": "--model_name_or_path model --dataset_name chat_pairs --output_dir aligned "
    "--beta 0.2 --learning_rate 1e-2 --max_steps 6 --per_device_train_batch_size 4 "
    f"--eval_strategy steps --eval_steps 3 {_ADAPTER} {_ONLY_CPU}",
}


@dataclass(frozen=True)
class ScriptRun:
    """What a script did.

    Attributes:
        losses: Loss of every micro-batch, as it was minimised; (micro-batches,).
        history: All that the trainer logged.
        seen: What the script's callback saw, in order: event, step, and a number it was told.
        steps: Optimiser steps.
        files: The files in the script's output folder.
        weights: The tensors of each file of weights among them.
    """

    losses: Tensor
    history: list[dict[str, float]]
    seen: list[tuple[str, int, float | None]]
    steps: int
    files: set[str]
    weights: dict[str, dict[str, Tensor]]

    @property
    def step_losses(self) -> Tensor:
        """Loss of each optimiser step, (steps,): a step's micro-batches may come in any order."""
        return self.losses.reshape(self.steps, -1).sum(1)

    def logged(self, name: str) -> list[float]:
        """Return every value that was logged under a name."""
        return [entry[name] for entry in self.history if name in entry]


def script_text(name: str) -> str:
    """Return the text of a script as it is for TRL."""
    return (SCRIPTS / f"{name}.py").read_text()


def one_word_changed(script: str) -> str:
    """Return the script for prefopt: the module that is imported from, and nothing else."""
    return re.sub(r"^from trl[.\w]* import", "from prefopt.trl import", script, flags=re.M)


def run_script(
    text: str, place: Path, folder: str, monkeypatch: pytest.MonkeyPatch, arguments: str = ""
) -> ScriptRun:
    """Run a script in a new folder that links to what is in ``place``."""
    work = place.parent / folder
    work.mkdir()
    for item in place.iterdir():
        (work / item.name).symlink_to(item)
    names: dict[str, Any] = {"__name__": "__main__"}
    with monkeypatch.context() as patch, _recorded(patch) as losses:
        patch.chdir(work)
        patch.setattr("sys.argv", ["script.py", *arguments.split()])
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", work / "cache")
        exec(compile(text, "script.py", "exec"), names)
    state, output = names["trainer"].state, work / "aligned"
    files = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    return ScriptRun(
        losses=torch.tensor(losses, dtype=torch.float64),
        history=state.log_history,
        seen=names["watch"].seen if "watch" in names else [],
        steps=state.global_step,
        files=files,
        weights={it: load_file(output / it) for it in sorted(files) if it.endswith(".safetensors")},
    )


@contextmanager
def _recorded(patch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Inside, keep the loss of every micro-batch."""
    losses: list[float] = []
    original = transformers.Trainer.training_step

    def recording(trainer: Any, *args: Any, **kwargs: Any) -> Tensor:
        loss = original(trainer, *args, **kwargs)
        losses.append(float(loss))
        return loss

    patch.setattr(transformers.Trainer, "training_step", recording)
    yield losses


def chat_tokenizer(template: str = TEMPLATE, bos: str | None = None) -> Any:
    """Return the tokenizer of whole words, with words for roles, and a template for chats."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ROLES})
    if bos is not None:
        tokenizer.add_special_tokens({"bos_token": "<bos>"})
    if bos == "added":
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
        )
    tokenizer.chat_template = template
    return tokenizer


def make_place(data: Path, tokenizer: Any = None) -> Path:
    """Fill a folder with two models, their tokenizer, and data of every kind."""
    tokenizer = chat_tokenizer() if tokenizer is None else tokenizer
    for name, seed in (("model", 0), ("reference", 1)):
        model = tiny_model("llama", seed, vocab_size=len(tokenizer), tie_word_embeddings=False)
        model.save_pretrained(data / name)
        tokenizer.save_pretrained(data / name)
    texts = _Texts(0)
    write(data / "pairs.jsonl", [texts.pair() for _ in range(32)])
    write(data / "titles.jsonl", [texts.pair(prompt=1) for _ in range(32)])
    write(data / "thumbs.jsonl", [texts.thumb() for _ in range(16)])
    write(data / "more_thumbs.jsonl", [texts.thumb() for _ in range(14)])
    write(data / "chat_pairs.jsonl", [as_chat(texts.pair()) for _ in range(24)])
    for split, count in (("train", 24), ("test", 8)):
        write(data / "pairs" / f"{split}.jsonl", [texts.pair() for _ in range(count)])
        rows = [as_chat(texts.thumb()) for _ in range(count)]
        write(data / "chat_thumbs" / f"{split}.jsonl", rows)
        rows = [as_chat(texts.pair()) for _ in range(count)]
        write(data / "chat_pairs" / f"{split}.jsonl", rows)
    return data


def make_likely(data: Path) -> Path:
    """Make what ``make_place`` does, with pairs that the model finds likely."""
    make_place(data)
    tokenizer = AutoTokenizer.from_pretrained(data / "model")
    model = AutoModelForCausalLM.from_pretrained(data / "model")

    def answer(prompt: str, length: int) -> str:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        for _ in range(length):
            logits = model(ids).logits[:, -1, 3:97]  # words only
            ids = torch.cat([ids, 3 + logits.argmax(-1, keepdim=True)], 1)
        return " " + tokenizer.decode(ids[0, -length:])

    rows = [_Texts(seed).pair() for seed in range(32)]
    likely = [
        {
            "prompt": it["prompt"],
            "chosen": answer(it["prompt"], 9),
            "rejected": answer(it["prompt"], 7),
        }
        for it in rows
    ]
    write(data / "pairs.jsonl", likely)
    return data


_BARE = TEMPLATE.replace(" <eos> ", " ")
PLACES: dict[str, Callable[[Path], Path]] = {
    "plain": make_place,
    "likely": make_likely,
    "BOS not added": lambda data: make_place(data, chat_tokenizer(bos="there")),
    "BOS added": lambda data: make_place(data, chat_tokenizer(bos="added")),
    "turns end without EOS": lambda data: make_place(data, chat_tokenizer(_BARE)),
    "the last turn ends with EOS": lambda data: make_place(
        data, chat_tokenizer(_BARE.replace("{% endif %}", "{% else %}<eos>{% endif %}"))
    ),
}


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as lines of JSON."""
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def as_chat(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of text as one of messages, with a system's message before."""
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    roles["completion"] = "assistant"
    chat = {
        name: [{"role": roles[name], "content": value.strip()}] if name in roles else value
        for name, value in row.items()
    }
    return chat | {"prompt": [{"role": "system", "content": "w3 w4"}, *chat["prompt"]]}


class _Texts:
    """Rows of random words."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)

    def words(self, least: int, most: int) -> str:
        ids = self._generator.integers(3, 97, self._generator.integers(least, most + 1))
        return " ".join(f"w{i}" for i in ids)

    def pair(self, prompt: int = 10) -> dict[str, Any]:
        answers = {side: " " + self.words(2, 8) for side in ("chosen", "rejected")}
        return {"prompt": self.words(1, prompt)} | answers

    def thumb(self) -> dict[str, Any]:
        # Mostly up: the mismatched completions become likelier too, and the KL estimate positive.
        label = bool(self._generator.random() < 0.75)
        return {"prompt": self.words(1, 10), "completion": " " + self.words(2, 8), "label": label}
