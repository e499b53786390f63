"""Options of the model that do nothing without another one."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from prefopt.cli.errors import UserError

_ADAPTER = "--use_peft, which trains an adapter; without it all weights of the model are trained"
_NEEDS = {
    **dict.fromkeys(("use_rslora", "use_dora"), ("use_peft", _ADAPTER)),
    **dict.fromkeys(
        ("bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage"),
        ("load_in_4bit", "--load_in_4bit, which quantises the model"),
    ),
}


def check_model_options(model_args: Any, argv: Sequence[str]) -> None:
    """Raise where an option is given that does nothing without another, which is not.

    Those of the command line count as given, and in a file those that are not at their default.

    Args:
        model_args: ``ModelConfig`` of TRL.
        argv: The command line.

    Raises:
        UserError: Naming both.
    """
    words = {
        word.removeprefix("--").partition("=")[0].replace("-", "_")
        for word in argv
        if word.startswith("--")
    }
    for item in fields(model_args):
        of_lora = ("use_peft", _ADAPTER) if item.name.startswith("lora_") else None
        needed = _NEEDS.get(item.name, of_lora)
        given = item.name in words or getattr(model_args, item.name) != item.default
        if needed is not None and given and not getattr(model_args, needed[0]):
            raise UserError(f"--{item.name} does nothing without {needed[1]}")
