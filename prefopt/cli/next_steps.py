"""What can be done with what was trained: commands that work as they are printed."""

import shlex
from pathlib import Path
from typing import Any

from prefopt.cli.inference import DTYPES


def next_steps(
    data_args: Any, config: Any, model_args: Any, is_adapter: bool
) -> list[tuple[str, str]]:
    """Return commands that talk to what was trained, ask it, and merge it; each with its title.

    Args:
        data_args: ``DataArguments`` of the run.
        config: Its ``PreferenceConfig``.
        model_args: Its ``ModelConfig`` of TRL.
        is_adapter: Whether an adapter was trained.
    """
    out = config.output_dir
    beside, loading = _beside(model_args), _loading(config, model_args)
    asked = ["prefopt", "sample", "--model", out, *beside, *_prompts(data_args), *loading]
    steps = {"Talk to it": ["prefopt", "chat", out, *beside, *loading], "Ask it": asked}
    if is_adapter:
        merged = f"{Path(out).as_posix().rstrip('/')}-merged"
        steps["Merge it into its base model"] = ["prefopt", "merge", out, merged, *loading]
    return [(title, shlex.join(words)) for title, words in steps.items()]


def _beside(model_args: Any) -> list[str]:
    """Return the option that names the start; none where it is a revision, which no option says."""
    if model_args.model_revision not in (None, "main"):
        return []
    return ["--compare", model_args.model_name_or_path]


def _prompts(data_args: Any) -> list[str]:
    """Return the options that name some prompts of the data, or one of our own."""
    entry = data_args.entries[0]
    simple = entry == type(entry)(entry.path, split=entry.split, weight=entry.weight)
    if not simple or data_args.dataset_streaming:
        return ["--prompts", "What can you tell me?"]
    split = ["--split", entry.split] if entry.split else []
    return ["--dataset", entry.path, "--max_prompts", "3", *split]


def _loading(config: Any, model_args: Any) -> list[str]:
    """Return the options that load a model as the run did."""
    flags = {
        "--load_in_4bit": model_args.load_in_4bit,
        "--load_in_8bit": model_args.load_in_8bit,
        "--trust_remote_code": config.trust_remote_code,
    }
    dtype = ["--dtype", model_args.dtype] if model_args.dtype in DTYPES else []
    return [*dtype, *(flag for flag, given in flags.items() if given)]
