import pytest
import torch

from prefopt.training.loading import check_causal
from prefopt.training.model import (
    learned_positions,
    load_policy,
    load_reference,
    reference_options,
    switch_off_dropout,
)
from tests.models import tiny_model, tiny_tokenizer
from tests.runs import config


@pytest.fixture
def folder(tmp_path):
    tiny_model("llama").to(torch.bfloat16).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_a_model_by_path_is_in_float32_unless_asked_otherwise(folder, tmp_path):
    assert load_policy(folder, config(tmp_path)).dtype == torch.float32
    half = config(tmp_path, model_init_kwargs={"dtype": "bfloat16"})
    assert load_policy(folder, half).dtype == torch.bfloat16


def test_options_of_loading_need_something_to_load(folder, tmp_path):
    args = config(tmp_path, model_init_kwargs={"dtype": "bfloat16"})
    with pytest.raises(ValueError, match="model_init_kwargs only matters when the model is loaded"):
        load_policy(tiny_model("llama"), args)
    model = tiny_model("llama")
    assert load_policy(model, config(tmp_path)) is model
    for wrong in (3, torch.nn.Linear(2, 2)):
        with pytest.raises(TypeError, match=r"a model of transformers or peft, got (int|Linear)"):
            load_policy(wrong, config(tmp_path))
    with pytest.raises(TypeError, match="ref_model must be an id, a path, or a model"):
        check_causal(3, {}, "ref_model")
    check_causal(torch.compile(model, backend="eager"), {})


def test_a_reference_is_frozen_and_has_no_dropout(folder, tmp_path):
    tokenizer = tiny_tokenizer()
    model = load_reference(folder, tokenizer, config(tmp_path))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    given = tiny_model("gpt2", resid_pdrop=0.5)
    load_reference(given, tokenizer, config(tmp_path))
    assert {m.p for m in given.modules() if isinstance(m, torch.nn.Dropout)} == {0.0}


def test_what_decides_which_reference_is_loaded_is_known(tmp_path):
    assert reference_options(config(tmp_path)) == {"dtype": "float32", "trust_remote_code": False}
    args = config(tmp_path, model_init_kwargs={"revision": "abc"})
    assert reference_options(args)["revision"] == "abc"
    for name in ("dtype", "torch_dtype"):
        for value in ("bfloat16", "torch.bfloat16", torch.bfloat16):
            args = config(tmp_path, model_init_kwargs={name: value})
            assert reference_options(args) == {"dtype": "bfloat16", "trust_remote_code": False}


@pytest.mark.parametrize(("name", "has_end"), [("gpt2", True), ("opt", True), ("llama", False)])
def test_learned_positions_end_and_rotary_ones_do_not(name, has_end):
    model = tiny_model(name)
    wanted = model.config.max_position_embeddings if has_end else None
    assert learned_positions(model) == wanted


def test_every_dropout_is_switched_off():
    model = tiny_model("gpt2", resid_pdrop=0.5, attn_pdrop=0.5)
    switch_off_dropout(model)
    ids = torch.arange(3, 13)[None]
    model.train()
    torch.testing.assert_close(model(ids).logits, model(ids).logits)


def test_the_noise_of_routers_is_dropout_too():
    model = tiny_model("mixtral", router_jitter_noise=0.2)
    assert any(getattr(module, "jitter_noise", 0) for module in model.modules())
    switch_off_dropout(model)
    assert not any(getattr(module, "jitter_noise", 0) for module in model.modules())
