"""The table of Axolotl's keys: it is complete in itself."""

from prefopt.cli.foreign.axolotl_keys import KEYS


def test_every_key_says_what_becomes_of_it():
    for key, spec in KEYS.items():
        assert spec.to or spec.note, key
        assert spec.outcome != "cannot" or len(spec.note) > 10, key
