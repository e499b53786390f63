"""The real model of the benchmarks, from the package index, is whole and can speak."""

import pytest
import torch

from tests.conftest import ROOT


@pytest.mark.slow
def test_the_wheel_becomes_a_folder_that_answers(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import smollm2
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = smollm2.make(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.float32
    assert getattr(model.config, "quantization_config", None) is None
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(
        asked, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**inputs, max_new_tokens=24, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0])
    before = folder.stat().st_mtime_ns
    assert smollm2.make(folder) == folder  # made once
    assert folder.stat().st_mtime_ns == before
