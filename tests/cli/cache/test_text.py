"""What is printed of a store, made of plain records."""

from pathlib import Path

import pytest

from prefopt.cli.cache.text import describe, model_text, print_references, print_store, printable
from prefopt.reference.store.maintain import ReferenceInfo, StoreInfo

REFERENCE = ReferenceInfo(
    number=1,
    fingerprint="abcdef" * 5 + "ab",
    facts={"model": "Llama", "dtype": "float32", "autocast": "bf16"},
    created=0.0,
    used=86_400.0,
    completions=1200,
    tokens=34_000,
    size_bytes=200_000,
    origins=({"device": "cpu", "layout": "padded", "completions": 1200},),
)
STORE = StoreInfo(Path("store"), 250_000, 8_192, 1, (REFERENCE,), (Path("old.damaged-1"),))


def test_a_store_for_programs_has_times_that_they_can_read():
    found = describe(STORE)
    (reference,) = found["references"]
    assert (reference["created"], reference["used"]) == (
        "1970-01-01T00:00:00+00:00",
        "1970-01-02T00:00:00+00:00",
    )
    assert (reference["model"], reference["bytes"]) == ("Llama", 200_000)
    assert (found["path"], found["free_bytes"]) == ("store", 8_192)
    assert found["set_aside"] == ["old.damaged-1"]


def test_a_store_for_people_names_size_origins_and_what_was_set_aside(capsys):
    print_store(STORE)
    out = capsys.readouterr().out
    assert "store: 250.0 kB, schema version 1" in out
    assert "8.2 kB of it are free" in out
    assert "abcdefabcdef  1,200 on: device cpu, layout padded" in out
    assert "Set aside as damaged, and may be deleted: old.damaged-1" in out


def test_a_table_of_references_has_their_numbers_in_words(capsys):
    print_references([REFERENCE], "one reference")
    out = capsys.readouterr().out
    for text in ("one reference", "float32, autocast bf16", "1,200", "34,000", "1970-01-02"):
        assert text in out


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        ({}, "unknown"),
        ({"model": "Llama", "name_or_path": "here"}, "Llama (here)"),
        ({"model": "Llama", "adapters": [{"peft_type": "LORA"}, {}]}, "Llama + LORA + adapter"),
    ],
)
def test_a_model_is_named_with_its_adapters(facts, text):
    assert model_text(facts) == text


def test_control_characters_become_question_marks():
    assert printable("a\x1b[2Jb\n") == "a?[2Jb?"
