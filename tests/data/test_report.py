from dataclasses import replace

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from prefopt.data import DataReport, Lengths, Remark, Sample, SetAside, prepare_dataset
from prefopt.data.report import _proposed_weights, show_row
from prefopt.engine.layout import Example, build_layout

from .templates import CHATML, bytes_tokenizer, pair

ids = st.lists(st.integers(0, 2), min_size=1, max_size=6)


def test_it_renders_every_count():
    report = DataReport(
        name="train",
        rows=1000,
        kept=997,
        kinds={"paired": 900, "unpaired": 97},
        set_aside={
            "too long": SetAside(2, (4, 8)),
            "no token": SetAside(9, (1, 2, 3)),
            "tied": SetAside(1, (7,)),
        },
        cut_rows=3,
        cut_completions=4,
        cut_tokens=1234,
        identical=2,
        identical_after_cut=1,
        remarks={
            "ends otherwise": Remark(2000, (0, 1, 2), "'\\n'"),
            "begins otherwise": Remark(1, (3,), "'<s>'"),
        },
        boundary_moved=5,
        prompts=Lengths(997, 19940, 60),
        completions=Lengths(1897, 5691, 9),
        chosen=Lengths(900, 2700, 9),
        rejected=Lengths(900, 1800, 8),
        desirable=90,
        undesirable=7,
        shared_tokens=250,
        separate_tokens=500,
        padded_tokens=1000,
        max_length=64,
        eos_missing=True,
        mismatched_skipped=1,
        mismatched_lacking=2,
    )
    assert report.render().splitlines() == [
        "train data   1,000 rows in, 997 kept: 900 paired, 97 unpaired",
        "set aside    2: too long (rows 4, 8)",
        "set aside    9: no token (rows 1, 2, 3, ...)",
        "set aside    1: tied (row 7)",
        "audit        2,000 rows: ends otherwise: '\\n' (rows 0, 1, 2, ...)",
        "audit        1 row: begins otherwise: '<s>' (row 3)",
        "cut          4 completions of 3 rows at max_length 64, by 1,234 tokens",
        "identical    2 rows and 1 after the cut with two completions the same",
        "labels       90 desirable, 7 undesirable",
        "weights      for kto, undesirable_weight 9.64 to 12.86 would balance them",
        "mismatched   1 completion could not come from the row before",
        "mismatched   2 of 1,897 completions have none: it takes a row of another prompt with "
        "another completion; KTO's KL estimate is that of the others",
        "note         the tokenizer has no end-of-sequence token; none was appended",
        "prompts      19,940 tokens in 997, mean 20.0, longest 60",
        "completions  5,691 tokens in 1,897, mean 3.0, longest 9",
        "             mean 3.0 chosen, 2.0 rejected tokens",
        "layout       250 tokens with shared prefixes once, 500 without sharing (saves 50%), "
        "1,000 padded in batches of 8 (saves 75%)",
    ]


def test_what_did_not_happen_is_not_told():
    report = DataReport(name="eval", rows=1, kept=1, kinds={"ranked": 1})
    assert report.render().splitlines() == [
        "eval data    1 row in, 1 kept: 1 ranked",
        "prompts      0 tokens in 0, mean 0.0, longest 0",
        "completions  0 tokens in 0, mean 0.0, longest 0",
    ]
    assert report.saving == report.padded_saving == 0


def test_the_counts_are_those_of_the_rows(words):
    rows = [
        {"prompt": "a b", "chosen": " c d e f", "rejected": " c d"},
        {"prompt": "a", "chosen": " c", "rejected": " c"},
        {"prompt": "a b c", "chosen": " d e f", "rejected": " d e g"},
        {"prompt": "a b c d e", "chosen": " d", "rejected": " e"},
    ]
    report = prepare_dataset(Dataset.from_list(rows), words, max_length=5).report
    # With the end "." and cut to 5 in all: a b|c d e, a b|c d .; a|c ., a|c .; a b c|d e twice.
    assert (report.cut_rows, report.cut_completions, report.cut_tokens) == (2, 3, 2 + 2 + 2)
    assert (report.identical, report.identical_after_cut) == (1, 1)
    assert report.prompts == Lengths(3, 6, 3)
    assert report.completions == Lengths(6, 14, 3)
    assert report.chosen == report.rejected == Lengths(3, 7, 3)
    assert (report.eos_missing, report.boundary_moved, report.max_length) == (False, 0, 5)


def test_pairs_and_labels_are_counted_separately():
    rows = [
        {"prompt_ids": [1], "chosen_ids": [2, 3, 4], "rejected_ids": [5], "completion_ids": None},
        {"prompt_ids": [1], "chosen_ids": None, "rejected_ids": None, "completion_ids": [2, 3]},
    ]
    mixed = [row | {"label": None if row["chosen_ids"] else False} for row in rows]
    report = prepare_dataset(Dataset.from_list(mixed), None).report
    assert (report.chosen, report.rejected) == (Lengths(1, 3, 3), Lengths(1, 1, 1))
    assert report.completions == Lengths(3, 6, 3)
    assert (report.desirable, report.undesirable) == (0, 1)


def test_labels_are_counted_and_a_missing_end_is_told(words):
    words.eos_token = None
    rows = [{"prompt": "a", "completion": " b", "label": label} for label in (1, 0, 1)]
    report = prepare_dataset(Dataset.from_list(rows), words).report
    assert (report.desirable, report.undesirable, report.eos_missing) == (2, 1, True)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(ids, st.lists(ids, min_size=2, max_size=3)), min_size=1, max_size=5),
    st.integers(1, 3),
)
def test_token_counts_are_those_of_the_layouts(rows, batch_size):
    table = [
        {
            "prompt_ids": prompt,
            "completion_ids": completions,
            "ranks": list(range(len(completions))),
        }
        for prompt, completions in rows
    ]
    report = prepare_dataset(Dataset.from_list(table), None, batch_size=batch_size).report
    examples = [
        Example(np.array(prompt), [np.array(completion) for completion in completions])
        for prompt, completions in rows
    ]
    padded = [
        build_layout(examples[start : start + batch_size], "padded")
        for start in range(0, len(examples), batch_size)
    ]
    alone = [build_layout([example], least_shared=1000) for example in examples]
    assert report.shared_tokens == sum(layout.input_ids.numel() for layout in alone)
    assert report.padded_tokens == sum(layout.input_ids.numel() for layout in padded)
    assert report.separate_tokens == sum(layout.attention_mask.sum() for layout in padded)
    assert report.saving == pytest.approx(1 - report.shared_tokens / report.separate_tokens)


@pytest.mark.parametrize(
    ("desirable", "undesirable", "wanted"),
    [
        (100, 100, []),
        (130, 100, []),
        (0, 100, []),
        (200, 100, "for kto, undesirable_weight 1.50 to 2.00 would balance them"),
        (100, 200, "for kto, desirable_weight 2.00 to 2.67 would balance them"),
    ],
)
def test_weights_are_proposed_where_labels_are_out_of_balance(desirable, undesirable, wanted):
    """KTO's Eq. 8: desirable rows times their weight are 1 to 4/3 of the undesirable ones."""
    proposed = _proposed_weights(desirable, undesirable)
    assert [text for _, text in proposed] == ([wanted] if wanted else [])


def test_a_sample_shows_the_tokens_as_text():
    tokenizer = bytes_tokenizer(CHATML)
    rows = [pair("much too long " * 9, "Hello", "No"), pair("Hi", "Hello there", "No")]
    report = prepare_dataset(Dataset.from_list(rows), tokenizer, max_length=24).report
    assert report.sample.parts() == [
        ("row 1, prompt", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"),
        ("chosen, trained on", "Hel"),
        ("rejected, trained on", "No<|im_end|>"),
    ]


def test_a_long_text_of_a_sample_is_shortened():
    sample = Sample(0, "a" * 1200, ("b" * 700 + "c" * 2000,), ("chosen",))
    (_, prompt), (_, completion) = sample.parts()
    assert prompt == sample.prompt
    assert completion == "b" * 600 + "\n[... 1,500 characters ...]\n" + "c" * 600


@pytest.mark.parametrize(
    ("row", "names"),
    [
        ({"kind": "unpaired", "desirable": [False]}, ("undesirable",)),
        ({"kind": "unpaired", "desirable": [True]}, ("desirable",)),
        ({"kind": "ranked", "ranks": [0, 0, 1]}, ("rank 0", "rank 0", "rank 1")),
    ],
)
def test_completions_of_a_sample_are_named(row, names):
    ids = {"prompt_ids": [20], "completion_ids": [[21]] * len(names)}
    assert show_row(row | ids, 0, bytes_tokenizer()).names == names
    assert show_row(row | ids, 0, None) is None


def test_a_report_tells_the_rows_that_a_weight_uses():
    report = DataReport("train: a.csv", rows=6, kept=6, kinds={"paired": 6})
    assert "by weight" not in report.render()
    assert "3 rows, by weight 0.5" in replace(report, weight=0.5, used=3).render()
