"""Options of the commands that ask models: how these are loaded, and how they answer."""

import argparse
from typing import Any

from prefopt.cli.errors import UserError

DTYPES = ("auto", "float32", "bfloat16", "float16")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how a model is loaded.

    Args:
        parser: Of the command.
    """
    group = parser.add_argument_group("loading")
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        help="of the weights (default: float32 on a CPU, else that of the checkpoint)",
    )
    bits = group.add_mutually_exclusive_group()
    bits.add_argument("--load_in_4bit", action="store_true", help="quantise to 4 bits (nf4)")
    bits.add_argument("--load_in_8bit", action="store_true", help="quantise to 8 bits")
    group.add_argument("--attn_implementation", help="such as sdpa, eager, flash_attention_2")
    group.add_argument(
        "--trust_remote_code", action="store_true", help="run code that ships with the model"
    )


def add_sampling_options(parser: argparse.ArgumentParser, max_new_tokens: int) -> Any:
    """Add the options that say how answers are drawn; return their group.

    Args:
        parser: Of the command.
        max_new_tokens: Most tokens of an answer, if not told otherwise.
    """
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--temperature", type=float, default=0.7, help="0: the likeliest each time (default: 0.7)"
    )
    group.add_argument("--top_p", type=float, default=1.0, help="default: 1, all tokens")
    group.add_argument("--top_k", type=int, default=0, help="default: 0, all tokens")
    group.add_argument(
        "--max_new_tokens", type=int, default=max_new_tokens, help=f"default: {max_new_tokens}"
    )
    group.add_argument("--seed", type=int, default=0, help="default: 0")
    return group


def model_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return what those options ask of ``from_pretrained``.

    Args:
        options: The command line's.
    """
    names = ("dtype", "attn_implementation", "trust_remote_code")
    given = {name: getattr(options, name) for name in names if getattr(options, name)}
    if options.load_in_4bit or options.load_in_8bit:
        from prefopt.training.quantisation import quantization_of

        fields: dict[str, Any] = {"load_in_8bit": True}
        if options.load_in_4bit:
            fields = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
            if options.dtype not in (None, "auto"):
                fields["bnb_4bit_compute_dtype"] = options.dtype
        given["quantization_config"] = quantization_of(fields)
    return given


def check_number(options: argparse.Namespace, least: int, *names: str) -> None:
    """Raise where a whole number is too small.

    Args:
        options: The command line's.
        least: The smallest that is allowed.
        names: Of the options.

    Raises:
        UserError: Naming the option.
    """
    for name in names:
        if getattr(options, name) < least:
            raise UserError(f"--{name} must be at least {least}, got {getattr(options, name)}")
