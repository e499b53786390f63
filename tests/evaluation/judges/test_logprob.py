"""The log-prob of an answer, against sums over the model's own forward pass."""

import pytest
import torch

from prefopt.evaluation.judges import LogProbJudge
from tests.models import tiny_model, tiny_tokenizer

PROMPTS = ["w5 w6", "w7", "w8 w9 w10"]
ANSWERS = [" w20 w21 w22", " w23", " w24 w25"]


def by_hand(model, prompt: list[int], answer: list[int]) -> list[float]:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].double()
    logps = logits.log_softmax(1)
    return [logps[len(prompt) + i - 1, token].item() for i, token in enumerate(answer)]


@pytest.mark.parametrize("per_token", [False, True])
def test_scores_are_log_probs_of_the_answer_and_its_end(per_token):
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    model.train()
    judge = LogProbJudge(model, tokenizer, per_token=per_token, batch_size=2)
    found = judge.scores(PROMPTS, ANSWERS)
    assert model.training
    ids = tokenizer(PROMPTS)["input_ids"], tokenizer(ANSWERS)["input_ids"]
    model.eval()
    logps = [by_hand(model, p, [*a, tokenizer.eos_token_id]) for p, a in zip(*ids, strict=True)]
    expected = [sum(own) / (len(own) if per_token else 1) for own in logps]
    assert found == pytest.approx(expected, rel=1e-5)


def test_conversations_are_read_in_the_chat_template():
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ 'w4' if m.role == 'assistant' else 'w3' }} {{ m.content }} "
        "{{ eos_token }} {% endfor %}{% if add_generation_prompt %}w4{% endif %}"
    )
    found = LogProbJudge(model, tokenizer).scores([[{"role": "user", "content": "w5"}]], ["w20"])
    assert found == pytest.approx([sum(by_hand(model, [3, 5, 2, 4], [20, 2]))], rel=1e-5)


def test_a_model_is_loaded_by_name(tmp_path):
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    judge = LogProbJudge.load(str(tmp_path), per_token=True)
    assert judge.name == f"log-prob per token of {tmp_path}"
    expected = LogProbJudge(model, tokenizer, per_token=True).scores(PROMPTS, ANSWERS)
    assert judge.scores(PROMPTS, ANSWERS) == pytest.approx(expected)


def test_token_ids_are_those_of_another_model():
    with pytest.raises(ValueError, match="not the token ids of another model"):
        LogProbJudge(tiny_model("llama"), tiny_tokenizer()).scores([[3, 4]], [" w5"])
