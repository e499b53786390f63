"""Every registered loss holds the contract, and each check of it can fail."""

import pytest
import torch

from prefopt.losses import Loss, LossOutput, get_loss, list_losses
from prefopt.losses.contract import (
    CHECKS,
    ContractError,
    a_loss_of_prefopt_has_what_the_guide_is_made_of,
    broken_checks,
    docstring_has_source_departures_and_every_parameter,
    gradient_reaches_every_policy_log_prob_and_no_running_scalar,
    guide_gaps,
    half_precision_is_computed_with_in_float32,
    unit_counts_are_one_positive_number_per_example,
)
from prefopt.losses.dpo import dpo_loss


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", [loss.name for loss in list_losses()])
def test_every_loss_holds(name, check):
    check(get_loss(name))


def check_named(name):
    """Return one check of the contract."""
    return next(check for check in CHECKS if check.__name__ == name)


def pair_loss(compute):
    """Return a loss on pairs without reference that fails where ``compute`` does."""

    def wrong_loss(chosen_logps, rejected_logps, *, beta=0.5):
        """Return a wrong loss.

        Source: none. Departures from it: many.

        Args:
            chosen_logps: Log-prob of the chosen completion.
            rejected_logps: Log-prob of the rejected completion.
            beta: Factor.

        Returns:
            Losses.
        """
        return compute(chosen_logps, rejected_logps, beta)

    return wrong_loss


def output(losses, rewards=None):
    return LossOutput(losses, rewards, rewards)


def unlogged(c, r, b):
    return output(-torch.sigmoid(b * (c - r)).log())


def in_float32(c, r, b):
    return output((b * (r - c)).float())


def by_place(c, r, b):
    return output(b * (r - c) * torch.arange(1, len(c) + 1))


def by_batch(c, r, b):
    return output(b * (r - c) * (1 + (c - r).mean()))


BROKEN = {
    "losses_are_one_per_example_with_gradient": (
        lambda c, r, b: output((b * (r - c)).mean()),
        r"losses: shape \(\), expected \(5,\)",
    ),
    "a_single_example_keeps_its_dimension": (
        lambda c, r, b: output((b * (r - c)).squeeze()),
        r"losses of one example: shape \(\), expected \(1,\)",
    ),
    "rewards_are_detached_one_per_completion_and_of_the_data_kind": (
        lambda c, r, b: output(b * (r - c), b * c),
        "chosen_rewards carry gradient",
    ),
    "gradient_reaches_every_policy_log_prob_and_no_running_scalar": (
        lambda c, r, b: output(b * (r.detach() - c)),
        "no gradient reaches rejected_logps",
    ),
    "float64_stays_float64": (in_float32, "float64 inputs give losses in torch.float32"),
    "finite_with_finite_gradient_at_a_thousand_nats_in_float32": (
        unlogged,
        r"losses: not finite at chosen_logps=\[-1000.0\], rejected_logps=\[0.0\]",
    ),
    "an_example_does_not_depend_on_its_place_in_the_batch": (by_place, "with its place"),
    "an_example_does_not_depend_on_the_others_unless_batch_dependent": (
        by_batch,
        "batch_dependent=True",
    ),
    "defaults_are_accepted_and_every_number_among_them_has_an_effect": (
        lambda c, r, b: output(r - c),
        "beta has no effect",
    ),
    "pickles": (lambda c, r, b: output(b * (r - c)), "cannot be pickled"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_check_fails_with_what_is_wrong(name):
    compute, message = BROKEN[name]
    with pytest.raises(ContractError, match=message):
        check_named(name)(Loss("wrong", pair_loss(compute)))


def test_gradient_into_a_running_scalar_is_refused():
    def leaky_loss(logps, desirable, kl):
        return LossOutput((kl - logps) * desirable.float())

    with pytest.raises(ContractError, match=r"gradient flows into kl: use kl\.detach\(\)"):
        gradient_reaches_every_policy_log_prob_and_no_running_scalar(Loss("leaky", leaky_loss))


def test_a_loss_that_loses_float32_is_refused():
    class Raw(Loss):
        """A loss called without the registry's conversion to float32."""

        def __call__(self, **values):
            return self.function(**values)

    raw = Raw("raw", pair_loss(lambda c, r, b: output(b * (r - c))))
    with pytest.raises(ContractError, match=r"losses are torch\.bfloat16 for torch\.bfloat16"):
        half_precision_is_computed_with_in_float32(raw)


def test_counts_must_be_positive():
    loss = Loss("wrong", dpo_loss, counts=lambda chosen_logps: torch.zeros_like(chosen_logps))
    with pytest.raises(ContractError, match="a unit count is not greater than 0"):
        unit_counts_are_one_positive_number_per_example(loss)


@pytest.mark.parametrize(
    ("old", "message"),
    [
        ("Source: none.", "the docstring has no paragraph 'Source:"),
        ("Departures from it: many.", "lacks 'Departures from it: none"),
        ("beta: Factor.", "Args section lacks beta"),
    ],
)
def test_a_docstring_must_be_complete(old, message):
    function = pair_loss(lambda c, r, b: output(b * (r - c)))
    function.__doc__ = function.__doc__.replace(old, "")
    with pytest.raises(ContractError, match=message):
        docstring_has_source_departures_and_every_parameter(Loss("wrong", function))


def test_a_loss_of_prefopt_must_have_what_the_guide_is_made_of_and_others_may():
    function = pair_loss(lambda c, r, b: output(b * (r - c)))
    loss = Loss("wrong", function)
    gaps = [
        "family= in register_loss",
        "'Use it when:' in the docstring",
        "'Not when:' in the docstring",
    ]
    assert guide_gaps(loss) == gaps
    a_loss_of_prefopt_has_what_the_guide_is_made_of(loss)
    function.__module__ = "prefopt.losses.wrong"
    with pytest.raises(ContractError, match=f"it lacks {', '.join(gaps)}"):
        a_loss_of_prefopt_has_what_the_guide_is_made_of(Loss("wrong", function))
    function.__doc__ = function.__doc__.replace("Source:", "Not when: never. Source:")
    function.__doc__ += "\n\nUse it when: always."
    assert guide_gaps(Loss("wrong", function, family="margin")) == []


def test_an_error_of_the_loss_itself_is_what_is_wrong():
    def refuse(c, r, b):
        raise RuntimeError("out of ideas")

    broken = broken_checks(Loss("wrong", pair_loss(refuse)))
    assert broken["float64_stays_float64"] == "the loss raised RuntimeError: out of ideas"
    assert set(broken) == {check.__name__ for check in CHECKS} - {
        "unit_counts_are_one_positive_number_per_example",
        "docstring_has_source_departures_and_every_parameter",
        "a_loss_of_prefopt_has_what_the_guide_is_made_of",
    }


def test_a_good_loss_has_no_broken_checks():
    assert broken_checks(get_loss("dpo")) == {}


def drifting_loss(
    chosen_logps, rejected_logps, chosen_divergences, rejected_divergences, *, beta=0.5
):
    """Return the difference, as if nobody had asked for the divergences.

    Source: none. Departures from it: many.

    Args:
        chosen_logps: Log-prob of the chosen completion.
        rejected_logps: Log-prob of the rejected completion.
        chosen_divergences: Ignored.
        rejected_divergences: Ignored.
        beta: Factor.
    """
    return LossOutput(beta * (rejected_logps - chosen_logps))


def test_a_loss_that_ignores_what_it_takes_is_refused():
    broken = broken_checks(Loss("drifting", drifting_loss))
    assert list(broken) == ["every_input_has_an_effect"]
    assert "chosen_divergences has no effect" in broken["every_input_has_an_effect"]
