"""Every kind of adapter: trained with the gradient of peft's forward pass, saved, loaded, merged,
resumed; or refused before training.
"""

import math
import re

import peft
import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from transformers import AutoModelForCausalLM

from prefopt.engine import Scorer, build_layout
from prefopt.engine.layout import Example
from prefopt.training.adapter_kinds import check_base_unchanged, check_kinds, weight_samples
from prefopt.training.model import loading_options
from prefopt.training.saved import loading_code
from tests.adapter_kinds import KINDS, Kind
from tests.conftest import ROOT
from tests.models import move, tiny_model, tiny_rows, tiny_tokenizer
from tests.runs import steps, trainer

# peft warns of much in making, merging and loading, which is not what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

IDS = torch.tensor([5, 9, 7, 8, 11, 12, 3, 4, 20, 33, 5])
EXAMPLE = Example(IDS[:5].numpy(), [IDS[5:8].numpy(), IDS[8:].numpy()])
NEEDED = {"AdaMSS": "sklearn"}

# Largest difference in nats of what is loaded from what was trained.
CLOSE = {"rtol": 0, "atol": 1e-4}


def parametrised(kinds):
    marks = {True: (), False: pytest.mark.slow}
    return [pytest.param(name, marks=marks[kind.quick]) for name, kind in kinds.items()]


TRAINED = parametrised({name: kind for name, kind in KINDS.items() if not kind.refused})
REFUSED = parametrised({name: kind for name, kind in KINDS.items() if kind.refused})


@pytest.fixture
def base(tmp_path, request):
    kind = KINDS[request.getfixturevalue("name")]
    tiny_model(kind.model, **kind.changes).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder)


def logps(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS[None]).logits.float().log_softmax(-1)


def gradients(model, scores):
    """Return the gradients of what is trained by a difference of two scores."""
    model.zero_grad(set_to_none=True)
    (scores[0] - 0.7 * scores[1]).backward()
    grads = {name: it.grad for name, it in model.named_parameters() if it.requires_grad}
    return torch.cat([grads[name].flatten() for name in grads if grads[name] is not None])


def plain_scores(model):
    """Return the log-probs of the completions by ``PeftModel.forward`` of each text alone."""
    scores = []
    for text in EXAMPLE.texts():
        tokens = torch.tensor(text)
        predicted = model(input_ids=tokens[None]).logits[0, :-1].log_softmax(-1)
        scores.append(predicted.gather(-1, tokens[1:, None])[4:].sum())
    return torch.stack(scores)


def check_gradients(model):
    scorer = Scorer(move(model).eval())
    batch = build_layout([EXAMPLE], scorer.layout)
    ours = scorer.score(batch).logps
    found = gradients(model, ours)
    plain = plain_scores(model)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-4)
    wanted = gradients(model, plain)
    assert wanted.norm() > 1e-2
    assert (found - wanted).norm() / wanted.norm() < 1e-4


@pytest.mark.parametrize("name", TRAINED)
def test_a_kind_is_trained_saved_loaded_merged_and_resumed_exactly(tmp_path, base, name):
    kind = KINDS[name]
    check_gradients(peft.get_peft_model(load(base), kind.make()))

    options = {"model": str(base), "save_steps": 2, "max_steps": 4}
    trained = trainer(
        tmp_path / "out",
        tiny_rows(8),
        peft_config=kind.make(),
        save_strategy="steps",
        **options,
    )
    trained.train()
    assert steps(trained)[0]["loss"] == pytest.approx(math.log(2), rel=1e-5)
    assert steps(trained)[0]["grad_norm"] > 0
    trained.save_model()
    folder, wanted = str(tmp_path / "out"), logps(trained.model)

    namespace = {}
    code = loading_code(trained.model, folder, loading_options(trained.args))
    exec(str(code), namespace)
    torch.testing.assert_close(logps(namespace["model"]), wanted, **CLOSE)
    by_auto = peft.AutoPeftModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(logps(by_auto), wanted, **CLOSE)

    again = trainer(tmp_path / "again", tiny_rows(8), peft_config=kind.make(), **options)
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    torch.testing.assert_close(logps(again.model), wanted, rtol=0, atol=0)

    for model, place in ((namespace["model"], "loaded"), (trained.model, "trained")):
        merged = model.merge_and_unload()
        torch.testing.assert_close(logps(merged), wanted, **CLOSE)
        merged.save_pretrained(tmp_path / place)
        torch.testing.assert_close(logps(load(tmp_path / place)), wanted, **CLOSE)


@pytest.mark.parametrize("name", REFUSED)
def test_a_kind_is_refused_before_training(tmp_path, base, name):
    if name in NEEDED:
        pytest.importorskip(NEEDED[name])
    with pytest.raises(ValueError, match=KINDS[name].refused) as refused:
        trainer(tmp_path, tiny_rows(4), model=str(base), peft_config=KINDS[name].make())
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("start", ["pissa_niter_16", "corda", "lora_ga", "loftq"])
def test_a_start_that_loading_does_not_repeat_is_refused_of_a_given_model(start):
    model = peft.get_peft_model(tiny_model("llama"), Kind().make())
    model.peft_config["default"].init_lora_weights = start
    with pytest.raises(ValueError, match=rf"starts by init_lora_weights='{start}'.*Use 'pissa'"):
        check_kinds(model)


def test_what_mixes_other_adapters_is_refused():
    model = peft.get_peft_model(tiny_model("llama"), Kind().make())
    model.peft_config["default"].arrow_config = {"top_k": 2}
    with pytest.raises(ValueError, match=r"saved elsewhere \(arrow_config\)"):
        check_kinds(model)


def test_an_unknown_kind_that_changes_the_base_model_is_refused():
    model = tiny_model("llama")
    with torch.no_grad():  # as the bits of 4-bit weights look that are stored as floats
        model.model.layers[0].self_attn.v_proj.weight.fill_(torch.nan)
    before = weight_samples(model)
    wrapped = peft.get_peft_model(model, Kind().make())
    check_base_unchanged(wrapped, before)
    with torch.no_grad():
        model.model.layers[1].self_attn.v_proj.base_layer.weight.mul_(0.9)
    with pytest.raises(ValueError, match=r"changes 1 weights .* model.layers.1.self_attn.v_proj"):
        check_base_unchanged(wrapped, before)


def test_every_type_of_peft_is_in_the_table():
    known = {getattr(peft, kind.config, None) for kind in KINDS.values()} | {peft.XLoraConfig}
    missing = [name for name, kind in PEFT_TYPE_TO_CONFIG_MAPPING.items() if kind not in known]
    assert not missing
    assert (len(TRAINED), len(REFUSED)) == (72, 23)


def test_the_page_has_a_line_for_each_kind():
    page = (ROOT / "docs" / "adapters.md").read_text(encoding="utf-8")
    lines = dict(re.findall(r"^\| (.+?) \| (.+?) \|", page, flags=re.MULTILINE))
    assert set(KINDS) <= set(lines), set(KINDS) - set(lines)
    for name, kind in KINDS.items():
        assert lines[name].startswith("refused" if kind.refused else "exact"), name
