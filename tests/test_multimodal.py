"""Checkpoints that also read images are trained on text: their text part, and nothing else."""

import pytest
import torch
from transformers import AutoModelForImageTextToText

from prefopt import PreferenceTrainer
from prefopt.engine import Scorer
from tests.engine.trees import assert_equal_gradients, batch_of, gradients, plain_logps, trees
from tests.models import MULTIMODAL, tiny_model, tiny_rows, tiny_tokenizer
from tests.runs import config, steps


def vision_parts(model):
    return {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if "vision" in name or "visual" in name or "projector" in name
    }


@pytest.mark.parametrize("layout", ["shared_prefix", "padded"])
@pytest.mark.parametrize("name", MULTIMODAL)
def test_texts_are_scored_as_by_the_plain_forward(name, layout):
    model = tiny_model(name)
    wanted = plain_logps(model, trees())
    wanted_gradients = gradients(model, wanted)
    scorer = Scorer(model, layout)
    assert scorer.layout == layout
    model.train()  # where Gemma 3 asks which tokens are text
    logps = scorer.score(batch_of(trees(), layout)).logps
    assert (logps - wanted).abs().max() < 3e-5
    ours = gradients(model, logps)
    assert_equal_gradients(ours, wanted_gradients)
    assert vision_parts(model)
    assert not ours.keys() & vision_parts(model).keys()


@pytest.mark.parametrize("name", MULTIMODAL)
def test_a_folder_is_trained_and_saved_whole(tmp_path, name):
    folder = tmp_path / "model"
    tiny_model(name).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    trained = PreferenceTrainer(
        str(folder), args=config(tmp_path / "out", weight_decay=0.1), train_dataset=tiny_rows(8)
    )
    before = vision_parts(trained.model)
    trained.train()
    trained.save_model()
    logged = steps(trained)
    assert logged[0]["loss"] == pytest.approx(0.6931472, rel=1e-5)
    assert logged[1]["loss"] != logged[0]["loss"]
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert type(loaded) is type(trained.model)
    for part, weights in vision_parts(loaded).items():
        assert torch.equal(weights, before[part])
    text = torch.arange(3, 20)[None]
    torch.testing.assert_close(loaded(input_ids=text).logits, trained.model.eval()(text).logits)


def test_gemma_3_is_told_that_every_token_is_text():
    """In training, transformers 5.0 refuses a forward pass that does not say which tokens are."""
    model = tiny_model("gemma3_vision")
    scorer = Scorer(model)
    told = []
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: told.append(kwargs.get("token_type_ids")), with_kwargs=True
    )
    scorer.score(batch_of(trees(), scorer.layout))
    assert told[0].shape == batch_of(trees(), scorer.layout).input_ids.shape
    assert not told[0].any()
