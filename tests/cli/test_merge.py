"""``prefopt merge``: from an adapter that was trained to a model that loads by itself."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefopt.evaluation.loading import load_for_inference


@pytest.fixture(scope="module")
def adapter(model_folder, tmp_path_factory):
    """Folder of an adapter without a tokenizer of its own."""
    peft = pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("adapter")
    base = AutoModelForCausalLM.from_pretrained(model_folder)
    config = peft.LoraConfig(r=4, init_lora_weights=False, task_type="CAUSAL_LM")
    torch.manual_seed(0)
    peft.get_peft_model(base, config).save_pretrained(folder)
    return folder


def test_the_model_loads_without_peft_and_predicts_the_same(
    prefopt, model_folder, adapter, tmp_path
):
    result = prefopt("merge", adapter, tmp_path / "out")
    assert result.code == 0, result.err
    assert f"Merged {adapter} into {model_folder}, and saved it to {tmp_path / 'out'}" in result.out
    assert "in float32: log-probs differ by up to" in result.out
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.arange(3, 20)[None]
    adapted, tokenizer = load_for_inference(str(adapter))
    with torch.no_grad():
        expected = adapted(input_ids=ids).logits
        torch.testing.assert_close(merged(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
    saved = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert saved.chat_template == tokenizer.chat_template
    assert saved("some text") == tokenizer("some text")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("MODEL", "out"), "is no adapter: there is nothing to merge"),
        (("ADAPTER", "MODEL"), "holds something already"),
        (("/no/such/folder", "out"), "there is none in that folder|can't load"),
    ],
)
def test_mistakes_are_told(prefopt, model_folder, adapter, tmp_path, words, message):
    places = {"MODEL": model_folder, "ADAPTER": adapter, "out": tmp_path / "out"}
    result = prefopt("merge", *(places.get(word, word) for word in words))
    assert result.code == 2
    assert any(part in result.err for part in message.split("|"))
    assert not (tmp_path / "out").exists()
