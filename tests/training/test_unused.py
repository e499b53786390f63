"""No argument is ignored in silence: each does what it says, or is refused."""

from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainingArguments

from prefopt import PreferenceTrainer
from prefopt.training.unused import check_unmoved, check_used
from tests.conftest import ROOT
from tests.models import tiny_model, tiny_rows, tiny_tokenizer
from tests.runs import config, steps, trainer

# What transformers itself does, in code that is not replaced here: its loop over steps, optimisers
# and schedules, devices and launches, logging, checkpoints.
BY_TRANSFORMERS = [
    "output_dir",
    "num_train_epochs",
    "max_steps",
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "warmup_ratio",
    "optim_args",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "bf16",
    "tf32",
    "use_cache",
    "torch_empty_cache_steps",
    "logging_dir",
    "logging_strategy",
    "logging_steps",
    "logging_first_step",
    "log_on_each_node",
    "log_level",
    "logging_nan_inf_filter",
    "log_level_replica",
    "disable_tqdm",
    "report_to",
    "run_name",
    "project",
    "trackio_space_id",
    "trackio_bucket_id",
    "trackio_static_space_id",
    "eval_strategy",
    "eval_steps",
    "eval_delay",
    "eval_on_start",
    "save_only_model",
    "save_strategy",
    "save_steps",
    "save_on_each_node",
    "save_total_limit",
    "enable_jit_checkpoint",
    "load_best_model_at_end",
    "metric_for_best_model",
    "greater_is_better",
    "restore_callback_states_from_checkpoint",
    "ignore_data_skip",
    "resume_from_checkpoint",
    "push_to_hub",
    "hub_token",
    "hub_private_repo",
    "hub_model_id",
    "hub_strategy",
    "hub_always_push",
    "hub_revision",
    "full_determinism",
    "use_cpu",
    "ddp_find_unused_parameters",
    "ddp_bucket_cap_mb",
    "ddp_broadcast_buffers",
    "ddp_static_graph",
    "ddp_backend",
    "ddp_timeout",
    "fsdp",
    "fsdp_config",
    "deepspeed",
    "parallelism_config",
    "local_rank",
    "debug",
    "skip_memory_metrics",
    "do_train",
    "do_eval",
    "do_predict",
]

# What is done here, by the file of tests beside the code.
HERE = {
    "tests/training/test_loaders.py": [
        "per_device_train_batch_size",
        "per_device_eval_batch_size",
        "gradient_accumulation_steps",
        "seed",
        "data_seed",
        "train_sampling_strategy",
        "dataloader_drop_last",
        "dataloader_num_workers",
        "dataloader_pin_memory",
        "dataloader_persistent_workers",
        "dataloader_prefetch_factor",
        "dataloader_multiprocessing_context",
        "dataloader_in_order",
    ],
    "tests/training/test_unused.py": [
        "accelerator_config",
        "auto_find_batch_size",
        "include_num_input_tokens_seen",
        "neftune_noise_alpha",
        "prediction_loss_only",
        "remove_unused_columns",
    ],
    "tests/training/test_optimizers.py": ["optim"],
    "tests/engine/test_compilation.py": [
        "torch_compile",
        "torch_compile_backend",
        "torch_compile_mode",
    ],
    "tests/training/test_trainer.py": ["gradient_checkpointing"],
}

# What would do nothing, or something else than it says; with what else must be given.
REFUSED = {
    "activation_checkpointing_kwargs": {"use_reentrant": False},
    "average_tokens_across_devices": False,
    "batch_eval_metrics": True,
    "bf16_full_eval": True,
    "eval_accumulation_steps": 2,
    "eval_do_concat_batches": False,
    "eval_use_gather_object": True,
    "fp16": True,
    "fp16_full_eval": True,
    "include_for_metrics": ["inputs"],
    "label_names": ["label"],
    "label_smoothing_factor": 0.1,
    "length_column_name": "tokens",
    "liger_kernel_config": {"rope": True},
    "optim_target_modules": "all-linear",
    "train_sampling_strategy": "group_by_length",
    "use_liger_kernel": True,
}

# Another name of one above, which transformers takes as well.
SYNONYMS = {
    "activation_checkpointing": "gradient_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}


def test_what_becomes_of_each_argument_of_transformers_is_decided():
    here = [name for names in HERE.values() for name in names]
    decided = [*BY_TRANSFORMERS, *here, *REFUSED, *SYNONYMS]
    assert {item.name for item in fields(TrainingArguments)} <= set(decided)
    assert set(BY_TRANSFORMERS).isdisjoint([*here, *REFUSED])


@pytest.mark.parametrize("file", HERE)
def test_what_is_done_here_is_tested(file):
    text = (ROOT / file).read_text(encoding="utf-8")
    assert [name for name in HERE[file] if name not in text] == []


KNOWN = {item.name for item in fields(TrainingArguments)}  # not in all versions of transformers


@pytest.mark.parametrize("name", [name for name in REFUSED if name in KNOWN])
def test_what_would_do_nothing_is_refused_when_the_trainer_is_made(tmp_path, name):
    with pytest.raises(ValueError, match=name):
        trainer(tmp_path, tiny_rows(4), **{name: REFUSED[name]})


def test_values_that_say_what_is_done_anyway_are_taken(tmp_path):
    harmless = {"label_names": ["labels"], "length_column_name": "length"}
    assert config(tmp_path, average_tokens_across_devices=True, **harmless) is not None


def test_no_clipping_is_asked_for_by_a_number(tmp_path):
    with pytest.raises(
        ValueError, match=r"max_grad_norm must be a finite .* 0 and inf clip nothing"
    ):
        config(tmp_path, max_grad_norm=None)


# Options of loading -------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("option", "value"), [("dispatch_batches", True), ("use_seedable_sampler", False)]
)
def test_loading_that_cannot_be_is_refused(tmp_path, option, value, streamed):
    rows = tiny_rows(4)
    rows = rows.to_iterable_dataset() if streamed else rows
    with pytest.raises(ValueError, match=f"{option}={value} is not supported: .*leave it out"):
        trainer(tmp_path, rows, accelerator_config={option: value})


def test_rows_are_not_repeated_to_even_batches_up(tmp_path):
    made = trainer(tmp_path, tiny_rows(4), accelerator_config={"even_batches": True})
    assert made.args.accelerator_config.even_batches is False


def test_options_of_accumulation_that_nobody_reads_are_refused(tmp_path):
    given = {"gradient_accumulation_kwargs": {"adjust_scheduler": False, "sync_each_batch": True}}
    with pytest.raises(ValueError, match="'adjust_scheduler' is not supported"):
        check_used(config(tmp_path, accelerator_config=given))
    del given["gradient_accumulation_kwargs"]["adjust_scheduler"]
    check_used(config(tmp_path, accelerator_config=given))


# What goes together -------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{"gradient_accumulation_steps": 2}, {"max_tokens_per_batch": 9}])
@pytest.mark.parametrize("optim", ["lomo", "adalomo"])
def test_an_optimiser_that_moves_in_each_backward_pass_needs_steps_of_one(tmp_path, optim, more):
    with pytest.raises(ValueError, match="moves the weights in each backward pass"):
        check_used(config(tmp_path, optim=optim, **more))
    check_used(config(tmp_path, optim=optim))


def launched(args, **changes):
    """Return arguments as another launch or device would see them."""
    return SimpleNamespace(**{name: getattr(args, name) for name in vars(args)} | changes)


def test_finding_a_batch_size_is_for_one_process(tmp_path):
    args = config(tmp_path, auto_find_batch_size=True)
    its = {"device": torch.device("cpu"), "world_size": 1}
    check_used(launched(args, **its))
    with pytest.raises(ValueError, match="one process only"):
        check_used(launched(args, **its | {"world_size": 2}))


# What is done here --------------------------------------------------------------------------------


def eos_pads(tokenizer):
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@pytest.mark.parametrize("layout", ["shared_prefix", "padded"])
def test_input_tokens_are_counted_without_padding(tmp_path, layout):
    seen = set()
    for how in ("all", "non_padding"):
        trained = trainer(
            tmp_path,
            tiny_rows(8),
            layout=layout,
            include_num_input_tokens_seen=how,
            processing_class=eos_pads(tiny_tokenizer()),
            num_train_epochs=1,
            max_steps=-1,
        )
        trained.train()
        seen.add(trained.state.num_input_tokens_seen)
        tokens = sum(int(inputs["input_ids"].shape[1]) for inputs in trained.get_train_dataloader())
    assert seen == {tokens}


def test_predictions_are_left_out_on_request(tmp_path):
    for only_loss in (False, True):
        made = trainer(
            tmp_path, tiny_rows(4), eval_dataset=tiny_rows(4), prediction_loss_only=only_loss
        )
        found = made.predict(made.eval_dataset)
        assert (found.predictions is None) == only_loss
        assert "test_loss" in found.metrics


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("removed", [True, False])
def test_a_collator_is_given_other_columns_on_request(tmp_path, removed, streamed):
    data = tiny_rows(8).add_column("note", list(range(8)))
    seen = []

    def collate(rows):
        seen.extend(set(row) for row in rows)
        return made.own(rows)

    made = PreferenceTrainer(
        tiny_model("llama"),
        args=config(tmp_path, remove_unused_columns=removed, max_steps=1),
        train_dataset=data.to_iterable_dataset() if streamed else data,
        processing_class=tiny_tokenizer(),
        data_collator=collate,
    )
    made.own = made._collator()
    made.train()
    assert {"note" in columns for columns in seen} == {not removed}


def test_noise_is_for_passes_that_train_alone(tmp_path):
    rows = tiny_rows(8)
    made = [
        trainer(tmp_path, rows, eval_dataset=rows, learning_rate=0.0, neftune_noise_alpha=alpha)
        for alpha in (None, 5.0)
    ]
    plain, noisy = [one.evaluate()["eval_loss"] for one in made]
    assert plain == noisy
    for one in made:
        one.train()
    (first, *_), (other, *_) = map(steps, made)
    # The policy sees noise that the reference does not: the first loss is ln 2 no more.
    assert first["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert abs(other["loss"] - first["loss"]) > 1e-4
    assert made[1].evaluate()["eval_loss"] == plain


@pytest.mark.parametrize("loss", ["aot", "bco", "kto"])
def test_a_batch_that_is_scored_twice_has_the_same_noise(tmp_path, loss):
    made = trainer(
        tmp_path,
        tiny_rows(8),
        loss_type=loss,
        neftune_noise_alpha=5.0,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=2,
        max_steps=1,
    )
    seen, score = [], made.scorer.score

    def recorded(batch, *args, **options):
        scores = score(batch, *args, **options)
        seen.append((options.get("noise"), scores.logps.detach()))
        modes.add(made.model.training)
        return scores

    modes = set()
    made.scorer.score = recorded
    made.model.eval()  # as models are loaded
    made.train()
    assert modes == {True}
    noisy = {noise: [] for noise, _ in seen if noise is not None}
    for noise, logps in seen:
        if noise is not None:
            noisy[noise].append(logps)
    assert len(noisy) == 2
    for passes in noisy.values():
        assert len(passes) == (1 if loss == "kto" else 2)
        assert torch.equal(passes[0], passes[-1])
    # KTO's estimate is that of the policy without noise.
    assert len([noise for noise, _ in seen if noise is None]) == (2 if loss == "kto" else 0)


# Less memory --------------------------------------------------------------------------------------


def short_of_memory(made, most, from_step=0):
    """Have passes of more rows fail, as where memory is too small."""
    score, passes = made.scorer.score, []

    def limited(batch, *args, **options):
        if len(batch.lengths) > 2 * most and made.state.global_step >= from_step:
            raise RuntimeError("CUDA out of memory. Tried to allocate 1 GiB")
        passes.append(len(batch.lengths) // 2)
        return score(batch, *args, **options)

    made.scorer.score = limited
    return passes


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["dpo", "bco", "aot"])
def test_a_batch_size_that_is_found_changes_no_number(tmp_path, loss):
    found = []
    for most in (8, 3):
        made = trainer(
            tmp_path,
            tiny_rows(13),
            loss_type=loss,
            auto_find_batch_size=most < 8,
            per_device_train_batch_size=8,
            max_steps=4,
            optim="sgd",
        )
        passes = short_of_memory(made, most)
        made.train()
        assert max(passes) <= most
        found.append((flat(made.model), steps(made)))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=0, atol=1e-6)
    for mine, wanted in zip(found[1][1], found[0][1], strict=True):
        assert mine["loss"] == pytest.approx(wanted["loss"], abs=1e-6)
        assert (mine["epoch"], mine["num_tokens"]) == (wanted["epoch"], wanted["num_tokens"])


def test_a_run_whose_weights_have_moved_does_not_begin_anew_in_silence(tmp_path):
    made = trainer(tmp_path, tiny_rows(8), auto_find_batch_size=True, per_device_train_batch_size=8)
    short_of_memory(made, 3, from_step=1)
    with pytest.raises(ValueError, match="after 1 steps, when the weights had moved"):
        made.train()
    check_unmoved(0, 4)


def test_finding_a_batch_size_needs_a_collator_that_cuts_batches(tmp_path):
    made = trainer(tmp_path, tiny_rows(8), auto_find_batch_size=True)
    made.data_collator = lambda rows: rows
    with pytest.raises(ValueError, match="auto_find_batch_size cuts batches"):
        made.train()
