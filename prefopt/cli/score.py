"""``prefopt score``: the implicit reward of every completion of a file, and data made of it."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefopt.cli.errors import UserError, user_errors
from prefopt.cli.scoring import data_name, make_parser, read, read_rows

if TYPE_CHECKING:
    from prefopt.evaluation.candidates import Candidates, RowScores, ScoringLayout

_DESCRIPTION = """\
Score every completion of a file: its implicit reward under a model, its log-probs, its tokens.

  prefopt score pairs.jsonl --model aligned --output scored.jsonl
  prefopt score answers.jsonl --model aligned --keep best --output best.jsonl
  prefopt score rewardbench.parquet --model aligned --output scored.parquet

Rows may be pairs, labelled completions, rankings, or prompts with answers and no judgement of them.
Without --loss_type the implicit reward is the log-ratio, in nats. RewardBench's layout (prompt,
chosen, rejected, subset) is read as RewardBench means it: a question and answers.
"""

KEEP = ("best", "chosen_rejected", "accepted")


@dataclass
class ScoreArguments:
    """The own options of ``prefopt score``."""

    output: str | None = field(
        default=None, metadata={"help": "File to write: .jsonl or .parquet."}
    )
    keep: str | None = field(
        default=None,
        metadata={
            "help": "Write not the rows but new ones, one or more for each prompt: best, its best "
            "completion; chosen_rejected, its best and its worst as a pair; accepted, those that "
            "rejection sampling accepts. Completions of all rows with that prompt count.",
            "choices": list(KEEP),
        },
    )
    accept: int = field(
        default=1, metadata={"help": "Completions of a prompt that rejection sampling accepts."}
    )
    accept_beta: float = field(
        default=0.5,
        metadata={"help": "Reward that e-folds the probability of rejection sampling."},
    )
    chat: bool | None = field(
        default=None,
        metadata={
            "help": "Take text as a question and answers, rendered by the chat template. By "
            "default for RewardBench's layout, where the tokenizer has one."
        },
    )
    verbatim: bool | None = field(
        default=None,
        metadata={
            "help": "Leave plain completions as they are where they begin with the prompt, which "
            "is else taken out, as in training. By default for RewardBench's layout."
        },
    )
    prefix: str = field(
        default="",
        metadata={"help": "What the names of the new columns begin with, such as mine_."},
    )
    by: str | None = field(
        default=None,
        metadata={"help": "Column by whose values accuracy is told; by default subset, if any."},
    )


def main(argv: Sequence[str]) -> int:
    """Score, write the file, print a table; return the exit code."""
    words = list(argv)
    if words and not words[0].startswith("-"):
        words.insert(0, "--dataset")
    asked = read(make_parser("score", _DESCRIPTION, ScoreArguments, "FILE"), words)
    own: ScoreArguments = asked.own
    if asked.data.datasets is not None:
        raise UserError("--datasets: one file is scored at a time")
    path = _output(own)
    _check_accepting(own)
    with user_errors():
        from prefopt.evaluation.candidates import score_rows
        from prefopt.evaluation.scoring import PolicyScorer

        rows = read_rows(asked.data, asked.config)
        _check_columns(rows.column_names, own)
        scorer = PolicyScorer(asked.model, asked.config, asked.ref_model)
        layout = _layout(own, rows.column_names, scorer.tokenizer)
        objective = asked.config.objective if asked.has_loss else None
        scored = score_rows(scorer, rows, objective, layout, data_name(asked.data))
        made: Any = (
            {**row, **_score_columns(its, own.prefix)}
            for row, its in zip(rows, scored, strict=True)
        )
        if own.keep is not None:
            made = _kept(scored, own, asked.config.seed)
        count = _write(path, list(made))
    _print_accuracy(rows, scored, own.by)
    print(f"{count:,} rows saved to {path}")
    return 0


def _output(own: ScoreArguments) -> Path:
    if own.output is None:
        raise UserError("--output is missing: the file to write, .jsonl or .parquet")
    path = Path(own.output).expanduser()
    if path.suffix not in (".jsonl", ".parquet"):
        raise UserError(f"--output {path}: give a name that ends in .jsonl or .parquet")
    if not path.parent.is_dir():
        raise UserError(f"--output {path}: there is no folder {path.parent}")
    return path


def _check_accepting(own: ScoreArguments) -> None:
    """Raise where options of rejection sampling are wrong, or have no part in what is asked."""
    if own.keep != "accepted":
        defaults = ScoreArguments()
        for name in ("accept", "accept_beta"):
            if getattr(own, name) != getattr(defaults, name):
                raise UserError(f"--{name} goes with --keep accepted")
    if own.accept < 1 or not own.accept_beta > 0:
        raise UserError(
            f"--accept must be at least 1 and --accept_beta greater than 0, got {own.accept} and "
            f"{own.accept_beta:g}"
        )


def _check_columns(columns: Sequence[str], own: ScoreArguments) -> None:
    """Raise where a column of the rows would be overwritten, or is not there."""
    if own.by is not None and own.by not in columns:
        raise UserError.unknown("column", own.by, columns)
    taken = [name for name in _COLUMNS if own.prefix + name in columns]
    if own.keep is None and taken:
        raise UserError(
            f"the rows have a column {own.prefix + taken[0]!r}, as the scores would; --prefix "
            "mine_ names these mine_reward and so on"
        )
    if own.keep is not None and own.prefix:
        raise UserError("--prefix names columns of scores, which --keep does not write")


def _layout(own: ScoreArguments, columns: Sequence[str], tokenizer: Any) -> "ScoringLayout":
    """Return how rows are read, and say so where their columns decide it."""
    from prefopt.evaluation.candidates import ScoringLayout, is_benchmark

    benchmark = is_benchmark(columns)
    chat, verbatim = own.chat, own.verbatim
    if chat is None:
        chat = benchmark and bool(getattr(tokenizer, "chat_template", None))
    if verbatim is None:
        verbatim = benchmark
    if benchmark:
        how = "a question and answers, by the chat template" if chat else "plain text"
        print(f"prefopt: RewardBench's layout: prompt and answers are {how}", file=sys.stderr)
    return ScoringLayout(chat, verbatim)


# What is written ----------------------------------------------------------------------------------

_PARTS = ("reward", "logps", "ref_logps", "tokens")
_TOKENS = "completion_tokens"  # of rows that are no pairs: `prefopt sample` writes `tokens`
_COLUMNS = (
    *_PARTS[:-1],
    _TOKENS,
    "rewards",
    "best",
    *(f"{side}_{part}" for side in ("chosen", "rejected") for part in _PARTS),
)


def _score_columns(scores: "RowScores | None", prefix: str) -> dict[str, Any]:
    """Return the columns of the scores of a row; none where it was set aside."""
    if scores is None:
        return {}
    parts: dict[str, Sequence[float]] = {
        "reward": scores.rewards,
        "logps": scores.logps,
        "tokens": scores.tokens,
    }
    if scores.ref_logps is not None:
        parts["ref_logps"] = scores.ref_logps
    made: dict[str, Any]
    if scores.example.kind == "paired":
        made = {
            f"{side}_{name}": values[place]
            for place, side in enumerate(("chosen", "rejected"))
            for name, values in parts.items()
        }
        return {prefix + name: value for name, value in made.items()}
    parts[_TOKENS] = parts.pop("tokens")
    if scores.example.kind == "unpaired":
        made = {name: values[0] for name, values in parts.items()}
    else:
        best = max(range(len(scores.rewards)), key=lambda place: scores.rewards[place])
        made = {"rewards": parts.pop("reward"), "best": best, **parts}
    return {prefix + name: value for name, value in made.items()}


def _kept(
    scored: "Sequence[RowScores | None]", own: ScoreArguments, seed: int
) -> Iterator[dict[str, Any]]:
    """Yield the rows that are made of the candidates of each prompt."""
    import numpy as np

    from prefopt.evaluation.candidates import accepted_by_rejection, group_by_prompt

    groups = group_by_prompt(scored)
    _tell_of_few(groups, own.keep)
    generator = np.random.default_rng(seed)
    for group in groups:
        if own.keep == "chosen_rejected":
            yield from _pair(group)
            continue
        places = [group.best]
        if own.keep == "accepted":
            places = accepted_by_rejection(group.rewards, own.accept, own.accept_beta, generator)
        for place in places:
            yield {
                "prompt": group.prompt,
                "completion": group.completions[place],
                "label": True,
                "reward": group.rewards[place],
                "candidates": len(group.rewards),
            }


def _pair(group: "Candidates") -> Iterator[dict[str, Any]]:
    best, worst = group.best, group.worst
    if group.rewards[best] > group.rewards[worst]:
        yield {
            "prompt": group.prompt,
            "chosen": group.completions[best],
            "rejected": group.completions[worst],
            "score_chosen": group.rewards[best],
            "score_rejected": group.rewards[worst],
            "candidates": len(group.rewards),
        }


def _tell_of_few(groups: "Sequence[Candidates]", keep: str | None) -> None:
    """Say how many prompts there is nothing to choose for."""
    alike = sum(len(set(group.rewards)) == 1 for group in groups)
    if alike:
        what = "make no pair" if keep == "chosen_rejected" else "leave no choice"
        print(
            f"prefopt: {alike:,} of {len(groups):,} prompts {what}: they have one completion, or "
            "all have the same reward",
            file=sys.stderr,
        )


def _write(path: Path, rows: list[dict[str, Any]]) -> int:
    """Write rows, and return how many; the file appears when it is whole."""
    if not rows:
        raise UserError("there is nothing to write: no prompt makes a row")
    part = path.with_name(f"{path.name}.part")
    _WRITERS[path.suffix](part, rows)
    part.replace(path)
    return len(rows)


def _write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")


def _write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    from datasets import Dataset

    columns = list(dict.fromkeys(column for row in rows for column in row))
    Dataset.from_list([{column: row.get(column) for column in columns} for row in rows]).to_parquet(
        str(path)
    )


_WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], None]] = {
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
}


# What is printed ----------------------------------------------------------------------------------


def _print_accuracy(rows: Any, scored: "Sequence[RowScores | None]", by: str | None) -> None:
    """Print the accuracy on pairs, of all and by subset, beside what length alone scores."""
    pairs = [
        (number, scores)
        for number, scores in enumerate(scored)
        if scores is not None and scores.example.kind == "paired"
    ]
    if not pairs:
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    by = by or ("subset" if "subset" in rows.column_names else None)
    groups: dict[str, list[RowScores]] = {"all": [scores for _, scores in pairs]}
    if by is not None:
        values = rows[by][:]
        for number, scores in pairs:
            groups.setdefault(str(values[number]), []).append(scores)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(by or "pairs")
    for column in ("accuracy", "low", "high", "n", "longer", "shorter"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, its in groups.items():
        table.add_row(name, *_accuracy_cells(its))
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    console.print("low, high: 95% interval. longer, shorter: accuracy of choosing by length alone.")


def _accuracy_cells(pairs: "Sequence[RowScores]") -> list[str]:
    import torch

    from prefopt.evaluation import length_baselines, preference_accuracy

    rewards = torch.tensor([scores.rewards for scores in pairs], dtype=torch.float64)
    lengths = torch.tensor([scores.tokens for scores in pairs])
    found = preference_accuracy(rewards[:, 0], rewards[:, 1])
    alone = length_baselines(lengths[:, 0], lengths[:, 1])
    numbers = [f"{value:.3f}" for value in found[:3]]
    return [*numbers, f"{found.size:,}", f"{alone.longer.value:.3f}", f"{alone.shorter.value:.3f}"]
