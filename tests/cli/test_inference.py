"""Options that say how a model is loaded."""

import argparse

import pytest

from prefopt.cli.errors import UserError
from prefopt.cli.inference import add_model_options, check_number, model_options


def options(*words):
    parser = argparse.ArgumentParser()
    add_model_options(parser)
    return parser.parse_args(words)


def test_what_is_given_is_handed_on():
    assert model_options(options()) == {}
    words = ("--dtype", "bfloat16", "--attn_implementation", "eager", "--trust_remote_code")
    expected = {"dtype": "bfloat16", "attn_implementation": "eager", "trust_remote_code": True}
    assert model_options(options(*words)) == expected


def test_bits_become_a_quantisation():
    pytest.importorskip("bitsandbytes")
    four = model_options(options("--load_in_4bit", "--dtype", "bfloat16"))["quantization_config"]
    assert (four.load_in_4bit, four.bnb_4bit_quant_type) == (True, "nf4")
    assert str(four.bnb_4bit_compute_dtype) == "torch.bfloat16"
    assert model_options(options("--load_in_8bit"))["quantization_config"].load_in_8bit
    with pytest.raises(SystemExit):
        options("--load_in_4bit", "--load_in_8bit")


def test_numbers_have_a_least():
    given = argparse.Namespace(a=1, b=0)
    check_number(given, 0, "a", "b")
    with pytest.raises(UserError, match="--b must be at least 1, got 0"):
        check_number(given, 1, "a", "b")
