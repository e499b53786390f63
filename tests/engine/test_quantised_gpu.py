"""On a GPU: 4-bit and 8-bit policies, whose kernels there are others than on a CPU."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from prefopt.reference.fingerprint import weights_digest
from prefopt.training.merging import merge
from tests.models import tiny_model, tiny_rows
from tests.quantisers import KINDS
from tests.runs import steps, trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # bitsandbytes warns of types that it casts to.
    pytest.mark.filterwarnings("ignore"),
]

peft = pytest.importorskip("peft")

LN_2 = math.log(2)
KINDS_THERE = ["nf4", "nf4, double", "fp4", "8 bits", "torchao int8"]


def load(folder, kind):
    return AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=KINDS[kind](), dtype=torch.float32, device_map={"": 0}
    )


@pytest.fixture
def base(tmp_path):
    # Of a width for which bitsandbytes has kernels of its own.
    tiny_model("llama", hidden_size=128, intermediate_size=256).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def policy(folder, kind):
    torch.manual_seed(0)
    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    return peft.get_peft_model(load(folder, kind), lora)


@pytest.mark.parametrize(("layout", "reference"), [("auto", "cached"), ("padded", "live")])
@pytest.mark.parametrize("kind", KINDS_THERE)
def test_on_a_gpu_the_first_loss_is_ln_2_and_the_adapter_alone_learns(
    tmp_path, base, kind, layout, reference
):
    run = trainer(
        tmp_path / "out",
        tiny_rows(8),
        model=policy(base, kind),
        eval_dataset=tiny_rows(3, seed=2),
        layout=layout,
        reference=reference,
        use_cpu=False,
        bf16=False,
        max_steps=4,
        max_grad_norm=10.0,
    )
    assert run.scorer.to_device(torch.zeros(1)).is_cuda
    before = weights_digest(run.model, adapter_off=True)
    first = run.evaluate()
    assert first["eval_loss"] == pytest.approx(LN_2, abs=1e-5)
    run.train()
    losses = [step["loss"] for step in steps(run)]
    assert losses[0] == pytest.approx(LN_2, abs=1e-5)
    assert losses[-1] < losses[0] - 0.1
    assert weights_digest(run.model, adapter_off=True) == before


@pytest.mark.parametrize("kind", KINDS_THERE)
def test_on_a_gpu_training_and_evaluation_compute_alike(tmp_path, base, kind):
    """And a text alone as in its company, however 8-bit layers round what they are given."""
    run = trainer(
        tmp_path / "out",
        tiny_rows(8),
        model=policy(base, kind),
        eval_dataset=tiny_rows(8),
        use_cpu=False,
        bf16=False,
        learning_rate=0.0,
        max_steps=2,
        per_device_train_batch_size=8,
        per_device_eval_batch_size=3,
    )
    run.train()
    trained, evaluated = steps(run)[0], run.evaluate()
    assert trained["logps/chosen"] == pytest.approx(evaluated["eval_logps/chosen"], abs=1e-4)
    assert trained["loss"] == pytest.approx(LN_2, abs=1e-5)
    assert evaluated["eval_loss"] == pytest.approx(LN_2, abs=1e-5)


@pytest.mark.parametrize("kind", ["nf4", "fp4", "torchao int8"])
def test_on_a_gpu_a_merged_policy_predicts_the_same(base, kind):
    model = policy(base, kind).eval()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    ids = torch.arange(3, 14, device="cuda")[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits.log_softmax(-1)
        after = merge(model)(input_ids=ids).logits.log_softmax(-1)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-4)


def test_on_a_gpu_the_fingerprint_is_the_same_at_each_load_and_that_of_a_cpu(base):
    there = load(base, "nf4")
    assert weights_digest(there) == weights_digest(load(base, "nf4"))
