"""Twelve scripts for TRL, three a trainer, do the same after one word of each was changed.

``tests/trl_scripts`` has the scripts, ``trl_differences.py`` what differs, and why.
"""

import json

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from script_runs import (
    ARGUMENTS,
    PLACES,
    SCRIPTS,
    one_word_changed,
    run_script,
    script_text,
)
from torch import nn
from trl.experimental.orpo import ORPOTrainer
from trl_differences import DIFFERENCES

ALL = sorted(path.stem for path in SCRIPTS.glob("*_*.py"))
# One of each trainer, with each kind of data and of training, runs wherever tests do.
QUICK = {"dpo_evaluate", "kto_full", "cpo_lora", "orpo_evaluate"}

_LOGPS = {"logps/chosen", "logps/rejected"}
_LOGITS = {"logits/chosen", "logits/rejected"}
# Under accumulation TRL logs means of the micro-batches' means, ours are over the step's tokens.
_TOKENS = _LOGITS | {"entropy", "mean_token_accuracy"}
# What has one name and two meanings: see DIFFERENCES.
OTHERWISE = {
    "cpo_full": _LOGITS,
    "cpo_lora": _LOGPS | _LOGITS,
    "cpo_evaluate": _LOGPS | _LOGITS,
    "orpo_full": _LOGPS | _LOGITS,
    "orpo_lora": _LOGPS | _LOGITS,
    "orpo_evaluate": _LOGPS | _LOGITS,
    "dpo_lora": _TOKENS,
    "kto_lora": _TOKENS | _LOGPS | {"rewards/chosen", "rewards/rejected", "rewards/margins"},
}
# TRL logs these too, of every trainer or of one.
ONLY_TRL = {
    "num_tokens",  # of evaluations
    "nll_loss",
    "log_odds_chosen",
    "log_odds_ratio",
    "kl",  # of a loss that has none; of sets with names
}
TIMES = ("_runtime", "_per_second", "total_flos", "preparation_time")


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A function that runs a script, changed or not, and remembers what it did."""
    root, runs, patch = tmp_path_factory.mktemp("scripts"), {}, pytest.MonkeyPatch()
    patch.setenv("PREFOPT_CACHE", str(root / "store"))

    def run(name, mine, edits=(), data="plain", cause=None):
        key = (name, mine, edits, data, cause)
        if key not in runs:
            if not (root / data).exists():
                PLACES[data](root / data)
            text = script_text(name)
            for old, new in edits:
                assert old in text, old
                text = text.replace(old, new)
            with patch.context() as inner:
                if cause is not None:
                    cause(inner)
                runs[key] = run_script(
                    one_word_changed(text) if mine else text,
                    root / data,
                    str(len(list(root.iterdir()))),
                    inner,
                    ARGUMENTS.get(name, ""),
                )
        return runs[key]

    run.root = root
    yield run
    patch.undo()


# The same -----------------------------------------------------------------------------------------


def likelihood_of_completions(patch):
    """Make the likelihood term of TRL's ORPO ours, and nothing else."""
    forward = ORPOTrainer.concatenated_forward

    def changed(self, model, batch):
        chosen, rejected, chosen_logits, *others = forward(self, model, batch)
        labels = batch["chosen_labels"][:, 1:]
        losses = nn.functional.cross_entropy(
            chosen_logits[:, : labels.shape[1]].transpose(1, 2), labels, reduction="none"
        )
        others[1] = (losses.sum(1) / (labels != -100).sum(1)).mean()
        return chosen, rejected, chosen_logits, *others

    patch.setattr(ORPOTrainer, "concatenated_forward", changed)


def rotation_over_all(patch):
    """Let TRL's KTO give each row the completion before it in the data, and change nothing else."""
    original = Dataset.map

    def changed(self, *args, **options):
        if options.get("batched"):
            options["batch_size"] = len(self)
        return original(self, *args, **options)

    patch.setattr(Dataset, "map", changed)


def relative(mine, theirs):
    """Return the largest difference of the losses of steps, relative to TRL's."""
    return float(((mine.step_losses - theirs.step_losses) / theirs.step_losses).abs().max())


def apart(mine, theirs, start):
    """Return how far trained weights are apart, over how far training moved TRL's."""
    assert mine.keys() == theirs.keys()
    begun = {it: torch.zeros_like(theirs[it]) for it in theirs if "lora_B" in it}
    begun |= {it: start[it] for it in theirs if it in start}
    moved = sum(float((theirs[it] - begun[it]).square().sum()) for it in begun)
    assert moved > 1e-2, "the weights hardly moved"
    return (sum(float((mine[it] - theirs[it]).square().sum()) for it in theirs) / moved) ** 0.5


def assert_same_logs(mine, theirs, otherwise):
    """What both logged is the same; what only TRL logs is known."""
    assert len(mine.history) == len(theirs.history)
    for ours, other in zip(mine.history, theirs.history, strict=True):
        assert (ours["step"], ours["epoch"]) == (other["step"], other["epoch"])
        for name in other:
            plain = name.removeprefix("eval_")
            if name.endswith(TIMES) or plain in otherwise:
                continue
            if name not in ours:
                # TRL has no names for what it measured on sets with names.
                of_a_set = f"eval_seen_{plain}" in ours or f"eval_unseen_{plain}" in ours
                assert of_a_set or plain in ONLY_TRL, name
                continue
            # Margins are small differences of log-probs of some 30 nats.
            assert ours[name] == pytest.approx(other[name], rel=2e-5, abs=2e-5), name


def assert_same_files(mine, theirs):
    """Every file of TRL's is there, and a few of ours; the model card lies with the weights."""
    assert theirs.files - mine.files <= {"README.md"}
    names = {file.rsplit("/")[-1] for file in mine.files - theirs.files}
    assert all(name == "README.md" or name.startswith("prefopt_") for name in names), names


@pytest.mark.parametrize(
    "name", [it if it in QUICK else pytest.param(it, marks=pytest.mark.slow) for it in ALL]
)
def test_a_script_does_the_same(name, ran):
    cause = likelihood_of_completions if name == "orpo_lora" else None
    mine, theirs = ran(name, True), ran(name, False, cause=cause)
    assert mine.steps == theirs.steps >= 5
    assert theirs.step_losses.std() > 1e-3, "the loss hardly moved"
    assert relative(mine, theirs) < 1e-5  # 3e-6 was attained
    assert_same_logs(mine, theirs, OTHERWISE.get(name, set()))
    for ours, other in zip(mine.seen, theirs.seen, strict=True):
        assert ours[:2] == other[:2]
        assert ours[2] == other[2] or ours[2] == pytest.approx(other[2], rel=2e-5, abs=2e-5)
    assert bool(theirs.seen) == name.endswith("_evaluate")
    if name in ("kto_full", "kto_evaluate"):
        assert max(theirs.logged("kl")) > 0.1, "without a KL estimate that matters"
    assert_same_files(mine, theirs)
    start = load_file(ran.root / "plain" / "model" / "model.safetensors")
    assert theirs.weights
    for file, weights in theirs.weights.items():
        # AdamW makes much of rounding errors in its first steps; 2e-4 was attained.
        assert apart(mine.weights[file], weights, start) < 1e-3, file


def test_there_are_three_scripts_for_each_trainer_and_a_word_of_each_changes():
    assert sorted(it.split("_")[0] for it in ALL) == sorted(["cpo", "dpo", "kto", "orpo"] * 3)
    for name in ALL:
        text = script_text(name)
        pairs = zip(text.split(), one_word_changed(text).split(), strict=True)
        changed = {(old, new) for old, new in pairs if old != new}
        module = "trl" if name[:3] in ("dpo", "kto") else f"trl.experimental.{name.split('_')[0]}"
        assert (module, "prefopt.trl") in changed
        assert changed <= {(module, "prefopt.trl"), ("trl", "prefopt.trl")}


# Losses by TRL's names, with a reference that is not the policy; `test_trl_dpo.py` has the others.
SMOOTHED = {"exo_pair", "robust", "aot", "aot_unpaired"}
DPO_LOSSES = [*sorted(SMOOTHED), "nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down"]
DPO_LOSSES += ["sigmoid_norm"]


@pytest.mark.slow
@pytest.mark.parametrize("loss", DPO_LOSSES)
def test_a_loss_of_dpo_is_that_of_trl(loss, ran):
    smoothing = ", label_smoothing=0.1" if loss in SMOOTHED else ""
    (old, _), steps = DIFFERENCES["label smoothing of 'sigmoid'"].mine
    edits = ((old, f'"{loss}"{smoothing},'), steps, ('eval_strategy="steps"', 'eval_strategy="no"'))
    edits += (("load_best_model_at_end=True", "load_best_model_at_end=False"),)
    edits += ((", EarlyStoppingCallback(early_stopping_patience=3)", ""),)
    assert relative(ran("dpo_evaluate", True, edits), ran("dpo_evaluate", False, edits)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["hinge", "ipo", "simpo"])
def test_a_loss_of_cpo_is_that_of_trl(loss, ran):
    edits = (('"alphapo",\n    alpha=0.25', f'"{loss}",\n    cpo_alpha=0.3'),)
    assert relative(ran("cpo_evaluate", True, edits), ran("cpo_evaluate", False, edits)) < 1e-5


# What differs -------------------------------------------------------------------------------------


def values(run, name):
    """Return what was logged under a name, or the losses of steps."""
    return run.step_losses if name == "loss" else torch.tensor(run.logged(name)).double()


def largest(mine, theirs, name):
    """Return the largest relative difference of values that both logged, over their usual size."""
    ours, other = values(mine, name), values(theirs, name)
    count = min(len(ours), len(other))
    return float((ours[:count] - other[:count]).abs().max() / other.abs().mean())


@pytest.mark.slow
@pytest.mark.parametrize("what", DIFFERENCES)
def test_a_difference_is_there_and_has_this_cause(what, ran):
    it = DIFFERENCES[what]
    mine = ran(it.script, True, it.edits, it.data)
    theirs = ran(it.script, False, it.edits, it.data)
    found = largest(mine, theirs, it.value)
    assert found > it.least
    if it.is_explained:
        mine = ran(it.script, True, it.edits if it.mine is None else it.mine, it.my_data or it.data)
        theirs = ran(it.script, False, it.edits if it.theirs is None else it.theirs, it.data)
        assert mine.steps == theirs.steps
        assert largest(mine, theirs, it.value) < 2e-5


@pytest.mark.slow
def test_rotated_over_all_the_mismatched_completions_of_trl_are_ours(ran):
    it = DIFFERENCES["mismatched completions of KTO"]
    theirs = ran(it.script, False, it.edits, cause=rotation_over_all)
    mine = ran(it.script, True, it.edits)
    assert relative(mine, theirs) < 1e-5
    assert max(theirs.logged("kl")) > 0
    assert mine.logged("kl") == pytest.approx(theirs.logged("kl"), rel=1e-4, abs=1e-5)


@pytest.mark.slow
def test_log_probs_over_tokens_are_those_that_trl_logs(ran):
    """With a pair in a batch, the mean over tokens is the sum over the length."""
    mine, theirs = ran("orpo_evaluate", True), ran("orpo_evaluate", False)
    sums, lengths = mine.logged("logps/chosen"), mine.logged("lengths/chosen")
    means = [total / length for total, length in zip(sums, lengths, strict=True)]
    assert means == pytest.approx(theirs.logged("logps/chosen"), rel=1e-5)


@pytest.mark.slow
def test_a_row_whose_prompt_leaves_no_room_is_set_aside_where_trl_keeps_it(ran):
    """TRL's CPO and ORPO keep it with an empty completion; its DPO and KTO leave it out too."""
    edits = (("max_length=64", "max_length=6"),)
    mine, theirs = ran("cpo_full", True, edits), ran("cpo_full", False, edits)
    lines = (ran.root / "plain" / "pairs.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    kept = sum(len(row["prompt"].split()) < 6 for row in rows)
    assert mine.steps == -(-kept // 4) < theirs.steps == len(rows) // 4


@pytest.mark.slow
def test_weights_of_wpo_below_its_limit_are_those_of_trl(ran):
    edits = DIFFERENCES["weights of WPO"].edits
    mine, theirs = ran("dpo_evaluate", True, edits), ran("dpo_evaluate", False, edits)
    assert relative(mine, theirs) < 1e-5


@pytest.mark.slow
def test_rows_are_evaluated_as_they_are_where_trl_wants_them_prepared(ran):
    more = (("metrics = trainer.evaluate()", 'trainer.evaluate(dataset["test"])'),)
    with pytest.raises(KeyError, match="chosen_input_ids"):
        ran("orpo_evaluate", False, more)
    again = ran("orpo_evaluate", True, more).logged("eval_loss")
    assert again == pytest.approx(ran("orpo_evaluate", True).logged("eval_loss"), rel=1e-6)


@pytest.mark.slow
def test_numbers_of_held_out_sets_have_their_names(ran):
    """TRL logs each under `eval_kl`, whichever set it is of; only losses have the set's name."""
    mine, theirs = ran("kto_evaluate", True), ran("kto_evaluate", False)
    assert mine.logged("eval_seen_kl")
    assert mine.logged("eval_unseen_kl")
    assert not mine.logged("eval_kl")
    both = [
        value
        for pair in zip(mine.logged("eval_seen_kl"), mine.logged("eval_unseen_kl"), strict=True)
        for value in pair
    ]
    assert both == pytest.approx(theirs.logged("eval_kl"), rel=1e-4, abs=1e-5)
