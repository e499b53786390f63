"""Compiled layers train as plain ones do."""

import shutil

import pytest
import torch
from torch import nn

from prefopt.engine.compilation import compile_layers
from tests.models import tiny_rows
from tests.runs import steps, trainer

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU"
)


@pytest.mark.slow
@needs_compiler
# Dynamo and inductor warn of what they meet on their way.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("checkpointing", [True, False])
def test_compiled_layers_train_alike(tmp_path, checkpointing):
    rows = tiny_rows(12)
    options = {"gradient_checkpointing": checkpointing, "optim": "sgd"}
    plain = trainer(tmp_path, rows, **options)
    compiled = trainer(tmp_path, rows, torch_compile=True, **options)
    frames = torch._dynamo.utils.counters["frames"]
    frames.clear()
    for trained in (plain, compiled):
        trained.train()
    assert frames["ok"] > 0
    for ours, wanted in zip(steps(compiled), steps(plain), strict=True):
        assert ours["loss"] == pytest.approx(wanted["loss"], rel=1e-4)
        assert ours["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=1e-4)


def test_a_model_without_layers_cannot_be_compiled():
    with pytest.raises(ValueError, match="Linear has no layers"):
        compile_layers(nn.Linear(2, 2))


def test_backend_and_mode_are_passed_on(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "prefopt.training.model.compile_layers", lambda model, **options: asked.append(options)
    )
    trainer(
        tmp_path, tiny_rows(4), torch_compile_backend="eager", torch_compile_mode="max-autotune"
    )
    assert asked == [{"backend": "eager", "mode": "max-autotune"}]
