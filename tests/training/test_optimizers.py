"""What a schedule-free optimiser has found is evaluated and saved, not the point it trains at."""

import pytest
import torch
from safetensors.torch import load_file

from prefopt.training.optimizers import to_result, to_training_point
from tests.models import tiny_rows
from tests.runs import steps, trainer

pytest.importorskip("schedulefree")


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def trained(folder, **options):
    made = trainer(
        folder,
        tiny_rows(8),
        eval_dataset=tiny_rows(5, seed=1),
        **{"optim": "schedule_free_adamw", "max_steps": 4, "warmup_steps": 0} | options,
    )
    made.train()
    return made


def points(made):
    """Return the weights where the optimiser trains, and those that it has found."""
    to_training_point(made.optimizer)
    training = flat(made.model)
    to_result(made.optimizer)
    return training, flat(made.model)


def test_the_result_is_left_behind_and_saved_and_evaluated(tmp_path):
    made = trained(tmp_path, save_strategy="steps", save_steps=2)
    left = flat(made.model)
    training, found = points(made)
    torch.testing.assert_close(left, found, rtol=0, atol=1e-7)
    assert (training - found).abs().max() > 1e-3
    saved = load_file(tmp_path / "checkpoint-4/model.safetensors")
    for name, weight in made.model.named_parameters():
        if name in saved:
            torch.testing.assert_close(saved[name], weight.detach(), rtol=0, atol=1e-7)
    wanted = made.evaluate()["eval_loss"]
    to_training_point(made.optimizer)
    assert made.evaluate()["eval_loss"] == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("loss", ["dpo", "aot", "kto"])
def test_evaluating_and_saving_change_nothing_of_the_training(tmp_path, loss):
    often = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    # What is scored ahead of a step is scored where the step is.
    options = {"loss_type": loss, "gradient_accumulation_steps": 2}
    runs = [trained(tmp_path / str(n), **options, **(often if n else {})) for n in (0, 1)]
    for mine, wanted in zip(steps(runs[1]), steps(runs[0]), strict=True):
        assert mine["loss"] == pytest.approx(wanted["loss"], abs=1e-5)
    torch.testing.assert_close(flat(runs[1].model), flat(runs[0].model), rtol=0, atol=1e-4)


def test_a_run_goes_on_as_if_it_had_not_been_cut(tmp_path):
    often = {"save_strategy": "steps", "save_steps": 2}
    whole = trained(tmp_path / "whole", **often)
    cut = trainer(tmp_path / "cut", tiny_rows(8), optim="schedule_free_adamw", max_steps=4, **often)
    cut.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-2"))
    torch.testing.assert_close(flat(cut.model), flat(whole.model), rtol=0, atol=1e-6)


def test_the_best_model_is_loaded_as_it_was_saved(tmp_path):
    made = trained(
        tmp_path,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        learning_rate=3.0,
    )
    saved = load_file(f"{made.state.best_model_checkpoint}/model.safetensors")
    for name, weight in made.model.named_parameters():
        if name in saved:
            assert torch.equal(saved[name], weight.detach())


def test_a_reference_follows_what_was_found(tmp_path):
    made = trained(
        tmp_path,
        loss_type="dpo",
        sync_ref_model=True,
        ref_model_sync_steps=4,
        ref_model_mixup_alpha=1.0,
    )
    weights = made._reference.moving.weights()
    for name, weight in made.model.named_parameters():
        torch.testing.assert_close(weights[name], weight.detach(), rtol=0, atol=1e-7)


def test_other_optimisers_are_told_nothing():
    for optimizer in (None, torch.optim.SGD([torch.zeros(1, requires_grad=True)])):
        to_result(optimizer)
        to_training_point(optimizer)
