"""Which backend is chosen, with machines and kernels made up; and what a scorer makes of it."""

import logging

import pytest
import torch

from prefopt.engine import Scorer, attention
from prefopt.engine.attention import (
    Backend,
    LayerFacts,
    attend_by_segments,
    attend_flex,
    attend_varlen,
    check_request,
    choose_backend,
    drops_weights,
)
from prefopt.engine.attention import flex as flex_module
from prefopt.engine.attention import varlen as varlen_module
from prefopt.engine.attention.varlen import VarlenKernel
from tests.engine.trees import batch_of, trees
from tests.models import tiny_model

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PLAIN = LayerFacts(heads=4, kv_heads=2, head_dim=64, value_dim=64)
CAPPED = LayerFacts(4, 2, 64, 64, softcap=50.0)
SINKS = LayerFacts(4, 2, 64, 64, sinks=True)
WIDE = LayerFacts(4, 2, 512, 512)
UNEVEN = LayerFacts(4, 4, 192, 128)
ODD = LayerFacts(4, 4, 20, 20)

TORCHS = VarlenKernel("torch", lambda *args: None, softcap=False, dropout=False)
FLASH = VarlenKernel("flash-attn", lambda *args: None, softcap=True, dropout=True)


@pytest.fixture
def machine(monkeypatch):
    """Make up a machine: its GPU's capability, its varlen kernels, whether it has triton."""

    def make(capability=(9, 0), kernels=(TORCHS,), triton=True):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(varlen_module, "kernels", lambda: kernels)
        monkeypatch.setattr(flex_module, "find_spec", lambda name: triton or None)

    make()
    return make


def choose(request="auto", layers=(PLAIN,), device=CUDA, dtype=torch.bfloat16, dropout=False):
    return choose_backend(request, layers=layers, device=device, dtype=dtype, dropout=dropout)


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layer", [PLAIN, LayerFacts(4, 2, 256, 256, window=128)])
def test_auto_takes_varlen_on_cuda_in_half_precision(layer, dtype):
    backend = choose(layers=[layer], dtype=dtype)
    assert (backend.name, backend.attend) == ("varlen", attend_varlen)
    assert "CUDA" in backend.reason


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (CAPPED, "cap scores"),
        (SINKS, "sinks"),
        (WIDE, "heads of 512"),
        (UNEVEN, "heads of 192 (values of 128)"),
        (ODD, "heads of 20"),
    ],
)
def test_auto_takes_flex_where_any_layer_needs_it(layer, reason):
    backend = choose(layers=[PLAIN, layer])
    assert (backend.name, backend.attend) == ("flex", attend_flex)
    assert reason in backend.reason


def test_auto_takes_flash_attn_for_soft_caps_and_dropout_where_it_is_installed(machine):
    machine(kernels=(TORCHS, FLASH))
    assert choose(layers=[CAPPED]).name == "varlen"
    assert choose(dropout=True).name == "varlen"
    assert choose(layers=[SINKS]).name == "flex"


def test_auto_falls_back_to_segments(machine):
    def said(**facts):
        backend = choose(**facts)
        assert (backend.name, backend.attend) == ("segments", attend_by_segments)
        return backend.reason

    assert "on cpu" in said(device=CPU)
    assert "float32" in said(dtype=torch.float32)
    assert "drop attention weights" in said(dropout=True)
    machine(triton=False)
    assert "sinks" in said(layers=[SINKS])


def test_auto_takes_flex_where_no_varlen_kernel_runs(machine):
    machine(kernels=())
    assert choose().name == "flex"
    machine(capability=(7, 5))
    assert "8.0" in choose().reason


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("request_", ["segments", "varlen", "flex"])
def test_a_required_backend_is_used_where_it_can_run(request_):
    backend = choose(request_)
    assert (backend.name, backend.reason) == (request_, "asked for")


@pytest.mark.parametrize(
    ("request_", "facts", "reason"),
    [
        ("varlen", {"device": CPU}, "it needs a CUDA device, and the model is on cpu"),
        ("varlen", {"dtype": torch.float32}, "and the model in float32"),
        ("varlen", {"layers": [PLAIN, SINKS]}, "it cannot have attention sinks"),
        ("varlen", {"layers": [CAPPED]}, "torch's kernel cannot cap scores; install flash-attn"),
        ("varlen", {"dropout": True}, "cannot drop attention weights; install flash-attn"),
        ("flex", {"device": CPU}, "it needs a CUDA device"),
        ("flex", {"dtype": torch.float64}, "float32 at best"),
        ("flex", {"dropout": True}, "it cannot drop attention weights"),
        ("flex", {"layers": [LayerFacts(4, 2, 8, 8)]}, "it cannot have heads of 8"),
    ],
)
@pytest.mark.usefixtures("machine")
def test_a_required_backend_that_cannot_run_is_an_error(request_, facts, reason):
    with pytest.raises(ValueError, match=f"attn_backend='{request_}' was asked for, but") as error:
        choose(request_, **facts)
    assert reason in str(error.value)
    assert 'use attn_backend="auto" or "segments"' in str(error.value)


def test_what_a_machine_lacks_is_named(machine):
    for lack, said in (
        ({"kernels": ()}, "it needs torch 2.11 or later, or flash-attn"),
        ({"capability": (7, 5)}, "compute capability 8.0"),
    ):
        machine(**lack)
        with pytest.raises(ValueError, match=said):
            choose("varlen")
    machine(triton=False)
    with pytest.raises(ValueError, match="triton, which is not installed"):
        choose("flex")


@pytest.mark.parametrize(
    ("layout", "attn_backend", "wanted"),
    [
        ("auto", "auto", "auto"),
        ("shared_prefix", "auto", "shared_prefix"),
        ("padded", "auto", "padded"),
        ("auto", "padded", "padded"),
        ("padded", "padded", "padded"),
        ("auto", "segments", "shared_prefix"),
        ("shared_prefix", "flex", "shared_prefix"),
    ],
)
def test_a_backend_asks_for_the_layout_it_attends_in(layout, attn_backend, wanted):
    assert check_request(layout, attn_backend) == wanted


@pytest.mark.parametrize(
    ("layout", "attn_backend", "said"),
    [
        ("packed", "auto", "layout must be one of 'auto', 'shared_prefix', 'padded'"),
        ("auto", "flash", "attn_backend must be one of 'auto', 'segments', 'varlen'"),
        ("shared_prefix", "padded", "leave one of them out"),
        ("padded", "varlen", "leave one of them out"),
    ],
)
def test_wishes_that_are_unknown_or_contradict_are_errors(layout, attn_backend, said):
    with pytest.raises(ValueError, match=said):
        check_request(layout, attn_backend)


def test_attention_dropout_is_found_however_a_model_keeps_it():
    llama, gpt2 = tiny_model("llama"), tiny_model("gpt2")
    llama.model.layers[0].self_attn.attention_dropout = 0.1
    gpt2.transformer.h[0].attn.attn_dropout.p = 0.1
    assert drops_weights(llama)
    assert drops_weights(gpt2)
    for model in (tiny_model("llama"), tiny_model("gpt2")):
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        assert not drops_weights(model)


# What a scorer makes of it ----------------------------------------------------------------------


def chosen(monkeypatch, attend, reason="made up"):
    """Let ``attend`` pass for the varlen backend, on this machine."""

    def choose(request, **facts):
        return Backend("varlen", attend, reason)

    monkeypatch.setattr(attention, "choose_backend", choose)


def shifted(*args):
    return attend_by_segments(*args) * 1.3


def failing(*args):
    raise RuntimeError("no kernel image is available\nfor this GPU")


def test_a_scorer_attends_with_the_backend_that_was_chosen(monkeypatch):
    calls = []

    def attend(*args):
        calls.append(args)
        return attend_by_segments(*args)

    chosen(monkeypatch, attend)
    scorer = Scorer(tiny_model("llama"))
    calls.clear()
    scores = scorer.score(batch_of(trees(), "shared_prefix"))
    assert len(calls) == 2  # layers
    assert scorer.backend.name == "varlen"
    assert str(scorer).endswith("attention varlen (made up)")
    wanted = Scorer(tiny_model("llama"), attn_backend="padded").score(batch_of(trees(), "padded"))
    torch.testing.assert_close(scores.logps, wanted.logps)


@pytest.mark.parametrize(
    ("attend", "reason"), [(shifted, "differs by"), (failing, "no kernel image is available")]
)
def test_auto_falls_back_to_segments_where_a_probe_finds_a_backend_wrong(
    monkeypatch, caplog, attend, reason
):
    chosen(monkeypatch, attend)
    with caplog.at_level(logging.WARNING, logger="prefopt"):
        scorer = Scorer(tiny_model("llama"))
    assert scorer.layout == "shared_prefix"
    assert scorer.backend.name == "segments"
    assert f"not varlen: {'its attention ' if attend is shifted else ''}" in scorer.backend.reason
    assert reason in scorer.backend.reason
    assert len(caplog.records) == 1


def test_auto_falls_back_to_segments_where_a_backend_fails_in_the_model_only(monkeypatch, caplog):
    chosen(monkeypatch, failing)
    monkeypatch.setattr(attention, "probe_backend", lambda *args: None)
    with caplog.at_level(logging.WARNING, logger="prefopt"):
        scorer = Scorer(tiny_model("llama"))
    assert scorer.backend.name == "segments"
    assert "no kernel image is available" in caplog.text


@pytest.mark.parametrize(
    ("attend", "reason"), [(shifted, "differs by"), (failing, "no kernel image is available")]
)
def test_a_required_backend_that_a_probe_finds_wrong_is_an_error(monkeypatch, attend, reason):
    chosen(monkeypatch, attend)
    with pytest.raises(ValueError, match=f"attn_backend='varlen' was asked for, but.*{reason}"):
        Scorer(tiny_model("llama"), attn_backend="varlen")


def test_the_dtype_of_the_context_is_what_a_backend_must_suit(monkeypatch):
    asked = []

    def choose(request, **facts):
        asked.append((facts["dtype"], facts["device"], facts["dropout"]))
        return Backend("segments", attend_by_segments, "made up")

    monkeypatch.setattr(attention, "choose_backend", choose)
    Scorer(tiny_model("llama"), context=lambda: torch.autocast("cpu", torch.bfloat16))
    Scorer(tiny_model("llama").bfloat16())
    Scorer(tiny_model("llama"))
    assert asked == [
        (torch.bfloat16, CPU, False),
        (torch.bfloat16, CPU, False),
        (torch.float32, CPU, False),
    ]


def test_layers_say_what_they_need(monkeypatch):
    asked = []

    def choose(request, *, layers, **facts):
        asked.extend(layers)
        return Backend("segments", attend_by_segments, "made up")

    monkeypatch.setattr(attention, "choose_backend", choose)
    Scorer(tiny_model("gemma2"))
    assert {layer.window for layer in asked} == {None, 6}
    assert {layer.softcap for layer in asked} == {2.0}
    asked.clear()
    Scorer(tiny_model("gpt_oss"))
    assert all(layer.sinks for layer in asked)
    assert {(layer.heads, layer.kv_heads) for layer in asked} == {(4, 2)}


def test_a_model_that_cannot_share_is_padded_or_an_error_that_names_the_wish():
    scorer = Scorer(tiny_model("falcon_mamba"))
    assert (scorer.layout, scorer.backend) == ("padded", None)
    with pytest.raises(ValueError, match="attn_backend='segments' was asked for, but Falcon"):
        Scorer(tiny_model("falcon_mamba"), attn_backend="segments")
    with pytest.raises(ValueError, match='layout="shared_prefix" was asked for, but Falcon'):
        Scorer(tiny_model("falcon_mamba"), "shared_prefix")


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt_oss", "gpt2"])
@pytest.mark.parametrize("request_", ["auto", "segments", "varlen", "flex"])
def test_on_a_gpu_every_backend_scores_as_padded_rows_do(name, request_):
    changes = {"n_head": 2} if name == "gpt2" else {"head_dim": 16}
    model = tiny_model(name, **changes).bfloat16().cuda()
    if request_ == "varlen" and name in ("gemma2", "gpt_oss"):
        with pytest.raises(ValueError, match="attn_backend='varlen' was asked for, but"):
            Scorer(model, attn_backend="varlen")
        return
    exact = Scorer(tiny_model(name, **changes).cuda(), "padded")
    wanted = exact.score(exact.to_device(batch_of(trees(), "padded"))).logps
    padded = Scorer(tiny_model(name, **changes).bfloat16().cuda(), "padded")
    noise = padded.score(padded.to_device(batch_of(trees(), "padded"))).logps - wanted
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    scorer = Scorer(model, attn_backend=request_)
    if request_ == "auto":
        assert scorer.backend.name == ("flex" if name in ("gemma2", "gpt_oss") else "varlen")
    logps = scorer.score(scorer.to_device(batch_of(trees(), "shared_prefix"))).logps
    # Twice the noise of padded rows in bfloat16, whose largest of 15 stands for its size.
    assert (logps - wanted).abs().max() <= 2 * noise.abs().max()
    logps.sum().backward()
    assert all(
        parameter.grad is not None and parameter.grad.isfinite().all()
        for parameter in model.parameters()
    )
