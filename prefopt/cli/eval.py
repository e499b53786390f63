"""``prefopt eval``: everything that is measured of one model on held-out data, in three files."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from prefopt.cli.errors import UserError, user_errors
from prefopt.cli.scoring import data_name, make_parser, read, read_rows

if TYPE_CHECKING:
    from prefopt.evaluation import Estimate
    from prefopt.evaluation.judges import PointJudge
    from prefopt.evaluation.policy import PolicyEvaluation

# Temperatures at which a judge is asked, where none are named.
JUDGED_AT = (0.0, 0.25, 0.7, 1.0)
# What the name of a judge begins with; anything else names a function.
JUDGES = ("function", "classifier", "logprob", "endpoint")

_DESCRIPTION = """\
Measure a model on held-out preferences, beside what length and the start alone make of them.

  prefopt eval --model aligned --dataset held_out.jsonl --output_dir evaluation
  prefopt eval --config eval.yaml --reward rewards.py:score --temperatures 0 1
  prefopt eval --model aligned --dataset D --output_dir OUT --judge classifier:REWARD_MODEL

MODEL is a folder or a Hub id, of a whole model or an adapter. Pairs and rankings are scored by the
model and its reference; prompts are answered by the model. Without --loss_type the implicit reward
is the log-ratio, in nats.
"""


@dataclass
class EvalArguments:
    """The own options of ``prefopt eval``."""

    output_dir: str | None = field(
        default=None, metadata={"help": "Folder for evaluation.json, pairs.jsonl, samples.jsonl."}
    )
    reward: str | None = field(
        default=None,
        metadata={
            "help": "FILE.py:function or package.module:function that takes prompts and "
            "completions, lists of texts, and returns a number for each; or a judge of single "
            "answers. By default the judge, if it is one."
        },
    )
    judge: str | None = field(
        default=None,
        metadata={
            "help": "Who says which answer is better, ours, the data's or the start's: "
            "function:FILE.py:name, classifier:PATH (a reward model), classifier:PATH#label, "
            "logprob:MODEL, logprob:MODEL#per_token or endpoint:URL#model. By default the reward, "
            "if there is one."
        },
    )
    start_samples: str | None = field(
        default=None,
        metadata={
            "help": "samples.jsonl of the start's own evaluation, on the same data with the same "
            "seed; without it, the reference answers here."
        },
    )
    temperatures: list[float] | None = field(
        default=None,
        metadata={
            "help": "Of the answers; KL, reward and lengths are measured at 1. By default 1, with "
            "--judge 0, 0.25, 0.7 and 1."
        },
    )
    samples_per_prompt: int = field(
        default=1, metadata={"help": "Answers to each prompt, at each temperature but 0."}
    )
    max_prompts: int = field(
        default=100,
        metadata={"help": "Most prompts that are answered, drawn by --seed; 0 for none."},
    )
    max_new_tokens: int = field(default=256, metadata={"help": "Most tokens of an answer."})
    batch_size: int = field(default=8, metadata={"help": "Answers that are written together."})


def main(argv: Sequence[str]) -> int:
    """Evaluate, write the files, print a table; return the exit code."""
    asked = read(make_parser("eval", _DESCRIPTION, EvalArguments), argv)
    own: EvalArguments = asked.own
    if own.output_dir is None:
        raise UserError("--output_dir is missing: the folder to write to")
    with user_errors():
        from prefopt.evaluation.answers import SamplingPlan
        from prefopt.evaluation.contests import first_answers
        from prefopt.evaluation.judges import make_judge
        from prefopt.evaluation.policy import evaluate_policy, read_samples
        from prefopt.evaluation.scoring import PolicyScorer

        plan = SamplingPlan(
            tuple(own.temperatures or (JUDGED_AT if own.judge else (1.0,))),
            own.samples_per_prompt,
            own.max_prompts,
            own.max_new_tokens,
            own.batch_size,
            asked.config.seed,
        )
        reward = reward_of(own.reward, own.batch_size) if own.reward else None
        judge = own.judge and make_judge(own.judge, batch_size=own.batch_size)
        start = own.start_samples and first_answers(read_samples(Path(own.start_samples)))
        rows = read_rows(asked.data, asked.config)
        evaluation = evaluate_policy(
            PolicyScorer(asked.model, asked.config, asked.ref_model),
            rows,
            objective=asked.config.objective if asked.has_loss else None,
            plan=plan,
            reward=reward,
            judge=judge or None,
            start_answers=start or None,
            name=data_name(asked.data),
            model_name=asked.model,
        )
        evaluation.save(Path(own.output_dir))
    print_evaluation(evaluation)
    print(f"Saved to {own.output_dir}")
    return 0


def reward_of(given: str, batch_size: int) -> "PointJudge":
    """Return what scores answers: a function by its name, or a judge of single answers.

    Args:
        given: The option.
        batch_size: Texts that a model reads together.

    Raises:
        ValueError: If there is no such function or judge, or it compares two answers.
    """
    from prefopt.evaluation.judges import PointJudge, function_judge, make_judge

    is_judge = given.partition(":")[0] in JUDGES
    found = make_judge(given, batch_size=batch_size) if is_judge else function_judge(given)
    if not isinstance(found, PointJudge):
        raise ValueError(f"--reward {given} compares two answers: give it as --judge")
    return found


def print_evaluation(evaluation: "PolicyEvaluation") -> None:
    """Print what was measured: beside every accuracy what length and the start alone score."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("metric", no_wrap=True)
    for column in ("value", "low", "high", "n", "longer", "shorter", "start"):
        table.add_column(column, justify="right", no_wrap=True)
    baselines = dict(evaluation.data_baselines)
    alone = [baselines.pop(name, None) for name in ("longer", "shorter", "start")]
    for name, estimate in evaluation.metrics.items():
        beside = [_number(None if one is None else one.value) for one in alone]
        if name == "balanced_accuracy":  # of fewer pairs: here length says nothing
            beside = [_number(0.5), _number(0.5), ""]
        table.add_row(name, *_cells(estimate), *(beside if "accuracy" in name else []))
    for name, estimate in baselines.items():
        table.add_row(f"data: {name}", *_cells(estimate))
    for one in evaluation.win_rates:
        row = f"wins over {one.against} t={one.temperature:g}"
        table.add_row(row, *_cells(one.rate))
        if one.length_controlled is not None:
            table.add_row("  at equal lengths", *_cells(one.length_controlled))
        if one.position_bias is not None:
            table.add_row("  won by a place", *_cells(one.position_bias))
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{evaluation.model} on {evaluation.dataset}", markup=False)
    console.print(table)
    console.print(
        "low, high: 95% interval. longer, shorter, start: accuracy of choosing the longer or the "
        "shorter completion, or what the start finds likelier."
    )
    for note in evaluation.notes:
        console.print(f"Note: {note}", markup=False)


def _cells(estimate: "Estimate") -> tuple[str, str, str, str]:
    value, low, high = (_number(one) for one in estimate[:3])
    return value, low, high, f"{estimate.size:,}"


def _number(value: float | None) -> str:
    """Return a number in six characters or so, as many digits as fit behind the point."""
    if value is None:
        return ""
    digits = next((3 - n for n in range(3) if abs(value) < 10 ** (n + 1)), 0)
    return f"{value:,.{digits}f}"
