"""Losses that compare whole distributions, through the trainer: a live reference, chosen for them.

Full logits are computed here by the model's own forward, the loss from its equation.
"""

import math

import numpy as np
import pytest
import torch

from prefopt.engine.layout import Example
from prefopt.training.launch import Launch
from tests.engine.test_divergences import plain_divergences
from tests.engine.trees import plain_logps
from tests.models import tiny_model, tiny_rows
from tests.runs import steps, trainer

ROWS = tiny_rows(8)


def examples(rows):
    """Each row as its prompt, chosen and rejected, both ended by EOS (2)."""

    def ids(text):
        return np.array([int(word[1:]) for word in text.split()])

    return [
        Example(
            ids(row["prompt"]), [np.append(ids(row[side]), 2) for side in ("chosen", "rejected")]
        )
        for row in rows
    ]


def plain_tdpo(model, reference, beta=0.1, alpha=0.5):
    """The mean over ROWS of -log sigma(beta (rho_c - rho_r - alpha (D_r - D_c)))."""
    model.eval()
    with torch.no_grad():
        log_ratios = plain_logps(model, examples(ROWS)) - plain_logps(reference, examples(ROWS))
        apart = plain_divergences(model, reference, examples(ROWS))
    log_ratios, apart = log_ratios.view(-1, 2), apart.view(-1, 2)
    drift = alpha * (apart[:, 1] - apart[:, 0])
    margins = beta * (log_ratios[:, 0] - log_ratios[:, 1] - drift)
    return float(-torch.nn.functional.logsigmoid(margins).mean())


def run(folder, count=1, **options):
    options = {"loss_type": "tdpo", "per_device_train_batch_size": 8} | options
    return trainer(folder, ROWS, max_steps=count, eval_dataset=ROWS, **options)


def lora(*targets):
    return pytest.importorskip("peft").LoraConfig(target_modules=list(targets), r=2)


@pytest.mark.parametrize("targets", [(), ("q_proj",), ("q_proj", "lm_head")])
@pytest.mark.parametrize("layout", ["shared_prefix", "padded"])
def test_the_loss_begins_at_ln_2_and_is_that_of_full_logits_after_a_step(tmp_path, targets, layout):
    adapter = {"peft_config": lora(*targets), "learning_rate": 0.1} if targets else {}
    once = run(tmp_path, 1, layout=layout, **adapter)
    once.train()
    assert steps(once)[0]["loss"] == pytest.approx(math.log(2), rel=1e-6)
    wanted = plain_tdpo(once.model, tiny_model("llama"))
    assert wanted < 0.67
    assert once.evaluate()["eval_loss"] == pytest.approx(wanted, rel=1e-5)
    twice = run(tmp_path, 2, layout=layout, **adapter)
    twice.train()
    assert steps(twice)[1]["loss"] == pytest.approx(wanted, rel=1e-5)


def test_a_step_is_that_of_full_logits(tmp_path):
    """One step of plain gradient descent, against autograd through full logits."""
    trained = run(tmp_path, optim="sgd", learning_rate=0.5, ref_model=tiny_model("llama", seed=3))
    trained.train()
    model, reference = tiny_model("llama"), tiny_model("llama", seed=3)
    logps, ref_logps = (plain_logps(one, examples(ROWS)).view(-1, 2) for one in (model, reference))
    apart = plain_divergences(model, reference, examples(ROWS)).view(-1, 2)
    log_ratios = logps - ref_logps.detach()
    drift = 0.5 * (apart[:, 1] - apart[:, 0].detach())
    margins = 0.1 * (log_ratios[:, 0] - log_ratios[:, 1] - drift)
    loss = -torch.nn.functional.logsigmoid(margins).mean()
    assert steps(trained)[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    assert steps(trained)[0]["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    for (name, mine), wanted in zip(
        trained.model.named_parameters(), model.parameters(), strict=True
    ):
        stepped = wanted.detach() - 0.5 * wanted.grad
        torch.testing.assert_close(mine.detach(), stepped, rtol=1e-5, atol=1e-6, msg=name)


def test_accumulation_and_parts_change_nothing(tmp_path):
    whole = run(tmp_path, 3)
    whole.train()
    for options in (
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
        {"max_tokens_per_batch": 40},
    ):
        cut = run(tmp_path, 3, **options)
        cut.train()
        wanted = [step["loss"] for step in steps(whole)]
        assert [step["loss"] for step in steps(cut)] == pytest.approx(wanted, rel=1e-4)


def test_a_sum_with_other_losses_and_a_reference_that_moves(tmp_path):
    moving = {"sync_ref_model": True, "ref_model_mixup_alpha": 1.0, "ref_model_sync_steps": 1}
    trained = run(tmp_path, 3, loss_type="tdpo + 0*sft", **moving)
    trained.train()
    # The reference has become the policy after every step.
    assert [step["loss"] for step in steps(trained)] == pytest.approx([math.log(2)] * 3, rel=1e-5)


def test_auto_is_live_for_it_and_says_so(tmp_path, capsys):
    trained = run(tmp_path)
    said = capsys.readouterr().err
    assert "the reference is live, as the loss 'tdpo' compares all that it predicts" in said
    assert "reference: the initial policy, computed at each step" in said
    assert trained.references.store is None


@pytest.mark.parametrize("options", [{"reference": "cached"}, {"precompute_ref_log_probs": True}])
def test_a_cached_reference_is_an_error(tmp_path, options):
    with pytest.raises(ValueError, match=r"'tdpo' compares .* use reference='live'"):
        run(tmp_path, **options)


def test_sharded_training_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(Launch, "is_sharded", True)
    with pytest.raises(ValueError, match="'tdpo' needs the reference's output layer whole"):
        run(tmp_path)
