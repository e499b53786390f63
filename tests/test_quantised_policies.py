"""Policies whose base is quantised, each kind that loads here, with LoRA on top.

What a quantised policy predicts is what its own forward pass computes; training changes its adapter
and nothing else; what is saved and loaded again predicts the same.
"""

import gc
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from prefopt.engine import build_layout
from prefopt.engine.quantised import is_quantised
from prefopt.reference.fingerprint import fingerprint_of, weights_digest
from prefopt.training.loading import load_model
from prefopt.training.model import loading_options
from prefopt.training.saved import loading_code
from tests.engine.companions import uneven_examples
from tests.models import tiny_rows
from tests.quantisers import KINDS, kinds, load, save_base
from tests.runs import steps, trainer

peft = pytest.importorskip("peft")

# Packages that quantise warn of each other, and of what they will rename.
pytestmark = pytest.mark.filterwarnings("ignore")


def lora(**options: Any) -> Any:
    fields = {"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    return peft.LoraConfig(**(fields | options))


def check_log_probs(run: Any) -> None:
    """Check that texts laid out together have the log-probs that the plain forward gives each."""
    examples = uneven_examples()
    batch = run.scorer.to_device(build_layout(examples, run.scorer.layout))
    with run.scorer.evaluating(), torch.no_grad():
        ours = run.scorer.score(batch).per_token_logps
        plain = [
            run.scorer.plain_logps(torch.from_numpy(text), len(example.prompt_ids))[
                len(example.prompt_ids) - 1 :
            ]
            for example in examples
            for text in example.texts()
        ]
    torch.testing.assert_close(ours, torch.cat(plain), rtol=0, atol=2e-5)


CASES = [
    pytest.param(kind.values[0], layout, reference, marks=[*kind.marks, *slow])
    for kind in kinds("hqq")
    for layout, reference, slow in (
        ("auto", "cached", ()),
        ("padded", "live", [pytest.mark.slow]),
        ("auto", "live", [pytest.mark.slow]),
        ("padded", "cached", [pytest.mark.slow]),
    )
]


@pytest.mark.parametrize(("kind", "layout", "reference"), CASES)
def test_the_first_loss_is_ln_2_and_training_changes_the_adapter_alone(
    tmp_path, kind, layout, reference
):
    model = load(save_base(tmp_path / "base"), kind)
    rows = {"eval_dataset": tiny_rows(3, seed=2), "peft_config": lora(), "max_steps": 4}
    options = {"layout": layout, "reference": reference}
    run = trainer(tmp_path / "out", tiny_rows(8), model=model, **rows, **options)
    assert run.scorer.layout == ("padded" if layout == "padded" else "shared_prefix")
    check_log_probs(run)
    before = weights_digest(run.model, adapter_off=True)
    first = run.evaluate()
    assert first["eval_loss"] == pytest.approx(math.log(2), abs=1e-5)
    run.train()
    losses = [step["loss"] for step in steps(run)]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5)
    assert losses[-1] < losses[0] - 0.1
    assert weights_digest(run.model, adapter_off=True) == before
    assert run.evaluate()["eval_logps/chosen"] != first["eval_logps/chosen"]


def logps(model: Any) -> torch.Tensor:
    """Return log-probs of a text in the mode of training, in which 8-bit layers are exact."""
    with torch.no_grad():
        return model.train()(input_ids=torch.arange(3, 14)[None]).logits.log_softmax(-1)


@pytest.mark.parametrize("kind", kinds(quick=("torchao int8",)))
def test_what_was_saved_is_loaded_by_the_printed_lines_and_trained_further(tmp_path, kind):
    folder, how = save_base(tmp_path / "base"), KINDS[kind]()
    run = trainer(
        tmp_path / "out",
        tiny_rows(8),
        model=folder,
        quantization_config=how,
        peft_config=lora(),
    )
    run.train()
    run.save_model()
    printed: dict[str, Any] = {}
    exec(str(loading_code(run.model, str(tmp_path / "out"), loading_options(run.args))), printed)
    torch.testing.assert_close(logps(printed["model"]), logps(run.model), rtol=0, atol=1e-5)
    again = trainer(
        tmp_path / "more",
        tiny_rows(8),
        model=str(tmp_path / "out"),
        quantization_config=how,
        learning_rate=0.0,
    )
    torch.testing.assert_close(logps(again.model), logps(run.model), rtol=0, atol=1e-5)
    again.train()
    assert steps(again)[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_lines_do_not_pretend_to_know_how_a_model_was_quantised_by_hand(tmp_path):
    model = peft.get_peft_model(load(save_base(tmp_path / "base"), "hqq"), lora())
    assert "base = ...  # the LlamaForCausalLM that was given, quantised as it was" in str(
        loading_code(model, "out", {})
    )


@pytest.mark.slow
def test_each_kind_has_a_fingerprint_of_its_own_the_same_at_each_load(tmp_path):
    folder, found = save_base(tmp_path / "base"), {}
    for kind in (*KINDS, "hqq"):
        model = load(folder, kind)
        found[kind] = fingerprint_of(model).digest
        logps(model)  # in which bitsandbytes moves what it keeps
        assert fingerprint_of(model).digest == found[kind]
        assert fingerprint_of(load(folder, kind)).digest == found[kind]
    assert len(set(found.values())) == len(KINDS) + 1


def test_a_fingerprint_reads_every_weight_of_a_kind_that_hides_its_numbers(tmp_path):
    """Tensors made of others have no place in memory by which they could be told apart."""
    model = load(save_base(tmp_path / "base"), "torchao int8")
    before = weights_digest(model)
    weight = model.model.layers[1].mlp.up_proj.weight
    assert weight.data_ptr() == model.model.layers[0].mlp.up_proj.weight.data_ptr()
    weight.qdata[3, 4] += 1
    assert weights_digest(model) != before


@pytest.mark.parametrize("kind", kinds("hqq"))
def test_without_an_adapter_a_quantised_model_is_refused(tmp_path, kind):
    model = load(save_base(tmp_path / "base"), kind)
    with pytest.raises(ValueError, match=r"quantised.* no step of training can change them; train"):
        trainer(tmp_path / "out", tiny_rows(8), model=model)


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        (
            "Int8DynamicActivationInt8WeightConfig",
            {},
            r"torchao so that the gradient .* is wrong, the first",
        ),
        (
            "IntxWeightOnlyConfig",
            {"weight_dtype": torch.int4},
            r"cannot train through.*\(IntxWeightOnlyConfig",
        ),
    ],
    ids=["no gradient through its layers", "not by transformers"],
)
def test_kinds_that_nothing_trains_through_are_refused(tmp_path, kind, fields, said):
    kinds = pytest.importorskip("torchao.quantization")
    from transformers import TorchAoConfig

    how = TorchAoConfig(getattr(kinds, kind)(**fields))
    with pytest.raises(ValueError, match=said):
        trainer(
            tmp_path / "out",
            tiny_rows(8),
            model=save_base(tmp_path / "base"),
            quantization_config=how,
            peft_config=lora(),
        )


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_head_may_be_tied(tmp_path, kind):
    model = load(save_base(tmp_path / "base", tie_word_embeddings=True), kind)
    if kind.endswith("with head"):  # which bitsandbytes makes of the embeddings, and cannot read
        with pytest.raises(ValueError, match="cannot be scored: its own forward pass of a text"):
            trainer(tmp_path / "out", tiny_rows(8), model=model, peft_config=lora())
        return
    run = trainer(tmp_path / "out", tiny_rows(8), model=model, peft_config=lora(), max_steps=1)
    check_log_probs(run)
    run.train()
    assert steps(run)[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="it tells what is mapped")
@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize("tied", [False, True])
def test_the_file_of_weights_is_left_where_they_are_quantised_from_it(tmp_path, kind, tied):
    """One view of it would keep all of it in memory, which is to hold a quarter."""
    asked = {"quantization_config": KINDS[kind]()}
    base = save_base(tmp_path / "base", tie_word_embeddings=tied)
    whole = load_model(base, {})
    assert base in Path("/proc/self/maps").read_text()
    wanted = dict(whole.named_parameters())
    del whole
    model = load_model(base, asked)
    kept = {name: it for name, it in model.named_parameters() if not is_quantised(it)}
    for name, weight in kept.items():
        assert torch.equal(weight, wanted[name])
    assert len(kept) >= 5
    wanted.clear()
    gc.collect()
    assert base not in Path("/proc/self/maps").read_text()


@pytest.mark.slow
def test_a_reference_by_name_is_quantised_like_the_policy(tmp_path):
    folder = save_base(tmp_path / "base")
    how = KINDS["nf4"]()
    run = trainer(
        tmp_path / "out",
        tiny_rows(8),
        model=folder,
        ref_model=folder,
        quantization_config=how,
        peft_config=lora(),
        max_steps=1,
    )
    run.train()
    assert steps(run)[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
