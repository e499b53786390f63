"""The records of the inputs: each agrees with what else is known of it."""

import pytest
import torch

from prefopt.losses.vocabulary import SCALARS, VOCABULARY, InputSpec, counterpart, specs_of

EVERY = pytest.mark.parametrize("spec", VOCABULARY.values(), ids=lambda spec: spec.name)


@EVERY
def test_made_up_values_have_the_shape_and_the_type_of_the_input(spec):
    values = spec.made_up(size=5, places=3, dtype=torch.float64)
    assert values.shape == {(): (), ("B",): (5,), ("B", "K"): (5, 3)}[spec.shape]
    wanted = {"tokens": torch.int64, "bool": torch.bool}.get(spec.unit, torch.float64)
    assert values.dtype == wanted
    assert values.requires_grad == spec.differentiable
    assert spec.examples(5, 3).shape == values.shape
    assert spec.examples().is_floating_point() == values.is_floating_point()


@EVERY
def test_made_up_values_are_the_same_at_every_call_and_others_under_another_seed(spec):
    assert torch.equal(spec.made_up(5, 3), spec.made_up(5, 3))
    assert not torch.equal(spec.made_up(5, 3), spec.made_up(5, 3, seed=1))


def test_side_quantity_and_reference_tell_every_input_from_the_others():
    found = {(spec.side, spec.quantity, spec.of_reference) for spec in VOCABULARY.values()}
    assert len(found) == len(VOCABULARY)


def test_every_input_of_the_reference_is_a_constant_with_a_counterpart_of_the_policy():
    for spec in VOCABULARY.values():
        if spec.of_reference:
            assert spec.needs_reference
            assert not spec.differentiable
            policy = VOCABULARY[counterpart(spec.name)]
            assert policy.differentiable
            assert counterpart(policy.name, of_reference=True) == spec.name


def test_a_meaning_ends_with_shape_and_unit():
    def meaning(**options):
        return InputSpec("x", "pair", "x", "what it is", torch.rand, 1.0, **options).meaning

    assert meaning(unit="nats") == "what it is; (B,), nats"
    assert meaning(shape=("B", "K")) == "what it is; (B, K)"
    assert meaning(shape=()) == "what it is; ()"


@pytest.mark.parametrize(
    ("name", "asked", "found"),
    [
        ("chosen_logps", {"quantity": "head_logps"}, "chosen_head_logps"),
        (
            "ref_rejected_logps",
            {"quantity": "head_logps", "of_reference": True},
            "ref_rejected_head_logps",
        ),
        ("rejected_divergences", {"quantity": "lengths"}, "rejected_lengths"),
        ("ref_logps", {"quantity": "lengths"}, "lengths"),
        ("ranked_logps", {"of_reference": True}, "ref_ranked_logps"),
    ],
)
def test_a_counterpart_is_of_the_same_side(name, asked, found):
    assert counterpart(name, **asked) == found


def test_a_counterpart_that_does_not_exist_is_an_error():
    with pytest.raises(ValueError, match="there are no head_logps beside the input 'ranked_logps'"):
        counterpart("ranked_logps", quantity="head_logps")


def test_means_over_a_batch_or_over_training_are_the_scalars():
    assert {"kl", "mean_kl", "mean_log_ratio", "mean_margin"} == SCALARS
    assert [spec.name for spec in specs_of(["kl", "logps"])] == ["kl", "logps"]
