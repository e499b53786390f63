import torch

from prefopt.data.collate import PreferenceCollator

ROW = {
    "prompt_ids": [3, 4],
    "completion_ids": [[5, 6], [7]],
    "ranks": [0, 1],
    "desirable": [True, False],
    "kl_completion_ids": [[8], [9, 10]],
}


def batch(mismatched=None):
    (found,) = PreferenceCollator(mismatched=mismatched).batches([ROW])
    return found


def test_a_batch_moves_as_one():
    moved = batch("continued").to("meta")
    tensors = [
        moved.texts.tokens.input_ids,
        moved.texts.tokens.continuation.lengths,
        moved.mismatched.tokens.target_ids,
        moved.index.chosen,
    ]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert moved.texts.tokens.segments == batch("continued").texts.tokens.segments


def test_mismatched_completions_continue_the_row_or_stand_alone():
    assert batch().mismatched is None
    assert not batch("separate").continues
    assert batch("continued").continues
    torch.testing.assert_close(
        batch("separate").mismatched.tokens.lengths, batch("continued").mismatched.tokens.lengths
    )
