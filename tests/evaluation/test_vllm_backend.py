"""What vLLM is asked for, and what becomes of its answers; a stand-in takes its place."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from prefopt.evaluation import generate
from prefopt.evaluation.vllm_backend import load_vllm
from tests.models import tiny_tokenizer


class Engine:
    """Stands for ``vllm.LLM``: notes what it is asked, and answers with numbers."""

    def __init__(self, **options):
        self.options = options
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=16))

    def generate(self, prompts, params, lora_request=None, use_tqdm=True):
        self.asked = (prompts, params, lora_request)
        answers = [SimpleNamespace(token_ids=(20, 21, 2)), SimpleNamespace(token_ids=(22, 23, 24))]
        return [SimpleNamespace(outputs=answers[: params.n]) for _ in prompts]


@pytest.fixture
def vllm(monkeypatch):
    """A stand-in for vLLM, which this machine cannot run."""
    package, lora, request = ModuleType("vllm"), ModuleType("vllm.lora"), ModuleType("request")
    package.LLM, package.SamplingParams = Engine, SimpleNamespace
    request.LoRARequest = lambda *fields: fields
    for name, module in {
        "vllm": package,
        "vllm.lora": lora,
        "vllm.lora.request": request,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.usefixtures("vllm")
def test_vllm_is_asked_for_the_same():
    model = load_vllm("some/model", dtype="bfloat16")
    found = generate(model, tiny_tokenizer(), ["w5 w6", "w7"], max_new_tokens=3, samples=2, seed=5)
    assert [a.text for a in found] == [" w20 w21", " w22 w23 w24"] * 2
    assert [(a.tokens, a.truncated) for a in found] == [(3, False), (3, True)] * 2
    prompts, params, adapter = model.engine.asked
    assert prompts == [{"prompt_token_ids": [5, 6]}, {"prompt_token_ids": [7]}]
    assert (params.n, params.temperature, params.top_p, params.top_k) == (2, 1.0, 1.0, 0)
    assert (params.max_tokens, params.seed, params.stop_token_ids) == (3, 5, [2])
    assert adapter is None
    assert model.engine.options == {
        "model": "some/model",
        "dtype": "bfloat16",
        "generation_config": "vllm",
    }
    with pytest.raises(ValueError, match="more than the 16"):
        generate(model, tiny_tokenizer(), ["w5 " * 14], max_new_tokens=3)


@pytest.mark.usefixtures("vllm")
def test_vllm_writes_one_answer_at_temperature_zero():
    model = load_vllm("some/model")
    found = generate(model, tiny_tokenizer(), ["w5"], temperature=0, max_new_tokens=3, samples=2)
    assert model.engine.asked[1].n == 1
    assert [answer.text for answer in found] == [" w20 w21"] * 2


@pytest.mark.usefixtures("vllm")
def test_vllm_loads_an_adapter_on_its_base(tmp_path):
    peft = pytest.importorskip("peft")
    peft.LoraConfig(r=12, base_model_name_or_path="some/base").save_pretrained(tmp_path)
    model = load_vllm(str(tmp_path))
    assert model.engine.options["model"] == "some/base"
    assert model.engine.options["enable_lora"]
    assert model.engine.options["max_lora_rank"] == 16
    assert model.adapter == ("adapter", 1, str(tmp_path))


def test_without_vllm_that_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match="pip install vllm"):
        load_vllm("some/model")
