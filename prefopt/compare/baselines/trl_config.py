"""From options of a run to what TRL's trainers are configured with."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

__all__ = ["make_config", "make_model_config"]

# TRL's defaults are those of large models on GPUs; ours are those of transformers.
_DEFAULTS = {"bf16": False, "gradient_checkpointing": False, "report_to": "none"}


def make_config(options: Mapping[str, Any], name: str | None) -> Any:
    """Return a configuration of TRL; options that it does not know are left to others.

    Args:
        options: Of the run.
        name: Of the class, such as ``RewardConfig``.

    Raises:
        ValueError: If an option is wrong, or two do not go together.
    """
    import trl

    config = getattr(trl, name or "")
    known = {item.name for item in fields(config) if item.init}
    given = {key: value for key, value in options.items() if key in known}
    return config(**{"output_dir": "out", **_DEFAULTS, **given})


def make_model_config(options: Mapping[str, Any]) -> Any:
    """Return TRL's ``ModelConfig``: dtype, adapter, quantisation.

    Args:
        options: Of the run.
    """
    from trl import ModelConfig

    known = {item.name for item in fields(ModelConfig) if item.init}
    return ModelConfig(**{key: value for key, value in options.items() if key in known})
