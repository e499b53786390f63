"""The probe of a backend finds what is wrong with it, forward, backward, and in every feature."""

from dataclasses import replace

import pytest
import torch

from prefopt.engine.attention import LayerFacts, attend_by_segments, probe_backend

CPU = torch.device("cpu")
LAYERS = [
    LayerFacts(4, 2, 16, 16),
    LayerFacts(4, 4, 16, 8, scaling=0.3),
    LayerFacts(4, 2, 16, 16, window=4096),
    LayerFacts(4, 2, 16, 16, softcap=2.0),
    LayerFacts(4, 1, 16, 16, sinks=True, window=7),
]


class Backwards(torch.autograd.Function):
    """Right forward, and 5% too large backward."""

    @staticmethod
    def forward(ctx, tensor):
        return tensor.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 1.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_segments_pass_in_every_dtype(dtype):
    # Seen in bfloat16: 0.0055 of the largest number.
    assert probe_backend(attend_by_segments, LAYERS, CPU, dtype) is None


def test_wrong_numbers_and_wrong_gradients_are_found():
    def forward(*args):
        return attend_by_segments(*args) * 1.05

    def backward(*args):
        return Backwards.apply(attend_by_segments(*args))

    for attend in (forward, backward):
        problem = probe_backend(attend, LAYERS[:1], CPU, torch.bfloat16)
        assert problem.startswith("its attention differs by 0.05")


def test_numbers_that_are_none_are_found():
    def attend(*args):
        return attend_by_segments(*args) * float("nan")

    assert "nan" in probe_backend(attend, LAYERS, CPU, torch.float32)


@pytest.mark.parametrize(
    ("layer", "forgotten"),
    [(LAYERS[1], "scaling"), (LAYERS[2], "window"), (LAYERS[3], "softcap")],
    ids=["scaling", "window", "softcap"],
)
def test_what_a_backend_ignores_is_found(layer, forgotten):
    def attend(query, key, value, plan, options):
        options = replace(options, **{forgotten: None})
        return attend_by_segments(query, key, value, plan, options)

    assert "differs" in probe_backend(attend, [layer], CPU, torch.bfloat16)


def test_a_backend_that_ignores_branches_is_found():
    def attend(query, key, value, plan, options):
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=True
        )

    assert "differs" in probe_backend(attend, LAYERS[:1], CPU, torch.bfloat16)


def test_a_failure_is_told_by_its_first_line():
    def attend(*args):
        raise RuntimeError("head_dim must be 64\nmore")

    problem = probe_backend(attend, LAYERS, CPU, torch.float32)
    assert problem == "RuntimeError: head_dim must be 64"
