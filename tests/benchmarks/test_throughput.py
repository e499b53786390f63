"""The comparison with TRL measures what it says, on a tiny model; its operations are counted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
STEPS, WARMUP, BATCH = 3, 2, 4


@pytest.fixture(scope="module")
def tokenizer(load, shared_dir):
    return load("throughput_data").make_tokenizer("tiny", shared_dir)


def run(script, folder, *options):
    command = [sys.executable, str(BENCHMARKS / script), "--out", str(folder), "--allow-dirty"]
    done = subprocess.run([*command, "--threads", "1", *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


# Operations ---------------------------------------------------------------------------------------


def test_counts_each_distinct_token_once(load):
    flops = load("throughput_flops")
    # Worked by hand: 1, 12, 123, 1234 are computed; 3, 4, 5 and 6 predicted; then 127, and 7, 8.
    example = flops.Texts([1, 2], [[3, 4, 5], [3, 6]], [[7, 8]])
    trained, scored = flops.useful_work([example])
    assert trained == flops.Work(tokens=4, keys=1 + 2 + 3 + 4, predictions=4)
    assert scored == flops.Work(tokens=1, keys=3, predictions=2)


def test_prompts_are_not_shared_between_examples_and_nothing_predicts_a_first_token(load):
    flops = load("throughput_flops")
    example = flops.Texts([], [[3, 4]])
    trained, scored = flops.useful_work([example, example])
    assert trained == flops.Work(tokens=2, keys=2, predictions=2)
    assert scored == flops.Work()


def test_operations_are_those_that_torch_counts(load):
    """On one text, so that nothing is shared or padded; torch counts all keys of all queries."""
    models, flops = load("throughput_models"), load("throughput_flops")
    model = models.make_model("tiny", 0, dtype=torch.float32, attention="eager")
    prompt, completion = [5, 6, 7, 8, 9], [10, 11, 12]
    (tokens, keys, predictions), _ = flops.useful_work([flops.Texts(prompt, [completion])])
    ids = torch.tensor([prompt + completion])
    with FlopCounterMode(display=False) as counter:
        hidden = model.base_model(ids[:, :-1]).last_hidden_state
        model.lm_head(hidden[:, len(prompt) - 1 :]).logsumexp(-1).sum().backward()
    assert (tokens, keys, predictions) == (7, 28, 3)
    shape = models.shape_of("tiny")
    work = flops.Work(tokens, tokens**2, predictions)
    wanted = flops.step_flops(shape, work, flops.Work())
    rotary = 2 * tokens * 16 // 2  # before 5.18 transformers computes angles by a matrix product
    assert counter.get_total_flops() - wanted in (0, rotary)
    causal = flops.step_flops(shape, flops.Work(tokens, keys, predictions), flops.Work())
    assert wanted - causal == 12 * 2 * 64 * (tokens**2 - keys)


@pytest.mark.parametrize(("size", "millions"), [("17m", 17.3), ("135m", 134.5)])
def test_models_have_the_size_of_their_name(load, size, millions):
    assert load("throughput_models").shape_of(size).parameters / 1e6 == pytest.approx(
        millions, 0.01
    )


# Data ---------------------------------------------------------------------------------------------


def test_mismatched_completions_are_those_of_trl_and_never_the_prompts_own(load):
    data, flops = load("throughput_data"), load("throughput_flops")
    pairs = [flops.Texts([i], [[10 + i], [20 + i]]) for i in range(4)]
    others = [text.mismatched for text in data.mismatched(pairs, 2)]
    # Batches of TRL: 10 11 20 21, then 12 13 22 23, each rotated by one.
    assert others == [[[21], [11]], [[10], [20]], [[23], [13]], [[12], [22]]]


@pytest.mark.parametrize("name", ["hh", "demo"])
def test_pairs_are_drawn_by_seed(load, shared_dir, tokenizer, name):
    data = load("throughput_data")
    first, again, other = (
        data.draw_pairs(name, shared_dir, tokenizer, 20, seed) for seed in (0, 0, 1)
    )
    assert first.rows == again.rows != other.rows
    for row, text in zip(first.rows, first.texts, strict=True):
        ids = tokenizer(row["prompt"] + row["chosen"] + tokenizer.eos_token)["input_ids"]
        assert list(text.prompt) + list(text.completions[0]) == ids


def test_the_long_set_has_long_prompts_and_short_completions(load, shared_dir, tokenizer):
    pairs = load("throughput_data").draw_pairs("long", shared_dir, tokenizer, 4, 0)
    for text in pairs.texts:
        assert len(text.prompt) == pytest.approx(2000, rel=0.02)
        assert len(text.completions[0]) == pytest.approx(200, rel=0.1)


def test_a_large_vocabulary_is_gpt2s_without_its_last_merges(load, shared_dir):
    data = load("throughput_data")
    cut, whole = (data.make_tokenizer(size, shared_dir) for size in ("135m", "llama-3.2-1b"))
    assert (len(cut), len(whole)) == (49152, 50256 + len(data.SPECIAL))
    pairs = data.draw_pairs("hh", shared_dir, cut, 20, 0)
    text = "\n".join(row["chosen"] for row in pairs.rows)
    ours, gpt2s = cut(text)["input_ids"], whole(text)["input_ids"]
    assert cut.decode(ours) == whole.decode(gpt2s) == text
    assert len(gpt2s) <= len(ours) <= 1.01 * len(gpt2s)


# Runs ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(tmp_path_factory, shared_dir):
    """Everything a short run of all three losses wrote."""
    folder = tmp_path_factory.mktemp("throughput")
    options = ("--size", "tiny", "--loss", "dpo,kto,orpo", "--steps", str(STEPS))
    shared = ("--batch", str(BATCH), "--shared", str(shared_dir), "--name", "test")
    run("throughput.py", folder, *options, *shared)
    return folder


@pytest.mark.slow
def test_both_sides_train_the_same_and_all_is_recorded(measured):
    written = json.loads((measured / "throughput_test.json").read_text())
    record = written["record"]
    assert len(record["commit"]) == 40
    assert {"torch", "transformers", "trl"} <= record["versions"].keys()
    assert (record["seed"], record["dtype"], record["threads_per_process"]) == (0, "float32", 1)
    results = {result["loss"]: result for result in written["results"]}
    assert list(results) == ["dpo", "kto", "orpo"]
    for loss, result in results.items():
        ours, theirs = result["sides"]["prefopt"], result["sides"]["trl"]
        for side, found in result["sides"].items():
            assert len(result["measured"][side]) == WARMUP + STEPS
            rates = found["pairs_per_s"]
            assert 0 < rates["p20"] <= rates["median"] <= rates["p80"]
            assert 100 < found["peak_mb"] <= found["process_peak_mb"] * 1.01
            assert 0 < found["fraction_of_matmul"]["median"] < 1
        timed = [
            sum(step["seconds"] for step in result["measured"][side][WARMUP:])
            for side in ("trl", "prefopt")
        ]
        compared = result["against"]["trl"]
        assert compared["ratio"]["of_totals"] == pytest.approx(timed[0] / timed[1])
        assert ours["positions_per_step"] < theirs["positions_per_step"]
        assert ours["head_positions_per_step"] < theirs["head_positions_per_step"]
        first = compared["first_losses"]
        if loss == "orpo":  # another likelihood term: the first loss is put together from metrics
            assert first["difference_of_first"] < 1e-5
        else:
            assert first["largest_difference"] < 1e-4
            assert first["largest_relative_difference_of_grad_norms"] < 1e-3
            assert len({round(value, 7) for value in first["losses"]["prefopt"]}) > 1


def test_the_first_losses_are_compared_where_one_side_has_another_likelihood_term(load):
    text = load("throughput_report")._difference_text
    assert text({"difference_of_first": 2e-6, "largest_difference": 0.3}) == "2e-06 (see below)"
    # ORPO beside an earlier prefopt: the same loss on both sides
    assert text({"difference_of_first": None, "largest_difference": 0.0}) == "0"


@pytest.mark.slow
def test_our_side_computes_the_useful_tokens_only(measured):
    written = json.loads((measured / "throughput_test.json").read_text())
    result = written["results"][0]
    assert result["loss"] == "dpo"
    computed = [step["positions"] for step in result["measured"]["prefopt"]]
    projected = [step["head_positions"] for step in result["measured"]["prefopt"]]
    assert computed == result["useful"]["trained_tokens"]
    assert projected == result["useful"]["predictions"]


@pytest.mark.slow
def test_table_and_chart_are_written(measured):
    text = (measured / "throughput_test.md").read_text()
    assert text.count("| tiny |") == 6
    assert "ORPO: TRL also takes the prompt's tokens" in text
    assert (measured / "throughput_test.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_code_of_the_gpu_runs_on_the_cpu(tmp_path, shared_dir):
    """All but the device: half precision, several steps a turn, and one side at a time."""
    options = ("--size", "tiny", "--steps", "2", "--batch", "2", "--precision", "bf16-autocast")
    shared = ("--turn", "5", "--apart", "--shared", str(shared_dir), "--name", "test")
    run("throughput.py", tmp_path, *options, *shared)
    (result,) = json.loads((tmp_path / "throughput_test.json").read_text())["results"]
    assert result["against"]["trl"]["first_losses"]["largest_difference"] < 0.01


@pytest.mark.slow
def test_packed_rows_are_trained_as_pairs_are(tmp_path, shared_dir):
    """The same losses and gradients, the prompt twice, and no padding."""
    options = ("--size", "tiny", "--steps", "3", "--batch", "4", "--against", "packed-fa2")
    run("throughput.py", tmp_path, *options, "--shared", str(shared_dir), "--name", "test")
    (result,) = json.loads((tmp_path / "throughput_test.json").read_text())["results"]
    first = result["against"]["packed-fa2"]["first_losses"]
    assert first["largest_difference"] < 1e-5
    assert first["largest_relative_difference_of_grad_norms"] < 1e-3
    assert len({round(value, 7) for value in first["losses"]["packed-fa2"]}) > 1
    positions = [step["positions"] for step in result["measured"]["packed-fa2"]]
    assert positions == result["useful"]["texts_tokens"]


@pytest.mark.slow
def test_scaling_scores_alike_on_all_sides_and_is_written(tmp_path):
    run("scaling.py", tmp_path, "--quick", "--repeats", "1")
    found = json.loads((tmp_path / "throughput_scaling.json").read_text())["found"]
    assert list(found) == ["examples", "prompt", "completions", "vocabulary"]
    two, four = found["completions"]
    assert two["sides"]["shared prefix"]["positions"] == 2 * (1024 + 2 * 63)
    assert four["sides"]["shared prefix"]["positions"] == 2 * (1024 + 4 * 63)
    assert four["sides"]["padded"]["positions"] == 8 * 1087
    assert "TRL" in two["sides"]
    assert "TRL" not in four["sides"]
    assert (tmp_path / "throughput_scaling.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_parts_of_a_step_are_all_seen(tmp_path):
    run("profile_step.py", tmp_path, "--size", "tiny", "--steps", "2", "--batch", "2")
    seconds = json.loads((tmp_path / "profile.json").read_text())["seconds_per_step"]["tiny"]
    assert all(value > 0 for value in seconds.values())
    assert len(seconds) == 7
