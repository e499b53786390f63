"""Real training runs of seconds in the toy world, and what its callback said."""

import copy
import warnings
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from transformers import TrainerCallback

from prefopt import PreferenceConfig, PreferenceTrainer
from prefopt.evaluation import sample_completions
from prefopt.toy import (
    HELD_OUT_NAMES,
    NAMES,
    build_model,
    build_tokenizer,
    fit_model,
    prompts,
    sample_pairs,
    true_reward,
)
from prefopt.training.diagnostics import DiagnosticsCallback

KNOWN = [name for name in NAMES if name not in HELD_OUT_NAMES]
TOKENIZER = build_tokenizer()

Row = dict[str, Any]


class Ran(NamedTuple):
    """A run that has ended.

    Attributes:
        trainer: Its trainer.
        said: The lines of its ``DiagnosticsCallback``.
    """

    trainer: PreferenceTrainer
    said: list[str]

    @property
    def history(self) -> list[Row]:
        """What was logged."""
        return list(self.trainer.state.log_history)


@cache
def start() -> Any:
    """Return a model of the toy language, fitted in two seconds."""
    return fit_model(build_model(TOKENIZER, hidden_size=32), TOKENIZER, steps=150)


@cache
def held_out() -> tuple[Row, ...]:
    """Return pairs about names that training never sees."""
    return tuple(sample_pairs(300, seed=1, names=HELD_OUT_NAMES))


def pairs(count: int, seed: int = 0) -> list[Row]:
    """Return training pairs."""
    return sample_pairs(count, seed=seed, names=KNOWN)


def longer_first(rows: list[Row]) -> list[Row]:
    """Return the pairs whose answers differ in length, the longer as the chosen one."""
    found = []
    for row in rows:
        shorter, longer = sorted((row["chosen"], row["rejected"]), key=lambda text: text.count(" "))
        if shorter.count(" ") < longer.count(" "):
            found.append(row | {"chosen": longer, "rejected": shorter})
    return found


def run(folder: Path, rows: list[Row], **options: Any) -> Ran:
    """Train; options are fields of ``PreferenceConfig``, or ``callbacks``."""
    callbacks = options.pop("callbacks", [])
    fields = {
        "output_dir": str(folder),
        "beta": 0.3,
        "per_device_train_batch_size": 32,
        "per_device_eval_batch_size": 100,
        "lr_scheduler_type": "constant",
        "logging_steps": 5,
        "eval_strategy": "steps",
        "layout": "padded",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "diagnostics": True,
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*outside the published range")
        config = PreferenceConfig(**(fields | options))
        trainer = PreferenceTrainer(
            copy.deepcopy(start()),
            args=config,
            train_dataset=Dataset.from_list([_plain(row) for row in rows]),
            eval_dataset=Dataset.from_list([_plain(row) for row in held_out()]),
            processing_class=TOKENIZER,
            callbacks=callbacks,
        )
    said: list[str] = []
    (callback,) = (
        one for one in trainer.callback_handler.callbacks if isinstance(one, DiagnosticsCallback)
    )
    callback._say = said.append
    trainer.train()
    return Ran(trainer, said)


def _plain(row: Row) -> Row:
    return {name: row[name] for name in ("prompt", "chosen", "rejected")}


class RewardOfSamples(TrainerCallback):
    """Logs the true reward of 20 samples for each held-out prompt, at each evaluation."""

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = kwargs["model"].eval()
        asked = [prompt for prompt in prompts(HELD_OUT_NAMES) for _ in range(20)]
        completions = sample_completions(
            model,
            TOKENIZER(asked)["input_ids"],
            max_new_tokens=32,
            eos_token_id=TOKENIZER.eos_token_id,
            batch_size=512,
            seed=state.global_step,
        )
        texts = TOKENIZER.batch_decode(completions, skip_special_tokens=True)
        rewards = torch.tensor([true_reward(text) for text in texts])
        state.log_history.append(
            {
                "step": state.global_step,
                "eval_reward": rewards.mean().item(),
                "eval_reward_standard_error": rewards.std().item() / len(rewards) ** 0.5,
            }
        )
