"""Classifiers as judges: reward models read what they are trained on, labels have probabilities."""

import pytest
import torch
from tokenizers import processors
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    LlamaForSequenceClassification,
)

from prefopt.evaluation.judges import ClassifierJudge
from tests.models import VOCABULARY, tiny_config, tiny_model, tiny_tokenizer

PROMPTS = ["w5 w6", "w7", "w8 w9 w10"]
ANSWERS = [" w20 w21 w22", " w23", " w24 w25"]
TEMPLATE = (
    "{% for m in messages %}{{ 'w4' if m.role == 'assistant' else 'w3' }} {{ m.content }} <eos> "
    "{% endfor %}{% if add_generation_prompt %}w4{% endif %}"
)


def reward_model():
    torch.manual_seed(0)
    config = tiny_config("llama", num_labels=1, pad_token_id=0)
    model = LlamaForSequenceClassification(config)
    torch.nn.init.normal_(model.score.weight)
    return model.eval()


def bert_tokenizer():
    """A tokenizer that puts <unk> before a text and <eos> behind it, as BERT's [CLS] and [SEP]."""
    tokenizer = tiny_tokenizer()
    tokenizer.cls_token, tokenizer.sep_token, tokenizer.eos_token = "<unk>", "<eos>", None
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<unk> $A <eos>", special_tokens=[("<unk>", 1), ("<eos>", 2)]
    )
    return tokenizer


def bert(labels=("negative", "neutral", "positive"), **changes):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        id2label=dict(enumerate(labels)),
        label2id={label: place for place, label in enumerate(labels)},
        initializer_range=0.5,
        pad_token_id=0,
        **changes,
    )
    return BertForSequenceClassification(config).eval()


def outputs(model, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0]


def test_a_reward_model_reads_text_with_its_end():
    model, tokenizer = reward_model(), tiny_tokenizer()
    found = ClassifierJudge(model, tokenizer, batch_size=2).scores(PROMPTS, ANSWERS)
    texts = tokenizer([p + a for p, a in zip(PROMPTS, ANSWERS, strict=True)])["input_ids"]
    assert found == pytest.approx([outputs(model, [*ids, 2])[0].item() for ids in texts], rel=1e-4)


def test_a_reward_model_reads_conversations_in_its_template():
    model, tokenizer = reward_model(), tiny_tokenizer()
    asked = [[{"role": "user", "content": "w5"}], [{"role": "user", "content": "w6 w7"}]]
    plain = ClassifierJudge(model, tokenizer).scores(asked, ["w20", "w21"])
    lines = tokenizer("user: w5\nassistant: w20")["input_ids"]
    assert plain[0] == pytest.approx(outputs(model, lines)[0].item(), rel=1e-4)
    tokenizer.chat_template = TEMPLATE
    found = ClassifierJudge(model, tokenizer).scores(asked, ["w20", "w21"])
    texts = [[3, 5, 2, 4, 20, 2], [3, 6, 7, 2, 4, 21, 2]]
    assert found == pytest.approx([outputs(model, ids)[0].item() for ids in texts], rel=1e-4)


@pytest.mark.parametrize(
    ("kind", "chances"),
    [
        (None, lambda logits: logits.softmax(0)),
        ("multi_label_classification", lambda logits: logits.sigmoid()),
    ],
)
def test_a_label_scores_by_its_probability(kind, chances):
    model, tokenizer = bert(problem_type=kind), bert_tokenizer()
    found = ClassifierJudge(model, tokenizer, "Positive", batch_size=2).scores(PROMPTS, ANSWERS)
    plain = tiny_tokenizer()([p + a for p, a in zip(PROMPTS, ANSWERS, strict=True)])["input_ids"]
    expected = [chances(outputs(model, [1, *ids, 2]))[2].item() for ids in plain]
    assert found == pytest.approx(expected, rel=1e-4)


def test_what_is_too_long_is_cut_at_its_beginning_and_told():
    model, tokenizer = bert(), bert_tokenizer()
    judge = ClassifierJudge(model, tokenizer, "positive")
    prompt = " ".join(f"w{i}" for i in range(3, 60))
    with pytest.warns(UserWarning, match=r"1 of 2 texts are longer than the 32 tokens"):
        found = judge.scores([prompt, "w5"], [" w60", " w6"])
    kept = [1, *range(61 - 30, 61), 2]
    assert len(kept) == 32
    assert found[0] == pytest.approx(outputs(model, kept).softmax(0)[2].item(), rel=1e-4)
    assert found[1] == pytest.approx(outputs(model, [1, 5, 6, 2]).softmax(0)[2].item(), rel=1e-4)


def test_a_label_must_be_one_of_the_model():
    with pytest.raises(ValueError, match="has the labels negative, neutral, positive: name one"):
        ClassifierJudge(bert(), bert_tokenizer())
    with pytest.raises(ValueError, match="no label 'good'; there are: negative, neutral, positive"):
        ClassifierJudge(bert(), bert_tokenizer(), "good")
    with pytest.raises(ValueError, match="has one output"):
        ClassifierJudge(reward_model(), tiny_tokenizer(), "good")


def test_one_is_loaded_from_its_folder(tmp_path):
    model, tokenizer = bert(), bert_tokenizer()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    judge = ClassifierJudge.load(str(tmp_path), "positive")
    assert judge.name == f"classifier {tmp_path}"
    expected = ClassifierJudge(model, tokenizer, "positive").scores(PROMPTS, ANSWERS)
    assert judge.scores(PROMPTS, ANSWERS) == pytest.approx(expected)


def test_what_is_no_classifier_is_refused(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"is no classifier: it lacks score.weight"):
        ClassifierJudge.load(str(tmp_path / "model"))
    with pytest.raises(OSError, match="can't load the classifier"):
        ClassifierJudge.load(str(tmp_path / "nothing"))
    peft = pytest.importorskip("peft")
    base = AutoModelForSequenceClassification.from_config(tiny_config("llama", num_labels=1))
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2)
    peft.get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="is an adapter: merge it"):
        ClassifierJudge.load(str(tmp_path / "adapter"))
