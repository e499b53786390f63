"""``prefopt sample``: what a model answers, beside another model."""

import argparse
import gc
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from prefopt.cli.errors import UserError, user_errors
from prefopt.cli.inference import (
    add_model_options,
    add_sampling_options,
    check_number,
    model_options,
)

if TYPE_CHECKING:
    from prefopt.evaluation.sampling import Generation

_EPILOG = """\
  prefopt sample --model aligned --prompts "Why is the sky blue?"
  prefopt sample --model aligned --compare start --dataset pairs.jsonl --output answers.jsonl
"""


class Asked(NamedTuple):
    """What a model answered.

    Attributes:
        model: Its id or folder.
        prompts: The prompts, as people read them.
        columns: The prompts, as columns of data hold them.
        answers: Answers to each prompt, in the order of the prompts.
    """

    model: str
    prompts: list[str]
    columns: list[dict[str, Any]]
    answers: "list[Generation]"


def main(argv: Sequence[str]) -> int:
    """Ask one model or two, print their answers, write them to a file; return the exit code."""
    options = make_parser().parse_args(list(argv))
    check_number(options, 1, "samples", "max_prompts", "max_new_tokens", "batch_size")
    check_number(options, 0, "seed", "top_k")
    if options.samples > 1 and options.temperature == 0:
        raise UserError("--samples: at --temperature 0 all answers to a prompt are the same")
    output = options.output.expanduser() if options.output else None
    if output is not None and not output.parent.is_dir():
        raise UserError(f"--output {options.output}: there is no folder {output.parent}")
    found: list[Asked] = []
    with user_errors():
        prompts = read_prompts(options)
        for name in filter(None, (options.model, options.compare)):
            model, tokenizer = load(name, options)
            if not found and options.dataset:
                prompts = with_room(model, tokenizer, prompts, options)
            found.append(ask(name, model, tokenizer, prompts, options))
            del model
            free_memory()
    show(found, options.samples)
    if output is not None:
        write(found, options, output)
        print(f"Written to {options.output}")
    return 0


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = argparse.ArgumentParser(
        prog="prefopt sample",
        description="Print what a model answers, beside another model if one is named. Prompts are "
        "rendered as in training; answers are drawn from the model's own distribution, whatever "
        "its generation_config.json asks for.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="folder or Hub id of a model or an adapter")
    parser.add_argument("--compare", metavar="MODEL", help="a second model, such as the start")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--prompts",
        nargs="+",
        metavar="TEXT",
        help="each is what a user says, if the tokenizer has a chat template, else text to go on",
    )
    source.add_argument("--dataset", help="Hub id, folder or file whose prompts are taken")
    parser.add_argument("--split", help="of the dataset (default: the only one, test, or train)")
    parser.add_argument("--max_prompts", type=int, default=8, help="of the dataset (default: 8)")
    parser.add_argument("--system", help="what a system message says before each of --prompts")
    parser.add_argument(
        "--plain", action="store_true", help="take --prompts as they are, without a chat template"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="jsonl file to write to")
    sampling = add_sampling_options(parser, max_new_tokens=256)
    sampling.add_argument("--samples", type=int, default=1, help="answers to a prompt (default: 1)")
    sampling.add_argument("--batch_size", type=int, default=8, help="default: 8")
    sampling.add_argument("--backend", choices=("transformers", "vllm"), default="transformers")
    add_model_options(parser)
    return parser


def read_prompts(options: argparse.Namespace) -> list[Any]:
    """Return the prompts that are named, or the first ones of a dataset.

    Raises:
        UserError: If it has several splits, and none is named, nor one called test or train.
    """
    if options.prompts is not None:
        return list(options.prompts)
    from prefopt.data import load_rows
    from prefopt.evaluation.prompts import read_prompts as read

    rows = load_rows(options.dataset, options.split)
    if isinstance(rows, Mapping):
        split = next((name for name in ("test", "train") if name in rows), None)
        if split is None:
            listed = ", ".join(rows)
            raise UserError(f"{options.dataset} has the splits {listed}: name one with --split")
        rows = rows[split]
    return list(read(rows, options.max_prompts))


def load(name: str, options: argparse.Namespace) -> tuple[Any, Any]:
    """Return a model and its tokenizer, loaded as the options say."""
    from prefopt.evaluation.loading import load_for_inference, tokenizer_of
    from prefopt.evaluation.vllm_backend import load_vllm

    given = model_options(options)
    if options.backend == "transformers":
        return load_for_inference(name, given)
    refused = [option for option in given if option not in ("dtype", "trust_remote_code")]
    if refused:
        raise UserError(f"--backend vllm does not take {refused[0]}")
    return load_vllm(name, seed=options.seed, **given), tokenizer_of(name, given)


def with_room(
    model: Any, tokenizer: Any, prompts: Sequence[Any], options: argparse.Namespace
) -> list[Any]:
    """Return the prompts of a dataset that leave room for an answer; the others are told.

    Raises:
        UserError: If none does.
    """
    from prefopt.evaluation.generation import leave_room

    fits = leave_room(model, tokenizer, prompts, options.max_new_tokens)
    kept = [prompt for prompt, fit in zip(prompts, fits, strict=True) if fit]
    if not kept:
        raise UserError(
            f"none of {len(prompts)} prompts of {options.dataset} leaves the model room for "
            f"--max_new_tokens {options.max_new_tokens}; take fewer"
        )
    if len(kept) < len(prompts):
        print(f"{len(prompts) - len(kept)} prompts are left out: no room for an answer behind them")
    return kept


def ask(
    name: str, model: Any, tokenizer: Any, prompts: Sequence[Any], options: argparse.Namespace
) -> Asked:
    """Return what a model answers."""
    from prefopt.evaluation.generation import generate
    from prefopt.evaluation.prompts import prompt_text

    is_chat = options.prompts is not None and not options.plain and bool(tokenizer.chat_template)
    if options.system and not is_chat:
        raise UserError("--system goes with --prompts and a tokenizer that has a chat template")
    system = [{"role": "system", "content": options.system}] if options.system else []
    asked = [
        [*system, {"role": "user", "content": prompt}] if is_chat else prompt for prompt in prompts
    ]
    names = ("temperature", "top_p", "top_k", "samples", "max_new_tokens", "seed", "batch_size")
    settings = {option: getattr(options, option) for option in names}
    answers = generate(model, tokenizer, asked, **settings)
    texts = [prompt_text(prompt, tokenizer) for prompt in asked]
    return Asked(name, texts, list(map(_columns, asked, texts)), answers)


def _columns(prompt: Any, text: str) -> dict[str, Any]:
    """Return a prompt as data hold it: messages with their tools, or text."""
    from prefopt.evaluation.prompts import as_example

    example = as_example(prompt)
    if example.form != "messages":
        return {"prompt": text}
    more = {"tools": example.tools, "chat_template_kwargs": example.options}
    return {"prompt": example.prompt, **{name: its for name, its in more.items() if its}}


def free_memory() -> None:
    """Give back what a model took that is not used any more."""
    import torch

    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.memory.empty_cache()


def show(found: Sequence[Asked], samples: int) -> None:
    """Print prompts and answers: in a terminal side by side, else one below the other."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, markup=False, emoji=False)
    for number, prompt in enumerate(found[0].prompts):
        rows = [asked.answers[number * samples : (number + 1) * samples] for asked in found]
        if not console.is_terminal:
            _print_plainly(f"prompt {number + 1}", prompt)
            for answers in zip(*rows, strict=True):
                for asked, answer in zip(found, answers, strict=True):
                    _print_plainly(f"{asked.model} ({_length(answer)})", answer.text)
            continue
        console.print(Text(prompt, style="bold"))
        table = Table(*(asked.model for asked in found), expand=True, show_lines=True)
        for answers in zip(*rows, strict=True):
            table.add_row(
                *(Text(f"{it.text}\n").append(_length(it), style="dim") for it in answers)
            )
        console.print(table)


def _print_plainly(title: str, text: str) -> None:
    print(f"--- {title} ---\n{text.strip()}")


def _length(answer: "Generation") -> str:
    return f"{answer.tokens} tokens{', cut' if answer.truncated else ''}"


def write(found: Sequence[Asked], options: argparse.Namespace, path: Path) -> None:
    """Write one line of JSON for each answer, those to one prompt next to each other.

    Prompts are as in data, so that answers can be scored, and trained on.
    """
    settings = {name: getattr(options, name) for name in ("temperature", "top_p", "top_k", "seed")}
    with path.open("w", encoding="utf-8") as file:
        for place in range(len(found[0].answers)):
            number, sample = divmod(place, options.samples)
            for asked in found:
                answer = asked.answers[place]
                record = {
                    **asked.columns[number],
                    "model": asked.model,
                    "completion": answer.text,
                    "sample": sample,
                    "tokens": answer.tokens,
                    "truncated": answer.truncated,
                    **settings,
                }
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
