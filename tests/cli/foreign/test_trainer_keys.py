"""Keys that transformers had: each is mapped, harmless, or refused with advice."""

from prefopt.cli.foreign.trainer_keys import TRAINER, of_gone
from prefopt.migration import OLD_TRANSFORMERS_FIELDS, REFUSED, Gone


def test_every_old_field_has_a_key():
    assert set(OLD_TRANSFORMERS_FIELDS) | set(REFUSED) <= set(TRAINER)


def test_advice_becomes_a_key():
    assert of_gone(Gone("no use", None)).outcome == "nothing"
    key = of_gone(Gone("use b={value} instead", (None, 0)))
    assert (key.outcome, key.note) == ("cannot", "use b=... instead")
