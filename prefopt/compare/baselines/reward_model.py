"""A Bradley-Terry reward model of the same pairs: trained by TRL, measured on those held out.

Source: Bradley and Terry 1952; as a sequence classifier on a language model, Stiennon et al. 2020,
arXiv:2009.01325, section 3.4. Departures from it: none. It starts from the weights that the methods
start from, with a new head. It reads the token ids that the losses read.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset

from prefopt.compare.baselines.measured import write_measured
from prefopt.compare.baselines.training import adapter_target, train
from prefopt.compare.baselines.trl_config import make_config, make_model_config
from prefopt.data import load_rows, prepare_dataset
from prefopt.data.index import index_of
from prefopt.evaluation import (
    Estimate,
    cluster_interval,
    correct_pairs,
    correlation,
    length_balanced,
)
from prefopt.evaluation.judges.classifier import ClassifierJudge
from prefopt.evaluation.loading import tokenizer_of

__all__ = ["measure_reward_model", "train_reward_model"]

MAX_LENGTH = 1024  # tokens of a text where nothing else is said, as in training


class _Pair(NamedTuple):
    """A pair of completions.

    Attributes:
        row: Number of its row in the data.
        chosen_ids: Token ids of prompt and better completion.
        rejected_ids: The same of the other.
        chosen_tokens: Tokens of the better completion.
        rejected_tokens: The same of the other.
    """

    row: int
    chosen_ids: list[int]
    rejected_ids: list[int]
    chosen_tokens: int
    rejected_tokens: int


def train_reward_model(options: Mapping[str, Any], resume: bool = False) -> None:
    """Train a reward model.

    Args:
        options: ``model``, ``dataset``, ``eval_datasets``, ``output_dir``, and options of TRL's
            ``RewardConfig`` and ``ModelConfig``.
        resume: Whether to go on from the newest checkpoint.

    Raises:
        ValueError: If there are no pairs, or an option is wrong.
    """
    from trl import RewardTrainer, get_peft_config, get_quantization_config

    adapter_target(options["model"])
    model_config = make_model_config({**options, "lora_task_type": "SEQ_CLS"})
    config = make_config(options, "RewardConfig")
    config.model_init_kwargs = model_options(options)
    tokenizer = tokenizer_of(options["model"], config.model_init_kwargs)
    max_length = options.get("max_length", MAX_LENGTH)
    files = [options["dataset"], *options.get("eval_datasets", ())]
    data = [_trl_rows(_pairs(file, tokenizer, max_length)) for file in files]
    trainer = RewardTrainer(
        model=options["model"],
        args=config,
        train_dataset=data[0],
        eval_dataset=data[1] if len(data) > 1 else None,
        processing_class=tokenizer,
        quantization_config=get_quantization_config(model_config),
        peft_config=get_peft_config(model_config),
    )
    train(trainer, resume, lambda: _save_merged(trainer), counts_anew=True)


def measure_reward_model(options: Mapping[str, Any]) -> None:
    """Measure how a reward model orders held-out pairs, as ``prefopt eval`` measures policies.

    Args:
        options: ``model``, ``dataset``, ``output_dir``.

    Raises:
        ValueError: If there are fewer than two pairs, or there is no reward model.
    """
    judge = ClassifierJudge.load(options["model"])
    tokenizer = tokenizer_of(options["model"], {})
    pairs = _pairs(options["dataset"], tokenizer, options.get("max_length", MAX_LENGTH))
    texts = [pair.chosen_ids for pair in pairs] + [pair.rejected_ids for pair in pairs]
    rewards = torch.tensor(judge.scores_of_ids(texts), dtype=torch.float64)
    chosen, rejected = rewards.chunk(2)
    metrics, baselines = _metrics(pairs, chosen, rejected)
    sides = zip(pairs, chosen.tolist(), rejected.tolist(), strict=True)
    rows = [
        {
            "row": pair.row,
            "chosen_reward": reward,
            "rejected_reward": other,
            "chosen_tokens": pair.chosen_tokens,
            "rejected_tokens": pair.rejected_tokens,
        }
        for pair, reward, other in sides
    ]
    write_measured(
        Path(options["output_dir"]),
        model=options["model"],
        dataset=options["dataset"],
        settings={"reward": "reward model"},
        metrics=metrics,
        data_baselines=baselines,
        pairs=rows,
    )


def model_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of ``from_pretrained`` as ``prefopt train`` understands them.

    Args:
        options: Of the run.
    """
    names = {"model_revision": "revision", "dtype": "dtype", "attn_implementation": None}
    found = {name or key: options[key] for key, name in names.items() if options.get(key)}
    return {"dtype": "float32", **found, **(options.get("model_init_kwargs") or {})}


def _pairs(file: str, tokenizer: Any, max_length: int | None) -> list[_Pair]:
    """Return the pairs of a file, those of rankings included."""
    prepared = prepare_dataset(load_rows(file), tokenizer, max_length=max_length).dataset
    found = []
    for place, row in enumerate(prepared):
        index = index_of([row])
        texts = [[*row["prompt_ids"], *ids] for ids in row["completion_ids"]]
        lengths = [len(ids) for ids in row["completion_ids"]]
        for better, worse in zip(index.chosen.tolist(), index.rejected.tolist(), strict=True):
            number = row.get("prefopt_row", place)
            sides = (texts[better], texts[worse], lengths[better], lengths[worse])
            found.append(_Pair(number, *sides))
    if not found:
        raise ValueError(f"a reward model learns from pairs, and {file} has none")
    return found


def _trl_rows(pairs: Sequence[_Pair]) -> Dataset:
    columns = ("chosen_ids", "rejected_ids")
    return Dataset.from_dict({name: [getattr(pair, name) for pair in pairs] for name in columns})


def _save_merged(trainer: Any) -> None:
    """Save the model; an adapter merged into its base, so that it can be used as a classifier."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    model.save_pretrained(trainer.args.output_dir)


def _metrics(
    pairs: Sequence[_Pair], chosen: torch.Tensor, rejected: torch.Tensor
) -> tuple[dict[str, Estimate], dict[str, Estimate]]:
    """Return what is measured of the rewards of pairs, and what lengths alone reach."""
    rows = torch.tensor([pair.row for pair in pairs])
    lengths = (
        torch.tensor([pair.chosen_tokens for pair in pairs]),
        torch.tensor([pair.rejected_tokens for pair in pairs]),
    )
    metrics = {"accuracy": cluster_interval(correct_pairs(chosen, rejected), rows)}
    balanced = length_balanced(*lengths)
    if len(set(rows[balanced].tolist())) > 1:
        right = correct_pairs(chosen[balanced], rejected[balanced])
        metrics["balanced_accuracy"] = cluster_interval(right, rows[balanced])
    try:
        name = "margin_length_correlation"
        metrics[name] = correlation(chosen - rejected, lengths[0] - lengths[1])
    except ValueError:  # all the same
        pass
    baselines = {
        "longer": cluster_interval(correct_pairs(*lengths), rows),
        "shorter": cluster_interval(correct_pairs(*lengths[::-1]), rows),
    }
    return metrics, baselines
