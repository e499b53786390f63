"""A batch of prepared rows: its views as pairs, thumbs and best completions."""

from prefopt.data.collate import PreferenceCollator


def row(completions, ranks=(), desirable=(), **extra):
    return {
        "prompt_ids": [3, 4],
        "completion_ids": [[10 + i] * (i + 1) for i in range(completions)],
        "ranks": list(ranks),
        "desirable": list(desirable),
        **extra,
    }


def views(*rows):
    batch = PreferenceCollator()(list(rows))
    names = ("chosen_index", "rejected_index", "labelled_index", "desirable", "preferred_index")
    return [batch[name].tolist() for name in names]


def test_a_pair_is_a_pair_and_two_thumbs():
    chosen, rejected, labelled, desirable, preferred = views(
        row(2, [0, 1], [True, False]), row(2, [0, 1], [True, False])
    )
    assert (chosen, rejected) == ([0, 2], [1, 3])
    assert (labelled, desirable) == ([0, 1, 2, 3], [True, False, True, False])
    assert preferred == [0, 2]


def test_a_ranking_is_all_its_pairs_ties_left_out():
    chosen, rejected, labelled, _, preferred = views(row(2, [0, 1]), row(3, [0, 1, 1]))
    assert (chosen, rejected) == ([0, 2, 2], [1, 3, 4])
    assert labelled == []
    assert preferred == [0, 2]


def test_thumbs_are_no_pairs_and_the_desirable_are_preferred():
    chosen, _, labelled, desirable, preferred = views(row(1, [], [False]), row(1, [], [True]))
    assert chosen == []
    assert (labelled, desirable) == ([0, 1], [False, True])
    assert preferred == [1]


def test_mismatched_completions_are_laid_out_under_their_prompts():
    batch = PreferenceCollator(mismatched="separate")(
        [
            row(1, [], [True], kl_completion_ids=[[7, 8]]),
            row(1, [], [False], kl_completion_ids=[[9]]),
        ]
    )
    assert batch["kl"]["input_ids"].tolist() == [[3, 4, 7, 3, 4]]
    assert batch["kl"]["lengths"].tolist() == [2, 1]


def test_a_batch_counts_its_examples_and_the_tokens_of_its_sequences():
    batch = PreferenceCollator()([row(2, [0, 1], [True, False]), row(1, [], [True])])
    assert int(batch["examples"]) == 2
    assert int(batch["sequence_tokens"]) == (2 + 1) + (2 + 2) + (2 + 1)


def test_the_padded_layout_fills_with_the_padding_token():
    batch = PreferenceCollator("padded", pad_token_id=5)([row(2, [0, 1], [True, False])])
    assert batch["input_ids"].tolist() == [[3, 4, 5], [3, 4, 11]]
