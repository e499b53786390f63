"""Options of the runs: those of ``prefopt train``, checked before anything starts."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from prefopt.config import PreferenceConfig

__all__ = ["check_options", "plain_options"]

# What the comparison sets for each run.
SET_HERE = {
    "output_dir": "each run has a folder of its own",
    "seed": "give seeds, or their number",
    "data_seed": "give seeds, or their number",
    "dataset_name": "all methods are trained on the same rows",
    "datasets": "all methods are trained on the same rows",
    "eval_datasets": "what is held out is the same for all methods",
    "eval_fraction": "give the sizes of held_out and validation",
    "eval_rows": "give the sizes of held_out and validation",
    "model_name_or_path": "all methods start from the same model",
    "resume_from_checkpoint": "a run that was ended goes on by itself",
    "push_to_hub": "push the run that you choose",
}
_ALIASES = {"model": "model_name_or_path", "dataset": "dataset_name"}


def plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as ``prefopt train`` reads them from YAML, which takes ``1e-6`` for text.

    Raises:
        ValueError: If an option is one that the comparison sets.

    Examples:
        >>> plain_options({"learning-rate": "1e-6", "loss_type": "dpo"})
        {'learning_rate': 1e-06, 'loss_type': 'dpo'}
    """
    plain = {}
    for key, value in options.items():
        name = str(key).replace("-", "_")
        name = _ALIASES.get(name, name)
        if name in SET_HERE:
            raise ValueError(f"{key} is set by the comparison for each run: {SET_HERE[name]}")
        is_number = isinstance(value, str) and re.fullmatch(r"[+-]?\d+\.?\d*[eE][+-]?\d+", value)
        plain[name] = float(value) if is_number else value
    return plain


def check_options(options: Mapping[str, Any]) -> PreferenceConfig:
    """Return the configuration of a run with these options; those of its model are only named.

    Raises:
        ValueError: If there is no such option, or one is wrong.
    """
    from trl import ModelConfig

    own = {item.name for item in fields(PreferenceConfig) if item.init}
    of_model = {item.name for item in fields(ModelConfig)}
    for name in options:
        if name not in own | of_model:
            near = difflib.get_close_matches(name, own | of_model, n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise ValueError(f"prefopt train has no option {name!r}{hint}")
    given = {name: value for name, value in options.items() if name in own}
    return PreferenceConfig(**{"output_dir": "out", "report_to": "none", **given})
