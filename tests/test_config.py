"""The configuration: every TRL field has an answer, and nothing is ignored in silence."""

import copy
import dataclasses
import pickle

import pytest
import transformers

from prefopt import PreferenceConfig
from prefopt.migration import TRL_FIELDS
from prefopt.objective import LossOptions


def make(**fields):
    return PreferenceConfig("out", report_to="none", use_cpu=True, **fields)


def trl_fields(name):
    trl = pytest.importorskip("trl")
    inherited = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
    own = dataclasses.fields(getattr(trl, name))
    return {field.name: field for field in own if field.name not in inherited}


@pytest.mark.parametrize("name", ["DPOConfig", "KTOConfig"])
def test_every_field_of_trl_has_an_answer(name):
    fields = trl_fields(name)
    assert set(fields) <= set(TRL_FIELDS)
    ours = {field.name for field in dataclasses.fields(PreferenceConfig)}
    assert set(fields) <= ours


@pytest.mark.parametrize(
    ("name", "losses"),
    [("DPOConfig", ["sigmoid", "ipo", "hinge", "discopop"]), ("KTOConfig", ["kto"])],
)
def test_trls_defaults_spelt_out_are_accepted(name, losses):
    trl = pytest.importorskip("trl")
    fields = trl_fields(name)
    theirs = getattr(trl, name)("out", report_to="none", use_cpu=True, bf16=False)
    values = {field: getattr(theirs, field) for field in fields} | {"bf16": False}
    for loss in losses:
        assert make(**(values | {"loss_type": loss})).objective.terms[0].loss.data_kind in (
            "paired",
            "unpaired",
        )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss_type": "ipoo"}, "did you mean 'ipo'"),
        ({"loss_type": "ipo", "label_smoothing": 0.1}, "no loss here takes the option"),
        ({"loss_type": "dpo", "desirable_weight": 2.0}, "no loss here takes the option"),
        ({"loss_type": "orpo", "beta": 0.1}, "hyper-parameters: orpo: lambda_"),
        ({"loss_type": "dpo", "loss_kwargs": {"tau": 1.0}}, "no loss here takes the option 'tau'"),
        ({"loss_type": "dpo", "loss_kwargs": '{"beta": '}, "loss_kwargs"),
        ({"loss_type": "dpo", "beta": 0.1, "loss_kwargs": {"beta": 0.2}}, "beta is given twice"),
        ({"loss_type": "dpo", "beta": -1.0}, "beta"),
        ({"loss_type": ["dpo", "sft"], "loss_weights": [1.0]}, "loss_weights has 1 values for 2"),
        ({"layout": "paded"}, "did you mean 'padded'"),
        ({"attn_backend": "varlne"}, "did you mean 'varlen'"),
        ({"attn_backend": "padded", "layout": "shared_prefix"}, "leave one of them out"),
        ({"attn_backend": "flex", "layout": "padded"}, "leave one of them out"),
        ({"reference": "cache"}, "did you mean 'cached'"),
        ({"max_length": 1}, "max_length must be at least 2"),
        ({"precompute_ref_batch_size": 0}, "precompute_ref_batch_size must be at least 1"),
        ({"precompute_ref_log_probs": True, "reference": "live"}, "contradicts"),
        ({"train_sampling_strategy": "group_by_length"}, "rows are not padded"),
        ({"truncation_mode": "keep_end"}, "completions are cut at their end"),
        ({"pad_to_multiple_of": 8}, "rows are not padded"),
        ({"ld_alpha": 1.5}, "ld_alpha must be from 0 to 1"),
        ({"f_divergence_type": "js"}, "f_divergence_type must be"),
        ({"reference": "adapter:"}, "names no adapter"),
        ({"sync_ref_model": True, "reference": "cached"}, "stays as it is"),
        ({"sync_ref_model": True, "reference": "adapter:sft"}, "stays as it is"),
        ({"sync_ref_model": True, "precompute_ref_log_probs": True}, "stays as it is"),
        ({"sync_ref_model": True, "ref_model_mixup_alpha": 0.0}, "above 0 and at most 1"),
        ({"sync_ref_model": True, "ref_model_mixup_alpha": 1.1}, "above 0 and at most 1"),
        ({"sync_ref_model": True, "ref_model_sync_steps": 0}, "at least 1"),
        ({"ref_model_mixup_alpha": 0.5}, "no effect without sync_ref_model"),
        ({"ref_model_sync_steps": 10}, "no effect without sync_ref_model"),
        ({"include_for_metrics": ["inputs"]}, "rewards and labels alone"),
        ({"label_smoothing_factor": 0.1}, "use label_smoothing instead"),
        ({"loss_type": "orpo", "beta": 0.3}, "loss_kwargs={'lambda_': 0.3} instead"),
        ({"bf16_full_eval": True}, "precision of training"),
        ({"batch_eval_metrics": True}, "whole set at once"),
    ],
)
def test_what_cannot_be_is_said_at_construction(fields, message):
    with pytest.raises(ValueError, match=message):
        make(**fields)


def test_none_is_the_losss_own_default():
    assert make(loss_type="discopop").objective.terms[0].hyperparameters == {}
    given = make(loss_type="discopop", beta=0.3, discopop_tau=0.2).objective.terms[0]
    assert given.hyperparameters == {"beta": 0.3, "tau": 0.2}


def test_loss_kwargs_may_be_json_as_on_the_command_line():
    term = make(loss_type="slic", loss_kwargs='{"delta": 2.0, "lambda": 0.5}').objective.terms[0]
    assert term.hyperparameters == {"delta": 2.0, "lambda_": 0.5}


def test_precomputing_is_trls_name_of_a_cached_reference():
    assert make(precompute_ref_log_probs=True).reference == "cached"


def test_an_adapter_as_reference_is_computed_once_unless_the_data_are_a_stream():
    assert make(reference="adapter:sft").reference_mode == "auto"
    precomputed = make(reference="adapter:sft", precompute_ref_log_probs=True)
    assert (precomputed.reference, precomputed.reference_mode) == ("adapter:sft", "cached")


def test_a_moving_reference_has_the_papers_defaults():
    moving = make(sync_ref_model=True)
    assert (moving.ref_model_mixup_alpha, moving.ref_model_sync_steps) == (0.6, 512)


def test_bfloat16_is_off_without_cuda_unless_asked_for():
    assert make().bf16 is False
    assert make(bf16=True).bf16 is True


def test_an_unnamed_loss_follows_the_data():
    assert make().objective_for(frozenset({"unpaired"})).name == "kto"
    assert make().objective_for(frozenset({"paired"})).name == "dpo"
    assert make().objective_for(frozenset({"ranked"})).name == "dpo"
    weighed = make(desirable_weight=1.0, undesirable_weight=1.0)
    assert weighed.objective_for(frozenset({"paired"})).name == "kto"


def test_every_field_of_ours_is_described_by_its_help():
    inherited = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
    for field in dataclasses.fields(PreferenceConfig):
        if field.name not in inherited:
            assert len(field.metadata["help"]) > 15, field.name


def test_options_of_every_loss_are_described_by_loss_options():
    ours = {field.name: field for field in dataclasses.fields(PreferenceConfig)}
    for option in dataclasses.fields(LossOptions):
        assert ours[option.name].metadata == option.metadata
        assert ours[option.name].default in (option.default, None)


def test_copies_keep_the_token_and_files_do_not():
    config = make(hub_token="hf_secret", loss_kwargs={"beta": 0.2})
    assert copy.copy(config).hub_token == copy.deepcopy(config).hub_token == "hf_secret"
    assert copy.deepcopy(config).loss_kwargs is not config.loss_kwargs
    written = pickle.dumps(config)
    assert b"hf_secret" not in written
    assert pickle.loads(written).objective.terms[0].hyperparameters == {"beta": 0.2}
