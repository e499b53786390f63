"""Judges by a line of text."""

import pytest

from prefopt.evaluation.judges import (
    ClassifierJudge,
    EndpointJudge,
    FunctionJudge,
    LogProbJudge,
    make_judge,
)
from tests.models import tiny_model, tiny_tokenizer

from .test_classifier import bert, bert_tokenizer


def test_each_kind_is_made(tmp_path):
    function = make_judge("function:tests.evaluation.judges.test_function:for_tests")
    assert isinstance(function, FunctionJudge)
    tiny_model("llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    assert isinstance(make_judge(f"logprob:{tmp_path / 'model'}"), LogProbJudge)
    assert make_judge(f"logprob:{tmp_path / 'model'}#per_token").name.startswith("log-prob per")
    bert().save_pretrained(tmp_path / "classifier")
    bert_tokenizer().save_pretrained(tmp_path / "classifier")
    classifier = make_judge(f"classifier:{tmp_path / 'classifier'}#neutral", batch_size=3)
    assert isinstance(classifier, ClassifierJudge)
    pytest.importorskip("openai")
    endpoint = make_judge("endpoint:http://localhost:8000/v1#org/model")
    assert isinstance(endpoint, EndpointJudge)
    assert endpoint.name == "org/model at http://localhost:8000/v1"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gpt-4", "names no judge; there are: function"),
        ("function:", "names no judge"),
        ("oracle:x", "names no judge"),
        ("logprob:model#mean", "takes #per_token or nothing, not #mean"),
        ("endpoint:http://localhost", "names no model: write endpoint:http://localhost#model"),
        ("classifier:/no/such/folder", "can't load the classifier"),
    ],
)
def test_what_is_none_is_an_error(spec, message):
    with pytest.raises((ValueError, OSError), match=message):
        make_judge(spec)
