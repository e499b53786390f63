"""Wrong options of a run, one at a time."""

from typing import Any

from prefopt import PreferenceConfig
from tests.bad_input.case import Case

NAN, INFINITE = float("nan"), float("inf")


def config(**fields: Any) -> PreferenceConfig:
    return PreferenceConfig("unused", report_to="none", use_cpu=True, **fields)


def wrong(says: str, **fields: Any) -> Case:
    """Return the case of options that cannot be."""
    name = ", ".join(f"{field}={value!r}" for field, value in fields.items())
    return Case(name, lambda _: config(**fields), says, ValueError)


CASES = [
    *(
        wrong(f"{name} must be .*, got ", **{name: value})
        for name, values in {
            "max_length": (NAN, INFINITE, "abc", "512", [512], True, 1, 0, -1, 2.5),
            "beta": (NAN, INFINITE, "0.1", True, [0.1]),
            "learning_rate": (NAN, INFINITE, "1e-6", -1e-6, None),
            "label_smoothing": (NAN, "0.1"),
            "desirable_weight": (NAN, "1"),
            "discopop_tau": (NAN,),
            "margin_scale": (NAN, -1.0, "1"),
            "ld_alpha": (NAN, 1.5, -0.1, "1"),
            "f_alpha_divergence_coef": (INFINITE, "x"),
            "router_aux_loss_coef": (NAN, -0.1, "0.1"),
            "dataset_num_proc": (NAN, -1, "2", 1.5),
            "max_tokens_per_batch": (NAN, 0, -5, "100", 1.5),
            "precompute_ref_batch_size": (0, NAN, "8"),
            "per_device_train_batch_size": (0, -1, "4", 1.5),
            "per_device_eval_batch_size": (0,),
            "gradient_accumulation_steps": (0, -1, "2"),
            "dataloader_num_workers": (-1, "0"),
            "weight_decay": (NAN, -0.1),
            "max_grad_norm": (NAN, -1.0),
            "num_train_epochs": (NAN, -1),
            "logging_steps": (INFINITE, "10", -1),
            "seed": (-1, "a", 1.5),
            "length_normalize": ("true", 2, None),
            "disable_dropout": ("false",),
            "sync_ref_model": ("yes",),
            "use_weighting": (NAN,),
            "reference": (None, 5, "cashed"),
            "layout": ("paded", None, 1),
            "attn_backend": ("flash", 0),
            "beta_schedule": ("exponential", 1),
            "f_divergence_type": ("kl", 3),
            "pad_token": (0,),
            "reference_cache_dir": (5,),
            "loss_type": (5, [1], ["dpo", None], True),
            "loss_kwargs": (5, "[1]", [("beta", 1)]),
            "model_init_kwargs": ("[1]", 5),
        }.items()
        for value in values
    ),
    *(
        wrong(f"{name}: there is no file nowhere.json", **{name: "nowhere.json"})
        for name in ("deepspeed", "fsdp_config", "accelerator_config")
    ),
    wrong("unknown loss 'ipoo'; did you mean 'ipo'", loss_type="ipoo"),
    wrong("cannot read the loss ''", loss_type=""),
    wrong("cannot read the loss 'dpo \\+ '", loss_type="dpo + "),
    wrong("loss_type is empty", loss_type=[]),
    wrong("listed twice", loss_type=["dpo", "sigmoid"]),
    wrong("kinds of rows are paired, unpaired, ranked", loss_type={"pairs": "dpo"}),
    wrong("loss_weights has 1 values for 2 losses", loss_type=["dpo", "sft"], loss_weights=[1.0]),
    wrong("weight of 'sft' must be .*finite", loss_type=["dpo", "sft"], loss_weights=[1.0, NAN]),
    wrong("weight of 'sft' must be .*at least 0", loss_type=["dpo", "sft"], loss_weights=[1, -1]),
    wrong("loss_weights must be a list of num", loss_type=["dpo", "sft"], loss_weights=["1", "2"]),
    wrong("loss_weights must be a list of num", loss_type="dpo", loss_weights=1.0),
    wrong("loss_weights must be a list of num", loss_type=["dpo", "sft"], loss_weights=[1, None]),
    wrong("weights are given twice", loss_type="dpo + 0.2*sft", loss_weights=[1.0, 1.0]),
    wrong("loss_weights needs a loss_type", loss_weights=[1.0]),
    wrong("beta must be greater than 0", loss_type="dpo", beta=0),
    wrong("beta must be greater than 0", loss_type="dpo", beta=-0.1),
    wrong("label_smoothing must be at least 0 and below 0.5", loss_type="dpo", label_smoothing=0.5),
    wrong("label_smoothing must be at least 0", loss_type="dpo", label_smoothing=-0.1),
    wrong("no loss here takes the option 'betta'", loss_type="dpo", loss_kwargs={"betta": 1}),
    wrong("beta must be finite, got nan", loss_type="dpo", loss_kwargs={"beta": NAN}),
    wrong("beta must be a number, got 'x'", loss_type="dpo", loss_kwargs={"beta": "x"}),
    wrong("tau must be finite, got inf", loss_type="discopop", loss_kwargs={"tau": INFINITE}),
    wrong("given for 'ipo', which is not among", loss_type="dpo", loss_kwargs={"ipo": {"beta": 1}}),
    wrong("loss_kwargs is not JSON", loss_kwargs="{beta: 1}"),
    wrong("model_init_kwargs is not JSON", model_init_kwargs="{'a': 1}"),
    wrong("no loss here takes the option", loss_type="ipo", label_smoothing=0.1),
    wrong("reference='adapter:' names no adapter", reference="adapter:"),
    wrong("contradicts reference='live'", precompute_ref_log_probs=True, reference="live"),
    wrong("no effect without sync_ref_model", ref_model_sync_steps=3),
    wrong("ref_model_mixup_alpha must be", sync_ref_model=True, ref_model_mixup_alpha=1.5),
    wrong("ref_model_sync_steps must be", sync_ref_model=True, ref_model_sync_steps=0),
    wrong("does not go with beta_final", beta_schedule="linear"),
    wrong("parallelism_config has no 'tp_siz'; did you mean", parallelism_config={"tp_siz": 1}),
    wrong("tp_size must be at least 1, but got 0", parallelism_config='{"tp_size": 0}'),
    wrong("optim_args must be like", optim_args="betas"),
    wrong("lr_scheduler_kwargs: a must be a finite", lr_scheduler_kwargs={"a": INFINITE}),
    wrong("load_best_model_at_end=True needs evaluations", load_best_model_at_end=True),
    wrong("save_strategy='best' needs evaluations", save_strategy="best"),
    wrong(
        "needs a checkpoint of each evaluation: set save_strategy .'steps'. and eval_str.*'epoch'",
        load_best_model_at_end=True,
        eval_strategy="epoch",
    ),
    Case(
        "a warm-up longer than the run",
        lambda _: config(warmup_steps=9, max_steps=5),
        "warmup_steps=9 is not below max_steps=5.*lower warmup_steps",
        None,
    ),
    wrong("beta must be greater than 0", beta=-1.0),
    wrong("truncation_mode='keep_end' is not supported", truncation_mode="keep_end"),
    wrong("pad_to_multiple_of=8 is not supported", pad_to_multiple_of=8),
]
