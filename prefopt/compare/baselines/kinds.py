"""The kinds of method, and the commands that train and measure each of them."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

__all__ = ["BASELINES", "KINDS", "OWN", "Kind", "common_options"]

OWN = "prefopt.compare.baselines"  # the package whose commands the baselines are
_EVAL, _TRAIN = ("prefopt", "eval"), ("prefopt", "train")

# Options of `prefopt train` that are no field of `TrainingArguments` and are for baselines, too.
_OF_DATA_AND_MODEL = ("max_length", "model_init_kwargs", "trust_remote_code", "disable_dropout")


@dataclass(frozen=True)
class Kind:
    """A kind of method.

    Attributes:
        label: What a method of it is called where there is no other.
        trained_by: Words after ``python -m`` that train it: they take ``--config FILE``, a file of
            options with ``model``, ``dataset``, ``eval_datasets``, ``seed`` and ``output_dir``, and
            leave a model there. None if it is not trained.
        measured_by: Words that measure it, with the options and files of ``prefopt eval``.
        config: Configuration of TRL whose options it takes; None for those of ``prefopt train``.
        own_options: Options that it takes beside.
        looks_at: What is trained on: ``all`` texts of a row, or ``one``.
    """

    label: str = ""
    trained_by: tuple[str, ...] = ()
    measured_by: tuple[str, ...] = _EVAL
    config: str | None = None
    own_options: tuple[str, ...] = ()
    looks_at: Literal["all", "one"] = "all"

    @property
    def uses_trl(self) -> bool:
        """Whether TRL trains it."""
        return self.config is not None

    @property
    def is_special(self) -> bool:
        """Whether it is not trained as a loss is: no learning rate is searched for it."""
        return self.trained_by != _TRAIN


KINDS = {
    "loss": Kind(trained_by=_TRAIN),
    "start": Kind("start"),
    "sft": Kind("sft on the chosen", _TRAIN, looks_at="one"),
    "reward_model": Kind(
        "reward model", (OWN, "reward_model"), (OWN, "measure_reward_model"), "RewardConfig"
    ),
    "rl": Kind(
        "rl, learnt reward",
        (OWN, "rl"),
        config="RLOOConfig",
        own_options=("reward_model",),
        looks_at="one",
    ),
    "rl_true": Kind("rl, true reward", (OWN, "rl"), config="RLOOConfig", looks_at="one"),
    "best_of_n": Kind(
        "best of n", measured_by=(OWN, "best_of_n"), own_options=("n", "by", "reward_model")
    ),
}
"""All kinds, by name."""

BASELINES = tuple(name for name in KINDS if name not in ("loss", "start"))
"""Those that can be asked for."""


def common_options(kind: str, common: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of the options of all methods is for a kind.

    What only losses have, such as ``beta`` or ``layout``, is not for the trainers of TRL.

    Args:
        kind: Its name.
        common: Options of ``prefopt train``.
    """
    if not KINDS[kind].uses_trl:
        return dict(common)
    from transformers import TrainingArguments
    from trl import ModelConfig

    known = {item.name for of in (TrainingArguments, ModelConfig) for item in fields(of)}
    known |= set(_OF_DATA_AND_MODEL)
    return {name: value for name, value in common.items() if name in known}
