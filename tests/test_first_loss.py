"""The first loss: while the policy is its reference, every margin is 0 and every loss ln 2.

With a learning rate of 0 that holds at each step, and in evaluation, whatever the model, its
adapters, the layout, the company in a batch, and where reference log-probs come from.
"""

import math
import random
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, concatenate_datasets
from transformers import AutoModelForCausalLM

from prefopt.engine import Scorer
from prefopt.engine.guard import is_8bit
from prefopt.engine.probe_examples import probe_examples
from tests.engine.companions import COMPANIONS, companion, uneven_examples
from tests.models import HYBRID, RECURRENT, tiny_model, tiny_rows
from tests.runs import steps, trainer

peft = pytest.importorskip("peft")

LN_2 = math.log(2)
TARGETS = ["q_proj", "v_proj"]


def lora(model: Any, **options: Any) -> Any:
    return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=TARGETS, **options))


def new_over_frozen() -> Any:
    """A trained adapter, frozen and active, under a new one that is to be trained."""
    model = peft.get_peft_model(
        tiny_model("llama"),
        peft.LoraConfig(r=2, target_modules=TARGETS, init_lora_weights=False),
        adapter_name="sft",
    )
    model.add_adapter("new", peft.LoraConfig(r=2, target_modules=["k_proj"]))
    model.base_model.set_adapter(["sft", "new"])
    for name, weight in model.named_parameters():
        weight.requires_grad_(".new." in name)
    return model


def half_frozen() -> Any:
    model = lora(tiny_model("llama"))
    for name, weight in model.named_parameters():
        if "layers.0" in name:
            weight.requires_grad_(False)
    return model


def quantised(tmp_path: Any, bits: int) -> Any:
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    folder = tmp_path / "base"
    # Blocks of 4-bit weights are 64 wide; on a GPU bitsandbytes warns of others.
    tiny_model("llama", hidden_size=64, intermediate_size=128).save_pretrained(folder)
    options = {f"load_in_{bits}bit": True}
    if bits == 4:
        options["bnb_4bit_compute_dtype"] = torch.float32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=BitsAndBytesConfig(**options), dtype=torch.float32
        )
    assert any(is_8bit(module) for module in model.modules()) == (bits == 8)
    return lora(model)


STATEFUL = [*HYBRID, *RECURRENT]

POLICIES: dict[str, Any] = {
    "full": lambda _: tiny_model("llama"),
    "lora": lambda _: lora(tiny_model("llama")),
    "lora, dropout": lambda _: lora(tiny_model("llama"), lora_dropout=0.3),
    "lora, trained": lambda _: lora(tiny_model("llama"), init_lora_weights=False),
    "new adapter over a frozen one": lambda _: new_over_frozen(),
    "half an adapter frozen": lambda _: half_frozen(),
    "4 bits": lambda folder: quantised(folder, 4),
    "8 bits": lambda folder: quantised(folder, 8),
    "experts": lambda _: tiny_model("mixtral"),
    "paligemma": lambda _: tiny_model("paligemma"),
    **{name: lambda _, name=name: companion(name) for name in COMPANIONS},
    **{name: lambda _, name=name: tiny_model(name) for name in STATEFUL},
}


def uneven_rows() -> Dataset:
    """Return pairs of which one is far longer than the others."""
    words = " ".join(f"w{3 + i % 90}" for i in range(40))
    long = {"prompt": words, "chosen": " " + words[:60], "rejected": " " + words[30:70]}
    return concatenate_datasets([tiny_rows(5), Dataset.from_list([long]), tiny_rows(2, seed=1)])


CASES = [
    pytest.param(
        policy,
        layout,
        reference,
        marks=pytest.mark.slow
        if policy in STATEFUL or (layout == "auto") != (reference == "cached")
        else (),
    )
    for policy in POLICIES
    for layout in ("auto", "padded")
    for reference in ("cached", "live")
]


@pytest.mark.parametrize(("policy", "layout", "reference"), CASES)
def test_the_first_loss_is_ln_2(tmp_path, monkeypatch, policy, layout, reference):
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "store"))
    rows = uneven_rows()
    run = trainer(
        tmp_path / "out",
        rows,
        model=POLICIES[policy](tmp_path),
        eval_dataset=rows.select([5, 0, 3]),
        learning_rate=0.0,
        max_steps=4,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=3,
        layout=layout,
        reference=reference,
        router_aux_loss_coef=0.0,  # which is no part of a preference loss
    )
    before = {name: weight.detach().clone() for name, weight in run.model.named_parameters()}
    first = run.evaluate()
    run.train()
    found = [*steps(run), {key.removeprefix("eval_"): value for key, value in first.items()}]
    assert len(found) == 5
    for one in found:
        assert one["loss"] == pytest.approx(LN_2, abs=1e-5)
        assert abs(one["rewards/margins"]) < 1e-5
        assert abs(one["rewards/chosen"]) < 1e-5
    # In training mode, as in evaluation.
    assert run.evaluate()["eval_logps/chosen"] == first["eval_logps/chosen"]
    assert all(torch.equal(weight, before[name]) for name, weight in run.model.named_parameters())


@pytest.mark.parametrize("reference", ["cached", "live"])
@pytest.mark.parametrize("policy", [name for name in POLICIES if "froz" in name or "bits" in name])
def test_training_moves_only_what_is_trained(tmp_path, monkeypatch, policy, reference):
    """Asking the reference switches adapters off and on again, which makes peft train them all."""
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "store"))
    model = POLICIES[policy](tmp_path)
    wanted = {name: weight.requires_grad for name, weight in model.named_parameters()}
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    rows = {"eval_dataset": tiny_rows(3, seed=2), "reference": reference}
    run = trainer(tmp_path / "out", tiny_rows(8), model=model, **rows)
    run.train()
    run.evaluate()
    after = dict(run.model.named_parameters())
    assert {name: weight.requires_grad for name, weight in after.items()} == wanted
    for name, weight in after.items():
        assert wanted[name] or torch.equal(weight, before[name]), name
    assert any(not torch.equal(weight, before[name]) for name, weight in after.items())


def picture(run: Any) -> dict[str, Any]:
    """Return all of a policy that asking it might change, and the next random numbers."""
    model = run.model
    generators = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
    return {
        "requires_grad": [weight.requires_grad for weight in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "adapters": str(getattr(model, "active_adapter", "")),
        "off": [getattr(module, "_disable_adapters", None) for module in model.modules()],
        "buffers": [buffer.tolist() for buffer in model.buffers() if buffer.numel() < 1000],
        "random": str(generators),
    }


@pytest.mark.parametrize(
    "policy",
    ["full", "lora, dropout", "new adapter over a frozen one", "4 bits", "8 bits", "dynamic"],
)
def test_asking_leaves_the_policy_as_it_was(tmp_path, monkeypatch, policy):
    """Evaluating, predicting, filling the store, and probing again, in whatever mode it is."""
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "store"))
    rows = uneven_rows()
    run = trainer(tmp_path / "out", rows, model=POLICIES[policy](tmp_path), disable_dropout=False)
    for number, module in enumerate(run.model.modules()):
        module.training = number % 3 == 0
    before = picture(run)
    run.evaluate(uneven_rows().select([5, 1]))
    run.predict(tiny_rows(3, seed=5))
    run.evaluate(tiny_rows(4, seed=6).to_iterable_dataset())
    probe_examples(run.scorer, uneven_examples())
    Scorer(run.model)
    after = picture(run)
    for name, value in before.items():
        assert after[name] == value, name
