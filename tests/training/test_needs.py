"""What a run needs, computed from what some of its steps needed."""

import numpy as np
import pytest

from prefopt.training.needs import (
    Line,
    Memory,
    Model,
    Times,
    rows_that_fit,
    seconds_of_steps,
    with_4_bits,
    with_checkpointing,
    with_lora,
)

# 100 weights in float32, all trained; a pass takes 400 bytes of gradients, and 10 for each token.
FULL = Memory(weights=400, gradients=400, optimizer=800, step=Line(400, 10), process=50)
MODEL = Model(layers=2, hidden=1, bytes_per_number=1, linear=80, linear_bytes=320, adapter=5)


@pytest.mark.parametrize(
    ("points", "line"),
    [
        ([(1, 3), (2, 5), (4, 9)], Line(1, 2)),
        ([(10, 40), (10, 60)], Line(0, 5)),  # one size tells no start
        ([(1, 1), (2, 4)], Line(0, 9 / 5)),  # below 0 at the start: through it instead
        ([(1, 5), (3, 1)], Line(3, 0)),  # more tokens in less time: noise
    ],
)
def test_a_line_through_what_was_measured(points, line):
    assert Line.through(points) == pytest.approx(line)


def test_the_memory_of_a_pass_is_that_of_its_tokens():
    assert FULL.of(20) == 50 + 400 + 800 + 400 + 200
    assert FULL.most_tokens(50 + 400 + 800 + 400 + 205) == 20
    assert FULL.most_tokens(1650) == 0


def test_rows_fit_whichever_they_are():
    sizes = np.array([5, 1, 9, 3])
    for tokens, rows in ((8, 0), (9, 1), (13, 1), (14, 2), (17, 3), (18, 4), (1000, 4)):
        assert rows_that_fit(FULL, sizes, FULL.of(tokens)) == rows


def test_an_adapter_has_gradients_and_moments_of_its_own_weights_only():
    lora = with_lora(FULL, MODEL)
    assert (lora.weights, lora.gradients, lora.optimizer) == (400 + 20, 20, 40)
    assert lora.step == Line(20, 10)
    packed = with_4_bits(lora, MODEL)
    assert packed.weights == 420 - 320 + 80 * (0.5 + 4 / 64)
    assert packed.step == lora.step


def test_checkpointing_keeps_inputs_of_layers_and_one_layer():
    assert with_checkpointing(FULL, MODEL).step == Line(400, 2 * 1 * 1 + 10 / 2)
    wide = Model(2, 1000, 4, 80, 320, 5)
    assert with_checkpointing(FULL, wide).step == FULL.step  # never more than without


def test_steps_take_what_their_passes_take():
    passes = Line(1.0, 0.5)
    # An epoch of three passes, two a step: 2, 3 and 6 seconds, then the same again.
    assert seconds_of_steps(passes, 0.25, [2, 4, 10], 2, 2) == 2 + 3 + 6 + 2 * 0.25
    assert seconds_of_steps(passes, 0.25, [2, 4, 10], 2, 3) == 2 + 3 + 6 + 2 + 3 + 3 * 0.25
    assert seconds_of_steps(passes, 0.0, [2, 4, 10], 1, 7) == 2 * 11 + 2


def test_the_whole_is_the_sum_of_its_parts():
    assert Times(1, 2, 4, 8, 16).total == 31
