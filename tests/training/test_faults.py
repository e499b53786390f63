"""Steps whose loss or gradient is not finite: a table of what must not spoil a run."""

import json
import math
from itertools import pairwise

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback

from prefopt.training.checkpoints import problem_of
from prefopt.training.weights import NonFiniteError
from tests.models import tiny_rows
from tests.runs import steps, trainer

SAVING = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1, "max_steps": 4}
LORA = LoraConfig(task_type="CAUSAL_LM", r=4)
BAD = 11  # the number of the row that is made to give NaN


def flat(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def checkpoints(folder):
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def report(folder, step, rank=0):
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    text = (folder / f"non_finite_step{step}_process{rank}.json").read_text()
    return json.loads(text, parse_constant=refuse)


class At(TrainerCallback):
    """Does something to the model behind a step, or before its update."""

    def __init__(self, step, do, event="on_step_end"):
        self.step, self.do = step, do
        setattr(self, event, self._act)

    def _act(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            self.do(model)


@torch.no_grad()
def spoil_one_number(model):
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    trained[-1].view(-1)[0] = float("nan")


@torch.no_grad()
def spoil_a_frozen_number(model):
    model.get_base_model().model.norm.weight[3] = float("inf")


def spoil_reference(trained, value=float("nan")):
    """Have the reference give a value that is not finite for one row of the data."""
    row = next(row for row in trained.train_dataset if row["prefopt_row"] == BAD)
    references, asked = trained.references, trained.references.logps

    def logps(texts, *args):
        found = asked(texts, *args)
        hit = [e.completion_ids[0].tolist() == row["completion_ids"][0] for e in texts.examples]
        if any(hit):
            changed = found.logps.clone()
            changed[2 * hit.index(True)] = value
            found = found._replace(logps=changed)
        return found

    references.logps = logps


def made(folder, adapter=False, **options):
    options = SAVING | options
    rows = options.pop("rows", None) or tiny_rows(16)
    return trainer(folder, rows, peft_config=LORA if adapter else None, **options)


# The default: stop --------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_weight_spoilt_before_a_save_is_not_saved(tmp_path, adapter, accumulated):
    run = made(tmp_path, adapter, gradient_accumulation_steps=accumulated)
    run.add_callback(At(2, spoil_one_number))
    with pytest.raises(NonFiniteError, match="the model, of which no checkpoint is saved, holds"):
        run.train()
    assert checkpoints(tmp_path) == ["checkpoint-1"]
    assert problem_of(tmp_path / "checkpoint-1") is None


@pytest.mark.parametrize(
    ("adapter", "spoil"), [(False, spoil_one_number), (True, spoil_a_frozen_number)]
)
def test_a_weight_spoilt_in_between_stops_the_next_step(tmp_path, adapter, spoil):
    run = made(tmp_path, adapter, save_steps=2, max_steps=6, non_finite_steps=5)
    run.add_callback(At(3, spoil))
    with pytest.raises(NonFiniteError, match=r"step 4: the loss is nan .*holds NaN or infinite"):
        run.train()  # there is nothing to be gained from leaving steps out
    assert checkpoints(tmp_path) == ["checkpoint-2"]


def test_an_infinite_rate_stops_before_anything_is_saved(tmp_path):
    run = made(tmp_path, optim="sgd", learning_rate=3e38, max_grad_norm=0, save_steps=4)
    with pytest.raises(NonFiniteError, match="step 2: the loss is"):
        run.train()
    assert checkpoints(tmp_path) == []


def test_a_rate_that_spoils_the_last_step_leaves_nothing(tmp_path):
    run = made(tmp_path, max_steps=1, save_strategy="no", learning_rate=3e38, weight_decay=0.1)
    with pytest.raises(NonFiniteError, match=r"the trained model holds NaN .* learning rate"):
        run.train()
    with pytest.raises(NonFiniteError, match="the model, which is not saved, holds"):
        run.save_model(str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_a_loss_that_is_not_finite_stops_before_its_step(tmp_path, value, max_grad_norm):
    run = made(tmp_path, max_grad_norm=max_grad_norm, loss_type="ipo", max_steps=8)
    spoil_reference(run, value)
    with pytest.raises(NonFiniteError, match=f"rows {BAD};") as error:
        run.train()
    step = run.state.global_step + 1
    assert f"step {step}: the loss is {value * value:g}" in str(error.value)
    assert "non_finite_steps=N" in str(error.value)
    # The weights are those of the step before, as its checkpoint has them.
    assert checkpoints(tmp_path) == ([f"checkpoint-{step - 1}"] if step > 1 else [])
    assert flat(run.model).isfinite().all()
    found = report(tmp_path, step)
    (bad,) = [example for example in found["examples"] if example["row"] == BAD]
    assert bad["ref_logps"][0] == str(value)
    assert isinstance(bad["ref_logps"][1], float)
    assert (found["step"], found["what"], found["process"]) == (step, "loss", 0)
    assert len(found["losses"][0]["values"]) == len(found["examples"]) == 4
    assert bad["completions"][0]


def test_the_last_good_checkpoint_is_that_of_the_step_before(tmp_path):
    run = made(tmp_path / "bad", max_steps=8)
    spoil_reference(run)
    with pytest.raises(NonFiniteError):
        run.train()
    step = run.state.global_step
    assert 0 < step < 4
    whole = made(tmp_path / "whole", max_steps=step)
    whole.train()
    assert torch.equal(flat(run.model), flat(whole.model))
    resumed = made(tmp_path / "bad", max_steps=8)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 8


def test_a_gradient_that_is_not_finite_stops_before_its_step(tmp_path):
    run = made(tmp_path)

    def spoil(grad):
        return grad * float("inf")

    run.add_callback(
        At(1, lambda model: model.lm_head.weight.register_hook(spoil) and None, "on_step_end")
    )
    with pytest.raises(NonFiniteError, match=r"step 2: the gradient norm is (nan|inf) .*its rows"):
        run.train()
    assert checkpoints(tmp_path) == ["checkpoint-1"]
    assert flat(run.model).isfinite().all()
    assert report(tmp_path, 2)["grad_norm"] in ("nan", "inf")


def test_the_best_model_is_not_lost(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}
    run = made(tmp_path, eval_dataset=tiny_rows(4, seed=1), **options)
    run.add_callback(At(3, spoil_one_number))
    with pytest.raises(NonFiniteError):
        run.train()
    assert checkpoints(tmp_path)
    assert all(problem_of(path) is None for path in tmp_path.glob("checkpoint-*"))


def test_rows_are_numbered_as_the_data_were_given(tmp_path):
    """Also where rows were set aside, of several datasets, and of a stream."""
    empty = {"prompt": "w3 w4", "chosen": "", "rejected": ""}
    rows = [*tiny_rows(16)]
    rows[2:2] = [empty | {name: "" for name in rows[0] if name not in empty}]
    rows = Dataset.from_list(rows)
    for data, kind in (
        (rows, None),
        ([tiny_rows(3, seed=5), rows], "train[1]"),
        (rows.to_iterable_dataset(), None),
    ):
        run = made(tmp_path / str(kind), rows=data, max_steps=20, save_strategy="no")
        seen = {}

        def watch(batch, scored, outputs, seen=seen):
            for row, example in zip(batch.rows, batch.texts.examples, strict=True):
                seen[row] = example.prompt_ids.tolist()

        begin = run._safety.guard.begin

        def begin_and_watch(run=run, begin=begin, watch=watch):
            begin()
            run._statistics.watch = watch

        run._safety.guard.begin = begin_and_watch
        run.train()
        tokenizer = run.processing_class
        of_rows = {row.number: ids for row, ids in seen.items() if row.dataset == kind}
        assert 2 not in of_rows or not rows[2]["chosen"]
        assert len(of_rows) >= 16
        for number, ids in of_rows.items():
            assert tokenizer.decode(ids).split() == rows[number]["prompt"].split()


# Leaving steps out --------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize(
    ("loss", "options"),
    [
        ("dpo", {}),
        ("bco_pair + beta_dpo", {}),  # with means over training
        ("ipo", {"optim": "adamw_torch", "weight_decay": 0.1}),
    ],
)
def test_a_step_that_is_left_out_changes_nothing(tmp_path, loss, options, accumulated):
    options = options | {"loss_type": loss, "gradient_accumulation_steps": accumulated}
    options |= {"per_device_train_batch_size": 4 // accumulated, "max_steps": 4}
    options |= {"save_strategy": "no", "non_finite_steps": 1}
    run = made(tmp_path, **options)
    spoil_reference(run)
    after = []

    class Keep(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
            states = list(optimizer.state_dict()["state"].values())
            moments = torch.cat([torch.zeros(1), *(s["exp_avg"].flatten() for s in states)])
            running = [tuple(m.values()) for m in run._statistics._running.means()]
            after.append((flat(model), moments.clone(), running, run._safety.progress.tokens))

        on_step_end = on_train_begin

    run.add_callback(Keep)
    run.train()
    left_out = [all_equal(*pair) for pair in pairwise(after)]
    assert sum(left_out) == 1  # the four steps see each of the 16 rows once
    (number,) = [place for place, out in enumerate(left_out) if out]
    assert report(tmp_path, number + 1)["what"] == "loss"
    logged = steps(run)
    assert [math.isnan(entry["loss"]) for entry in logged] == left_out
    assert [entry.get("skipped_steps", 0) for entry in logged] == [
        float(place >= number) for place in range(4)
    ]
    assert all(math.isfinite(entry["rewards/margins"]) for entry in logged if "rewards" in entry)
    others = [entry["loss"] for entry in logged if math.isfinite(entry["loss"])]
    assert run.state.log_history[-1]["train_loss"] == pytest.approx(sum(others) / 3)


def all_equal(one, other):
    weights, moments, running, tokens = zip(one, other, strict=True)
    same_running = all(
        torch.equal(a, b) for x, y in zip(*running, strict=True) for a, b in zip(x, y, strict=True)
    )
    return (
        same_running and tokens[0] == tokens[1] and torch.equal(*weights) and torch.equal(*moments)
    )


def test_the_mean_loss_since_the_last_log_is_of_the_steps_taken(tmp_path):
    one = made(tmp_path / "1", non_finite_steps=1, save_strategy="no")
    four = made(tmp_path / "4", non_finite_steps=1, save_strategy="no", logging_steps=4)
    for run in (one, four):
        spoil_reference(run)
        run.train()
    losses = [entry["loss"] for entry in steps(one) if math.isfinite(entry["loss"])]
    assert len(losses) == 3
    (entry,) = steps(four)
    assert entry["loss"] == pytest.approx(sum(losses) / 3)
    margins = [e["rewards/margins"] for e in steps(one) if "rewards/margins" in e]
    assert entry["rewards/margins"] == pytest.approx(sum(margins) / 3)


def test_one_step_more_than_allowed_stops_also_after_a_resume(tmp_path):
    options = {"max_steps": 12, "non_finite_steps": 2, "save_total_limit": None}
    run = made(tmp_path, **options)
    spoil_reference(run)
    with pytest.raises(NonFiniteError, match=r"now 2"):  # an epoch has four steps
        run.train()
    assert len(list(tmp_path.glob("non_finite_*"))) == 3
    step = run.state.global_step
    assert 8 <= step < 12
    again = made(tmp_path, **options)
    spoil_reference(again)
    with pytest.raises(NonFiniteError):
        again.train(resume_from_checkpoint=True)
    assert again.state.global_step == step


def test_a_number_of_steps_below_0_is_refused(tmp_path):
    with pytest.raises(ValueError, match="non_finite_steps must be at least 0"):
        made(tmp_path, non_finite_steps=-1)


def test_gradient_scaling_may_overflow_now_and_then(tmp_path):
    """Scaled losses overflow in float16 on purpose; the scaler leaves the step out by itself."""

    class Scaler:
        scale = 2.0**16

        def is_enabled(self):
            return True

        def get_scale(self):
            return self.scale

    run = made(tmp_path)
    run.create_optimizer_and_scheduler(4)
    run.accelerator.scaler = scaler = Scaler()
    run._safety.guard.begin()
    run._safety.guard.add_loss(torch.tensor(0.5))
    run._safety.guard.grad_norm = torch.tensor(float("inf"))
    run._safety.guard.on_pre_optimizer_step(run.args, run.state, run.control)
    scaler.scale = 0.5  # it cannot be the scale
    run._safety.guard.begin()
    run._safety.guard.add_loss(torch.tensor(0.5))
    run._safety.guard.grad_norm = torch.tensor(float("inf"))
    with pytest.raises(NonFiniteError, match="step 1: the gradient norm is inf"):
        run._safety.guard.on_pre_optimizer_step(run.args, run.state, run.control)


def test_a_report_that_cannot_be_written_hides_nothing(tmp_path, monkeypatch):
    run = made(tmp_path, save_strategy="no")
    spoil_reference(run)

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full_disk)
    with pytest.raises(NonFiniteError, match=r"process0\.json cannot be written"):
        run.train()


def test_an_evaluation_that_is_not_finite_is_said_and_never_the_best(tmp_path, capfd):
    options = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}
    run = made(tmp_path, eval_dataset=tiny_rows(4, seed=1), max_steps=2, **options)
    evaluation = run.evaluation_loop

    def spoilt(*args, **kwargs):
        found = evaluation(*args, **kwargs)
        found.metrics["eval_loss"] = math.nan
        return found

    run.evaluation_loop = spoilt
    run.train()
    said = capfd.readouterr().err
    assert "step 1: eval_loss is nan" in said
    assert "no best model is loaded, for no loss was better than nothing" in said
