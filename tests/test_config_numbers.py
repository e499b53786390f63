"""Every field of numbers meets 0, negative, fractional, huge and endless numbers: taken or refused.

A field that is new, here or in transformers, fails the first test until it has its line.
"""

import math

import pytest

from prefopt import PreferenceConfig
from prefopt.config_checks import plain_fields
from tests.bad_input.case import check_error

NAN, INFINITE = math.nan, math.inf
TRIED = (0, -1, 1.5, NAN, INFINITE, -INFINITE, 1e300, 10**12, 10**400)
BIG = 10**12

# What is taken of these numbers.
NOTHING: tuple[float, ...] = ()
COUNT = (BIG,)
NUMBER_FROM_0 = (0, 1.5, BIG)
TAKEN = {
    "per_device_train_batch_size": COUNT,
    "per_device_eval_batch_size": COUNT,
    "gradient_accumulation_steps": COUNT,
    "eval_accumulation_steps": NOTHING,
    "torch_empty_cache_steps": COUNT,
    "num_train_epochs": (1.5, BIG),
    "max_steps": (-1, BIG),  # -1 is that num_train_epochs counts
    "logging_steps": COUNT,
    "eval_steps": COUNT,
    "save_steps": COUNT,
    "save_total_limit": COUNT,
    "eval_delay": NUMBER_FROM_0,
    "learning_rate": NUMBER_FROM_0,
    "warmup_steps": (0, BIG),
    "weight_decay": NUMBER_FROM_0,
    "adam_beta1": (0,),
    "adam_beta2": (0,),
    "adam_epsilon": (1.5, BIG),
    "max_grad_norm": (0, 1.5, INFINITE, BIG),
    "label_smoothing_factor": (0,),
    "neftune_noise_alpha": NUMBER_FROM_0,
    "seed": (0,),
    "data_seed": (0,),
    "dataloader_num_workers": (0,),
    "dataset_num_proc": (0,),
    "dataloader_prefetch_factor": COUNT,
    "ddp_bucket_cap_mb": COUNT,
    "ddp_timeout": NOTHING,
    "local_rank": (-1, 0, BIG),
    "beta": (1.5, BIG),
    "label_smoothing": (0,),
    "desirable_weight": NUMBER_FROM_0,
    "undesirable_weight": NUMBER_FROM_0,
    "discopop_tau": (1.5, BIG),
    "margin_scale": NUMBER_FROM_0,
    "beta_final": (1.5, BIG),
    "ld_alpha": (0,),
    "f_alpha_divergence_coef": (0, -1, 1.5, BIG),
    "max_length": COUNT,
    "ref_model_mixup_alpha": NOTHING,
    "ref_model_sync_steps": COUNT,
    "precompute_ref_batch_size": COUNT,
    "router_aux_loss_coef": NUMBER_FROM_0,
    "sample_every": COUNT,
    "sample_tokens": COUNT,
    "max_tokens_per_batch": COUNT,
    "non_finite_steps": (0, BIG),
    "profile_steps": (0, BIG),
    "pad_to_multiple_of": NOTHING,
}
# Fields that mean something only beside another.
BESIDE = {
    "dataloader_prefetch_factor": {"dataloader_num_workers": 2},
    "desirable_weight": {"loss_type": "kto"},
    "undesirable_weight": {"loss_type": "kto"},
    "discopop_tau": {"loss_type": "discopop"},
    "beta_final": {"loss_type": "dpo", "beta_schedule": "linear"},
    "f_alpha_divergence_coef": {"loss_type": "dpo", "f_divergence_type": "alpha_divergence"},
    "sample_every": {"sample_prompts": ["Why?"]},
    "ref_model_mixup_alpha": {"sync_ref_model": True},
    "ref_model_sync_steps": {"sync_ref_model": True},
}
NUMBERS = [name for name, kinds in plain_fields(PreferenceConfig).items() if kinds & {int, float}]


def make(**fields):
    return PreferenceConfig("out", report_to="none", use_cpu=True, **fields)


def test_every_field_of_numbers_has_a_line():
    assert set(NUMBERS) == set(TAKEN)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", TRIED, ids=[f"{value:.4g}"[:8] for value in TRIED[:-1]] + ["400"])
def test_a_number_is_taken_or_refused_when_the_configuration_is_made(name, value):
    fields = {name: value, **BESIDE.get(name, {})}
    if value in TAKEN[name]:
        assert getattr(make(**fields), name) == value
    else:
        with pytest.raises(ValueError, match=name) as caught:
            make(**fields)
        check_error(caught.value, name)


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_of_transformers_defaults_are_taken_when_spelt_out(name):
    default = PreferenceConfig.__dataclass_fields__[name].default
    assert getattr(make(**{name: default}), name) in (default, 0.6, 512)
