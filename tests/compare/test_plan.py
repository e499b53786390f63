"""The matrix: which runs there are, their names, and what each is told."""

from dataclasses import replace

import pytest
import yaml

from prefopt.compare.baselines import read_baselines
from prefopt.compare.budget import Budget, RowTokens
from prefopt.compare.methods import Method, read_methods
from prefopt.compare.plan import (
    START,
    Plan,
    Spec,
    by_content,
    in_phases,
    model_digest,
    reward_options,
)
from prefopt.compare.split import split_rows, write_split


@pytest.fixture
def make_plan(tmp_path, toy_rows, toy_start):
    """Make a plan on toy rows in a folder."""

    def make(losses="dpo, kto, sft", root="out", **more):
        methods, _ = read_methods(losses)
        options = {"max_steps": 10, **more.pop("options", {})}
        spec = Spec(toy_start, tuple(methods), (0, 5), options, {"max_prompts": 7}, **more)
        data = write_split(split_rows(toy_rows), tmp_path / root / "data")
        tokens = RowTokens(100.0, 50.0)
        return Plan(spec, tmp_path / root, data, tokens, model_digest(toy_start))

    return make


def told(run, name="train.yaml"):
    return yaml.safe_load(run.task.files[name])


def test_each_method_is_run_with_each_seed_and_the_start_is_measured(make_plan):
    plan = make_plan()
    runs = plan.runs(plan.spec.methods)
    assert [(run.method.name, run.seed) for run in runs] == [
        *[("start", 0), ("dpo", 0), ("dpo", 5)],
        *[("kto", 0), ("kto", 5), ("sft", 0), ("sft", 5)],
    ]
    assert [stage.name for stage in runs[0].task.stages] == ["evaluation"]
    assert [stage.name for stage in runs[1].task.stages] == ["train", "evaluation"]
    assert [run.budget for run in runs[1::2]] == [Budget(10, 80, 8000.0)] * 2 + [
        Budget(20, 160, 8000.0, 0.5)
    ]


def test_a_run_is_told_of_rows_model_seed_and_folder(make_plan, toy_start):
    plan = make_plan(options={"learning_rate": 1e-4})
    run = plan.run(Method("dpo", {"loss_type": "dpo", "beta": 0.2}), 5)
    options = told(run)
    folder = run.task.folder
    assert folder == plan.root / "runs" / run.task.name
    assert options["model"] == toy_start
    assert options["dataset"] == str(plan.data.train)
    assert options["eval_datasets"] == [str(plan.data.validation)]
    assert options["output_dir"] == str(folder / "model")
    assert (options["seed"], options["max_steps"], options["beta"]) == (5, 10, 0.2)
    assert (options["learning_rate"], options["save_total_limit"]) == (1e-4, 1)
    asked = told(run, "eval.yaml")
    assert asked == {
        "model": str(folder / "model"),
        "ref_model": toy_start,
        "loss_type": "dpo",
        "beta": 0.2,
        "max_prompts": 7,
        "dataset": str(plan.data.held_out),
        "output_dir": str(folder / "evaluation"),
    }


def test_names_depend_on_content_and_not_on_places(make_plan):
    names = [run.task.name for run in make_plan().runs(make_plan().spec.methods)]
    assert len(set(names)) == len(names)
    elsewhere = make_plan(root="elsewhere")
    assert [run.task.name for run in elsewhere.runs(elsewhere.spec.methods)] == names
    plan = make_plan()
    dpo = plan.spec.methods[0]
    name = plan.run(dpo, 0).task.name
    for changed in (
        replace(plan, start="other"),
        replace(plan, data=replace(plan.data, digests={"train": "other"})),
        make_plan(options={"learning_rate": 0.5}),
        make_plan(options={"max_steps": 11}),
    ):
        assert changed.run(dpo, 0).task.name != name


def test_other_ways_of_measuring_leave_training_as_it_is(make_plan):
    plan = make_plan()
    other = replace(plan, spec=replace(plan.spec, evaluation={"max_prompts": 8}))
    one, two = (its.run(plan.spec.methods[0], 0).task for its in (plan, other))
    assert (one.name, one.stages[0]) == (two.name, two.stages[0])
    assert one.stages[1].digest != two.stages[1].digest


def test_a_function_in_a_file_is_what_the_file_holds(make_plan, tmp_path):
    """Else a reward or a loss that was edited would be shown with the numbers of the old one."""
    (tmp_path / "moved").mkdir()
    file, moved = tmp_path / "own.py", tmp_path / "moved" / "own.py"
    for place in (file, moved):
        place.write_text("def mine(prompts, completions): return [0.0] * len(prompts)\n")

    def digests(place):
        plan = make_plan("sft")
        asked = {"reward": f"{place}:mine", "judge": f"function:{place}:mine"}
        plan = replace(plan, spec=replace(plan.spec, evaluation=asked))
        run = plan.run(Method("sft", {"loss_type": "sft"}), 0)
        return [stage.digest for stage in run.task.stages]

    train, evaluation = digests(file)
    assert digests(moved) == [train, evaluation]
    file.write_text("def mine(prompts, completions): return [1.0] * len(prompts)\n")
    assert digests(file)[0] == train
    assert digests(file)[1] != evaluation
    assert by_content({"loss_type": f"{file}:mine + 0.1*sft"}) != by_content(
        {"loss_type": f"{moved}:mine + 0.1*sft"}
    )
    assert by_content({"loss_type": f"{file}:mine"}) != by_content({"loss_type": f"{file}:other"})


def test_a_judging_model_is_what_its_files_hold(tmp_path):
    for name, text in (("one", "{}"), ("same", "{}"), ("other", "{ }")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    one, same, other = (
        by_content({"judge": f"classifier:{tmp_path / name}#good"})
        for name in ("one", "same", "other")
    )
    assert one == same != other
    assert one != by_content({"judge": f"classifier:{tmp_path / 'one'}"})


def test_measuring_on_other_rows_keeps_the_folder(make_plan):
    plan = make_plan()
    dpo = plan.spec.methods[0]
    trial = plan.run(dpo, 0, "validation", plan.data.validation)
    assert trial.task.name == plan.run(dpo, 0).task.name
    assert told(trial, "validation.yaml")["dataset"] == str(plan.data.validation)
    assert [stage.name for stage in trial.task.stages] == ["train", "validation"]


def test_checkpoints_are_kept_where_the_user_says_how_to_save(make_plan):
    plan, asked = make_plan(), make_plan(options={"save_steps": 2})
    assert not plan.run(plan.spec.methods[0], 0).task.stages[0].keeps_checkpoints
    assert asked.run(plan.spec.methods[0], 0).task.stages[0].keeps_checkpoints


def test_reference_log_probs_are_computed_once_for_runs_that_share_them(make_plan):
    plan = make_plan("dpo, ipo, orpo")
    (task,) = plan.references(plan.spec.methods)
    options = told(type("Run", (), {"task": task}), "fill.yaml")
    assert options["loss_type"] == "dpo"
    # The held-out rows are scored where the start is measured, but for methods unlike it.
    assert options["eval_datasets"] == [str(plan.data.validation)]
    (with_kl,) = plan.references(read_methods("dpo, kto")[0])
    assert "loss_type: kto" in with_kl.files["fill.yaml"]
    long = Method("long", {"loss_type": "dpo", "max_length": 2048})
    _, of_long = plan.references([*plan.spec.methods, long])
    assert str(plan.data.held_out) in of_long.files["fill.yaml"]
    assert plan.references(read_methods("orpo, sft")[0]) == []
    assert plan.references([Method("moves", {"loss_type": "dpo", "sync_ref_model": True})]) == []


def test_a_model_is_what_its_files_hold(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "notes.md").write_text(name)
    same = [model_digest(str(tmp_path / name)) for name in ("a", "b")]
    assert same[0] == same[1]
    (tmp_path / "b" / "config.json").write_text("{ }")
    assert model_digest(str(tmp_path / "b")) != same[0]
    assert model_digest("hub/id") != model_digest("hub/id", "branch")


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("dpo + 0.2*sft", {"loss_type": "dpo + 0.2*sft"}),
        ("kto", {"loss_type": "kto"}),
        ("sft", {}),
    ],
)
def test_the_reward_that_is_measured_is_that_of_the_loss(loss, expected):
    assert reward_options({"loss_type": loss, "learning_rate": 1.0}) == expected


@pytest.fixture
def plan_with(make_plan):
    """Make a plan with baselines among its methods."""

    def make(baselines, **more):
        plan = make_plan("dpo", **more)
        evaluation = {"reward": "r.py:reward", "judge": "logprob:M", "max_new_tokens": 9}
        beside, _ = read_baselines(baselines, plan.spec.options, evaluation)
        methods = (*plan.spec.methods, *beside)
        return replace(plan, spec=replace(plan.spec, methods=methods, evaluation=evaluation))

    return make


def test_a_baseline_of_trl_is_told_what_it_understands(plan_with):
    plan = plan_with(
        [{"kind": "rl", "beta": 0.05}], options={"beta": 0.5, "per_device_train_batch_size": 4}
    )
    runs = plan.runs(plan.spec.methods)
    rl, model = (
        next(run for run in runs if (run.method.kind, run.seed) == (kind, 5))
        for kind in ("rl", "reward_model")
    )
    options = told(rl)
    assert options["reward_model"] == str(model.task.folder / "model")
    assert (options["beta"], options["max_completion_length"], options["seed"]) == (0.05, 9, 5)
    assert (options["eval_strategy"], told(model)["eval_strategy"]) == ("no", "steps")
    assert "beta" not in told(model)
    assert "diagnostics" not in told(model)
    words = [stage.command[:2] for stage in (*rl.task.stages, *model.task.stages)]
    package = "prefopt.compare.baselines"
    assert words == [
        (package, "rl"),
        ("prefopt", "eval"),
        (package, "reward_model"),
        (package, "measure_reward_model"),
    ]
    assert (rl.needs, model.needs) == (model.task.name, None)
    _, measured, last = in_phases(runs)
    assert len(measured) == 4  # all but the start, and what needs another run
    assert [task.name for task in last] == [run.task.name for run in runs if run.needs]
    assert [run.method.kind for run in runs if run.needs] == ["rl", "rl"]


def test_runs_are_trained_beside_the_start_and_measured_after_it(plan_with):
    plan = plan_with(["sft", {"kind": "best_of_n", "n": 2}])
    start, *others = (run.task for run in plan.runs(plan.spec.methods))
    first, then = in_phases(plan.runs(plan.spec.methods))
    trained = [task for task in others if task.stages[0].name == "train"]
    assert first[0] == start
    assert [task.folder for task in first[1:]] == [task.folder for task in trained]
    assert {stage.name for task in first[1:] for stage in task.stages} == {"train"}
    assert then == others
    assert len(then) == len(trained) + 1  # best-of-n draws from the start


def test_baselines_see_as_many_tokens_as_the_losses(plan_with):
    """A pair has 100 tokens and its preferred half 50; 10 steps of 8 pairs are 8000 tokens."""
    plan = plan_with([{"kind": "rl", "per_device_train_batch_size": 16}, "sft"])
    found = {run.method.kind: run.budget for run in plan.runs(plan.spec.methods)}
    assert found == {
        "start": None,
        "loss": Budget(10, 80, 8000.0),
        "sft": Budget(20, 160, 8000.0, 0.5),
        "reward_model": Budget(10, 80, 8000.0),
        "rl": Budget(10, 160, 8000.0),
    }


def test_another_reward_model_makes_another_run(plan_with):
    one, other = (
        plan_with([{"kind": "reward_model", "learning_rate": rate}, "rl"]) for rate in (0.1, 0.2)
    )
    names = [plan.run(plan.spec.methods[-1], 0).task.name for plan in (one, other)]
    assert names[0] != names[1]


def test_best_of_n_draws_from_the_start_and_picks(plan_with, toy_start):
    plan = plan_with([{"kind": "best_of_n", "n": 6}])
    (run,) = (run for run in plan.runs(plan.spec.methods) if run.method.kind == "best_of_n")
    assert run.budget is None
    drawn, asked = told(run, "samples.yaml"), told(run, "eval.yaml")
    assert (drawn["model"], drawn["samples_per_prompt"]) == (toy_start, 7)
    assert (drawn["temperatures"], drawn["reward"]) == ([1.0], "r.py:reward")
    assert "judge" not in drawn
    assert drawn["output_dir"] == str(run.task.folder / "samples")
    assert (asked["samples"], asked["n"], asked["by"]) == ("samples", 6, "reward")
    assert [stage.output for stage in run.task.stages] == ["samples", "evaluation"]


def test_the_start_is_not_trained(make_plan):
    assert START.loss == "start"
    assert make_plan().runs([])[0].budget is None
