"""Train the same model on the same rows with TRL and with prefopt, and compare step by step."""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from prefopt import PreferenceConfig, PreferenceTrainer

STEPS = 10

# Everything that TRL and transformers could default differently is said to both.
COMMON: dict[str, Any] = {
    "max_steps": STEPS,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 16,
    "learning_rate": 3e-3,
    "lr_scheduler_type": "constant",
    "train_sampling_strategy": "sequential",
    "gradient_checkpointing": False,
    "bf16": False,
    "use_cpu": True,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}


@dataclass(frozen=True)
class Run:
    """What a training run did.

    Attributes:
        losses: Loss of each optimiser step, as it was minimised; (steps,).
        grad_norms: Norm of its gradient before clipping; (steps,).
        movement: Final minus initial trainable weights; (weights,).
        logged: What was logged at each step.
        metrics: What evaluation gave after training; empty if there was no evaluation data.
        trainer: The trainer itself.
    """

    losses: Tensor
    grad_norms: Tensor
    movement: Tensor
    logged: list[dict[str, float]]
    metrics: dict[str, float]
    trainer: Any


def recording(base: type) -> type:
    """Return a trainer class that keeps the loss of every micro-batch: logs are rounded."""

    class Recording(base):  # type: ignore[misc,valid-type]
        def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
            loss = super().training_step(*args, **kwargs)
            self.__dict__.setdefault("micro_losses", []).append(float(loss))
            return loss

    return Recording


def train_with_trl(
    trainer_class: type,
    config_class: type,
    folder: Path,
    model: Any,
    rows: Dataset,
    tokenizer: Any,
    *,
    eval_rows: Dataset | None = None,
    peft_config: Any = None,
    **options: Any,
) -> Run:
    """Train a copy of the model with one of TRL's trainers."""
    trainer = recording(trainer_class)(
        copy.deepcopy(model),
        # Without one, TRL would look the name of the model up on the Hub.
        ref_model=None if peft_config is not None else copy.deepcopy(model),
        args=config_class(str(folder / "trl"), **(COMMON | options)),
        train_dataset=rows,
        eval_dataset=eval_rows,
        processing_class=tokenizer,
        peft_config=peft_config,
    )
    return _train(trainer)


def train_with_prefopt(
    folder: Path,
    model: Any,
    rows: Dataset,
    tokenizer: Any,
    *,
    eval_rows: Dataset | None = None,
    peft_config: Any = None,
    **options: Any,
) -> Run:
    """Train a copy of the model with ours."""
    trainer = recording(PreferenceTrainer)(
        copy.deepcopy(model),
        args=PreferenceConfig(str(folder / "prefopt"), **(COMMON | options)),
        train_dataset=rows,
        eval_dataset=eval_rows,
        processing_class=tokenizer,
        peft_config=peft_config,
    )
    return _train(trainer)


def _train(trainer: Any) -> Run:
    start = _weights(trainer.model)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    micro_losses = torch.tensor(trainer.micro_losses, dtype=torch.float64)
    return Run(
        losses=micro_losses.reshape(len(logged), -1).sum(1),
        grad_norms=torch.tensor([entry["grad_norm"] for entry in logged], dtype=torch.float64),
        movement=_weights(trainer.model) - start,
        logged=logged,
        metrics=trainer.evaluate() if trainer.eval_dataset is not None else {},
        trainer=trainer,
    )


def _weights(model: Any) -> Tensor:
    """Return all trainable weights, in float64; by name, since TRL may order them otherwise."""
    named = sorted((n, p) for n, p in model.named_parameters() if p.requires_grad)
    return torch.cat([p.detach().double().flatten() for _, p in named])


def differences(ours: Run, theirs: Run) -> dict[str, float]:
    """Return how far two runs are apart, relative to the second.

    That is the largest difference of losses and gradient norms, each over its own size, and for
    weights the norm of the difference and its mean over those of the movement: the weights that
    both started from are not counted as agreement.
    """
    apart = ours.movement - theirs.movement
    return {
        "losses": float(((ours.losses - theirs.losses) / theirs.losses).abs().max()),
        "grad_norms": float(
            ((ours.grad_norms - theirs.grad_norms) / theirs.grad_norms).abs().max()
        ),
        "weights": float(apart.norm() / theirs.movement.norm()),
        "drift": float(apart.mean().abs() / theirs.movement.abs().mean()),
    }


def assert_same_training(ours: Run, theirs: Run, tolerance: float = 1e-4) -> None:
    """Both runs took the same steps, and those were steps worth comparing."""
    assert len(ours.losses) == len(theirs.losses) == STEPS
    assert theirs.movement.abs().max() > 1e-2, "the weights hardly moved"
    assert theirs.losses.std() > 1e-3 * theirs.losses.mean(), "the loss hardly moved"
    found = differences(ours, theirs)
    assert max(found.values()) <= tolerance, found


def assert_same_metrics(
    ours: dict[str, float], theirs: dict[str, float], names: Sequence[str], prefix: str = ""
) -> None:
    """Metrics of both agree; rewards are small differences of log-probs of some 30 nats."""
    for name in names:
        mine, other = ours[prefix + name], theirs[prefix + name]
        assert abs(mine - other) <= 1e-4 * abs(other) + 1e-5, (name, mine, other)


def read_hh_rows(shared_dir: Path, count: int, longest: int = 500) -> Dataset:
    """Return short real pairs of Anthropic HH, the prompt split off where the last answer begins.

    TRL would take the longest common text as the prompt, which ends inside the answers.
    """
    from prefopt.data import load_rows

    rows = []
    for row in load_rows(str(shared_dir / "data" / "preference" / "hh_helpful_base_test.jsonl.gz")):
        (prompt, chosen), (other, rejected) = (_split(row[side]) for side in ("chosen", "rejected"))
        if prompt == other and chosen != rejected and len(row["chosen"]) < longest:
            rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
        if len(rows) == count:
            return Dataset.from_list(rows)
    raise AssertionError(f"only {len(rows)} short rows")


def _split(transcript: str) -> tuple[str, str]:
    head, turn, answer = transcript.rpartition("\n\nAssistant:")
    return head + turn, answer


def fitted_tokenizer(rows: Dataset, size: int = 400) -> Any:
    """Return a byte-level BPE of these rows: its merges may cross from prompt to completion."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        [json.dumps(row, ensure_ascii=False) for row in rows],
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=["<pad>", "<eos>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>")
