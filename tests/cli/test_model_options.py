"""Options of the model that do nothing without another one are errors."""

import pytest

from prefopt.cli.errors import UserError
from prefopt.cli.model_options import check_model_options


def check(*argv, **given):
    trl = pytest.importorskip("trl")
    check_model_options(trl.ModelConfig(**given), argv)


@pytest.mark.parametrize(
    ("argv", "given", "needed"),
    [
        (["--lora_r", "8"], {"lora_r": 8}, "--use_peft"),
        (["--lora-r=16"], {}, "--use_peft"),  # its default, spelt out
        ([], {"lora_alpha": 64}, "--use_peft"),  # in a file
        (["--use_dora"], {"use_dora": True}, "--use_peft"),
        (["--bnb_4bit_quant_type", "nf4"], {}, "--load_in_4bit"),
    ],
)
def test_what_does_nothing_names_what_it_needs(argv, given, needed):
    with pytest.raises(UserError, match=f"does nothing without {needed}"):
        check(*argv, **given)


def test_what_acts_or_is_at_its_default_in_a_file_is_taken():
    check("--use_peft", "--lora_r", "8", use_peft=True, lora_r=8)
    check("--load_in_4bit", "--use_bnb_nested_quant", load_in_4bit=True, use_bnb_nested_quant=True)
    check("--loss_type", "dpo", lora_r=16)
