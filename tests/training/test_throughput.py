"""What training logs of its speed: tokens, times, memory, the share of what the machine can do."""

import pytest
import torch
from datasets import Dataset

from prefopt.engine.flops import Weights, Work, matmul_rate
from prefopt.reference.processes import Processes
from prefopt.training import throughput
from prefopt.training.throughput import PHASES, StepClock, Throughput, is_of_machine
from tests.models import tiny_rows
from tests.runs import steps, trainer


class FakeTime:
    """Goes on by as many seconds as it is told."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_every_moment_of_a_step_belongs_to_one_part():
    time = FakeTime()
    clock = StepClock(time)
    clock.start("data")
    time.now = 1
    clock.turn_to("forward")
    time.now = 3
    with clock.within("reference"):
        time.now = 7
    time.now = 8
    clock.turn_to("backward")
    time.now = 16
    clock.stop()
    time.now = 100  # an evaluation
    with clock.within("reference"):
        time.now = 200
    clock.turn_to("forward")
    clock.stop()
    assert clock.seconds() == {
        "data": 1,
        "reference": 4,
        "forward": 3,
        "backward": 8,
        "optimizer": 0,
    }
    assert set(clock.seconds().values()) == {0.0}


def test_on_a_gpu_the_times_are_those_between_events(monkeypatch):
    class Event:
        made = 0

        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            Event.made += 1
            self.number = Event.made

        def synchronize(self):
            pass

        def elapsed_time(self, other):
            return 1000.0 * (other.number - self.number)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    clock = StepClock.of(torch.device("cuda"))
    clock.start("data")
    clock.turn_to("forward")
    clock.stop()
    assert clock.seconds() == dict.fromkeys(PHASES, 0.0) | {"data": 1, "forward": 1}


ROWS = Dataset.from_dict(
    {"prompt": ["w3 w4"] * 8, "chosen": [" w5"] * 8, "rejected": [" w6 w7"] * 8}
)


@pytest.mark.parametrize(
    "options",
    [
        {"per_device_train_batch_size": 8},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
        {"per_device_train_batch_size": 8, "max_tokens_per_batch": 12},
        {"per_device_train_batch_size": 8, "layout": "padded"},
    ],
)
def test_tokens_per_second_times_seconds_are_the_tokens(tmp_path, options):
    run = trainer(tmp_path, ROWS, max_steps=2, **options)
    run.train()
    for entry in steps(run):
        seconds = entry["timing_s/step"]
        # Of a row: two of the prompt, and one and two that predict a token; the last ones do not.
        assert entry["tokens_per_second"] * seconds == pytest.approx(8 * 5, rel=2e-3)
        # Rows of 2 + 2 + EOS, two of each.
        assert entry["padded_tokens_per_second"] * seconds == pytest.approx(8 * 10, rel=2e-3)
        parts = sum(entry[f"timing_s/{name}"] for name in PHASES)
        assert parts == pytest.approx(seconds, rel=2e-3)
        assert min(entry[f"timing_s/{name}"] for name in PHASES) > 0
        work = Work(8 * 5, 8 * (1 + 2 + 3 + 3 + 4), 8 * 5)
        share = Weights.of(run.model).training(work) / seconds
        share /= matmul_rate(torch.float32, torch.get_num_threads())
        assert entry["matmul_share"] == pytest.approx(share, rel=5e-3)
        assert 0.05 < entry["peak_memory_gib"] < 100


def test_the_passes_of_an_evaluation_are_no_part_of_a_step(tmp_path, monkeypatch):
    run = trainer(tmp_path, tiny_rows(16), eval_dataset=tiny_rows(8), eval_strategy="steps")
    run.args.eval_steps, phases = 1, []
    monkeypatch.setattr(run._throughput.clock, "_now", lambda: 0.0)
    turn_to = run._throughput.clock.turn_to
    evaluate = run._evaluator.evaluate

    def evaluated(*args):
        phases.append(run._throughput.clock._phase)
        return evaluate(*args)

    monkeypatch.setattr(run._evaluator, "evaluate", evaluated)
    run.train()
    assert phases == [None] * 3
    assert turn_to("forward") is None


def test_what_differs_between_two_runs_is_of_the_machine(tmp_path):
    logs = []
    for _ in range(2):
        rows = {"eval_dataset": tiny_rows(4), "eval_strategy": "steps", "eval_steps": 1}
        run = trainer(tmp_path, tiny_rows(8), max_steps=1, **rows)
        run.train()
        logs.append({name: value for it in run.state.log_history for name, value in it.items()})
    assert logs[0].keys() == logs[1].keys()
    of_machine = {name for name in logs[0] if is_of_machine(name)}
    assert {name for name, value in logs[0].items() if logs[1][name] != value} <= of_machine
    assert {"tokens_per_second", "timing_s/step", "eval_runtime", "peak_memory_gib"} <= of_machine
    assert "rewards/margins" not in of_machine


def test_it_can_be_left_out(tmp_path):
    run = trainer(tmp_path, tiny_rows(8), max_steps=1, log_throughput=False)
    run.train()
    assert not {"tokens_per_second", "timing_s/step", "matmul_share"} & set(steps(run)[0])


def test_steps_that_were_not_logged_before_are_in_the_summary(tmp_path):
    run = trainer(tmp_path, tiny_rows(8), max_steps=2, logging_steps=100)
    run.train()
    assert run.state.log_history[-1]["tokens_per_second"] > 0


class FakeTrainer:
    class args:  # an attribute
        device = torch.device("cpu")


def test_of_several_processes_tokens_add_up_over_the_longest_time(monkeypatch):
    """The other process took 4 seconds, for 300 tokens."""
    monkeypatch.setattr(throughput, "peak_memory", lambda device: 2 * 2**30)
    theirs = dict.fromkeys(PHASES, 0.0) | {"forward": 1.0, "backward": 3.0}
    other = (throughput._Counts(2, 300, 500, 8_000), theirs, 1_000.0, 3 * 2**30)
    processes = Processes(0, 2, lambda mine: [mine, other])
    time = FakeTime()
    speed = Throughput(FakeTrainer(), processes)
    speed.clock, speed._rate = StepClock(time), 3_000.0
    speed._counts = throughput._Counts(2, 100, 200, 4_000)
    speed.clock.start("forward")
    time.now = 2.0
    speed.clock.stop()
    assert speed.logged() == {
        "tokens_per_second": 100.0,
        "padded_tokens_per_second": 175.0,
        "peak_memory_gib": 3.0,
        "timing_s/step": 2.0,
        "timing_s/data": 0.0,
        "timing_s/reference": 0.0,
        "timing_s/forward": 0.75,
        "timing_s/backward": 0.75,
        "timing_s/optimizer": 0.0,
        "matmul_share": 0.75,
    }
    assert speed.logged() == {}  # no step since
