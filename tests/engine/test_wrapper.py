"""What peft's wrapper does around a forward pass, and adapters moved for a probe."""

import pytest
import torch

from prefopt.engine import Scorer
from prefopt.engine.probe import probe_inputs
from prefopt.engine.wrapper import adapter_names, around_forward, refuse_wrapper, stirred
from tests.models import tiny_model

peft = pytest.importorskip("peft")

TASK = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"]}


def around(config):
    model = peft.get_peft_model(tiny_model("llama"), config)
    causal_lm = model.get_base_model()
    return around_forward(model, causal_lm, probe_inputs(causal_lm))


def test_a_plain_adapter_calls_the_model_once_and_does_no_more():
    assert around(peft.LoraConfig(**TASK)) == (1, 0, 0.0)
    model = tiny_model("llama")
    assert around_forward(model, model, probe_inputs(model)) is None


def test_the_model_has_its_own_forward_pass_afterwards():
    model = peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(**TASK))
    causal_lm = model.get_base_model()
    around_forward(model, causal_lm, probe_inputs(causal_lm))
    assert "forward" not in vars(causal_lm)
    own = causal_lm.forward
    causal_lm.forward = own  # as accelerate patches it
    around_forward(model, causal_lm, probe_inputs(causal_lm))
    assert vars(causal_lm)["forward"] is own


def test_where_an_adapter_acts_from_certain_tokens_on_hooks_say_so_and_it_is_refused():
    config = peft.LoraConfig(alora_invocation_tokens=[7, 8], **TASK)
    assert around(config).hooks > 0
    model = peft.get_peft_model(tiny_model("llama"), config)
    with pytest.raises(ValueError, match=r"\(default: LoraConfig\) acts where peft's wrapper"):
        Scorer(model)
    # As a reference it would be another one than it is: refused too, though nothing is trained.
    with pytest.raises(ValueError, match="leave out alora_invocation_tokens"):
        Scorer(model.requires_grad_(False))


def test_experts_that_are_weighted_by_the_wrapper_are_refused(tmp_path):
    peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(**TASK)).save_pretrained(tmp_path)
    base = tiny_model("llama")
    base.config.use_cache = False
    config = peft.XLoraConfig(
        task_type="CAUSAL_LM", hidden_size=32, adapters={"0": str(tmp_path)}, xlora_depth=1
    )
    model = peft.get_peft_model(base, config)
    with pytest.raises(ValueError, match=r"XLoraConfig.* acts where peft's wrapper"):
        Scorer(model)


def test_a_penalty_on_the_loss_is_seen():
    found = around(peft.AdaLoraConfig(total_step=9, **TASK))
    assert (found.calls, found.hooks) == (1, 0)
    assert found.penalty > 0.1
    model = peft.get_peft_model(tiny_model("llama"), peft.AdaLoraConfig(total_step=9, **TASK))
    refuse_wrapper(model, model.get_base_model(), probe_inputs(model.get_base_model()))


def test_what_is_trained_of_an_adapter_moves_and_comes_back_to_the_bit():
    model = peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(**TASK))
    before = {name: it.clone() for name, it in model.named_parameters()}
    random = torch.random.get_rng_state()
    moved = set[str]()

    def fail():
        with stirred(model):
            moved.update(
                name for name, it in model.named_parameters() if not it.equal(before[name])
            )
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert moved == {name for name, it in model.named_parameters() if it.requires_grad}
    assert all(it.equal(before[name]) for name, it in model.named_parameters())
    assert torch.random.get_rng_state().equal(random)


def test_a_model_without_an_adapter_does_not_move():
    model = tiny_model("llama")
    before = model.lm_head.weight.clone()
    with stirred(model):
        assert model.lm_head.weight.equal(before)
    assert adapter_names(model) == ""


def test_an_adapter_that_mixes_tokens_only_once_it_is_trained_is_refused_when_fresh():
    if not hasattr(peft, "LilyConfig"):
        pytest.skip("this peft has no Lily")
    model = peft.get_peft_model(tiny_model("llama"), peft.LilyConfig(r=4, **TASK))
    with pytest.raises(ValueError, match=r"or its adapter \(default: LilyConfig\) looks both ways"):
        Scorer(model)
