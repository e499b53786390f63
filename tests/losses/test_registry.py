import sys
import types
from importlib.metadata import EntryPoint

import pytest
import torch
from torch import Tensor

from prefopt.losses import Loss, LossOutput, get_loss, list_losses, register_loss, registry

FOUR = {
    name: torch.tensor([-1.0, -2.0])
    for name in ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
}


def margin_loss(chosen_logps: Tensor, rejected_logps: Tensor, *, scale: float = 1.0) -> LossOutput:
    """Margin: the plain difference.

    Source: nobody 2026,
    Eq. 1. Departures from it: it is made up.
    """
    return LossOutput(scale * (rejected_logps - chosen_logps))


def test_the_losses_of_the_package_are_listed_by_name():
    names = [loss.name for loss in list_losses()]
    assert names == sorted(names)
    assert {*names} >= {"discopop", "dpo", "hinge", "ipo", "kto", "orpo", "sft", "slic"}


@pytest.mark.parametrize(
    ("name", "kind", "needs_reference"),
    [
        ("dpo", "paired", True),
        ("ipo", "paired", True),
        ("hinge", "paired", True),
        ("discopop", "paired", True),
        ("kto", "unpaired", True),
        ("slic", "paired", False),
        ("orpo", "paired", False),
        ("sft", "preferred", False),
    ],
)
def test_data_kind_and_reference_are_read_from_the_signature(name, kind, needs_reference):
    loss = get_loss(name)
    assert (loss.data_kind, loss.needs_reference) == (kind, needs_reference)


def test_a_loss_that_takes_what_is_known_of_pairs_is_a_paired_one():
    assert Loss("mine", lambda chosen_logps, margins: None).data_kind == "paired"


def test_inputs_and_defaults_are_read_from_the_signature():
    loss = get_loss("dpo")
    assert loss.inputs == tuple(FOUR)
    assert loss.hyperparameters == {"beta": 0.1, "label_smoothing": 0.0}


def test_summary_and_source_are_read_from_the_docstring_of_the_module():
    loss = get_loss("hinge")
    assert loss.summary == "Hinge: the RSO hinge on the reward margin, zero once the margin is 1"
    assert loss.source == "Liu et al. 2023, arXiv:2309.06657 (RSO), hinge-norm loss"
    assert loss.departures == "none"


def test_a_source_in_the_functions_own_docstring_comes_first(monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "__doc__", "Several.\n\nSource: the module's.")
    loss = Loss("margin", margin_loss)
    assert loss.summary == "Margin: the plain difference"
    assert loss.source == "nobody 2026, Eq. 1"
    assert loss.departures == "it is made up"


def test_a_function_without_docstring_can_be_a_loss():
    loss = Loss("bare", lambda chosen_logps: LossOutput(-chosen_logps))
    assert (loss.summary, loss.source, loss.data_kind) == ("", "", "preferred")


@pytest.mark.usefixtures("scratch_registry")
def test_a_registered_function_stays_a_function_and_is_found_by_name_and_alias():
    assert register_loss("margin", aliases=["gap"])(margin_loss) is margin_loss
    assert get_loss("gap") is get_loss("margin")
    assert get_loss("margin").function is margin_loss
    assert "margin" in [loss.name for loss in list_losses()]


@pytest.mark.usefixtures("scratch_registry")
@pytest.mark.parametrize(("name", "aliases"), [("dpo", []), ("sigmoid", []), ("mine", ["rso"])])
def test_a_taken_name_or_alias_raises(name, aliases):
    with pytest.raises(ValueError, match="is taken by"):
        register_loss(name, aliases=aliases)(margin_loss)
    assert get_loss("dpo").function is not margin_loss


@pytest.mark.usefixtures("scratch_registry")
def test_registering_the_same_function_again_replaces_it():
    register_loss("margin", aliases=["gap"])(margin_loss)
    again = types.FunctionType(margin_loss.__code__, globals(), "margin_loss")
    again.__kwdefaults__ = {"scale": 2.0}
    register_loss("margin")(again)
    assert get_loss("margin").hyperparameters == {"scale": 2.0}
    with pytest.raises(ValueError, match="unknown loss 'gap'"):
        get_loss("gap")


def test_an_unknown_name_raises_with_the_nearest_and_where_all_are():
    with pytest.raises(ValueError, match="unknown loss 'IPOO'; did you mean 'ipo'") as error:
        get_loss("IPOO")
    assert "kto" not in str(error.value)
    assert f"`prefopt losses` lists all {len(list_losses())}" in str(error.value)


@pytest.mark.parametrize(
    ("name", "loss"),
    [("DPO", "dpo"), ("SimPO", "simpo"), ("LN-DPO", "ln_dpo"), ("Sigmoid", "dpo")],
)
def test_a_loss_is_found_in_any_case(name, loss):
    assert get_loss(name).name == loss
    assert get_loss(loss).is_called(name)
    assert not get_loss("kto").is_called(name)


@pytest.mark.usefixtures("scratch_registry")
def test_a_name_that_is_spelt_exactly_so_comes_first():
    register_loss("Dpo")(margin_loss)
    assert get_loss("Dpo").function is margin_loss
    assert get_loss("dpo").function is not margin_loss


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda chosen_logits: None,
            "nothing delivers an input called 'chosen_logits'; did you me",
        ),
        (lambda chosen_logps, scale=1.0: None, "'scale' must be a tensor without default"),
        (lambda *chosen_logps: None, "'chosen_logps' must be a tensor without default"),
        (lambda chosen_logps, *, scale: None, "hyper-parameter 'scale' has no default"),
        (lambda logps: None, "belong to no data"),
        (lambda chosen_logps, rejected_logps, logps, desirable: None, "paired and unpaired data"),
        (lambda chosen_logps, ranked_logps: None, "paired and ranked data"),
        (lambda chosen_lengths, kl: None, "belong to no data"),
    ],
)
def test_a_signature_outside_the_contract_raises(function, message):
    with pytest.raises(ValueError, match=message):
        Loss("mine", function)


def test_counts_may_only_ask_for_what_the_loss_has():
    with pytest.raises(ValueError, match=r"counts takes \['chosen_lengths'\]"):
        Loss("mine", margin_loss, counts=lambda chosen_lengths: chosen_lengths)


def test_counts_see_the_losss_defaults_and_what_is_set():
    def counts(chosen_logps, *, scale):
        return torch.full_like(chosen_logps, scale)

    loss = Loss("mine", margin_loss, counts=counts)
    assert loss.unit_counts(FOUR).tolist() == [1.0, 1.0]
    assert loss.unit_counts(FOUR, {"scale": 3.0}).tolist() == [3.0, 3.0]


def test_counts_are_one_each_without_a_function():
    assert get_loss("dpo").unit_counts(FOUR, {"beta": 0.5}).tolist() == [1.0, 1.0]


def test_calling_with_an_unknown_name_raises_and_lists_what_exists():
    with pytest.raises(
        TypeError, match=r"does not take 'tau'; inputs: chosen_logps.*beta, label_sm"
    ):
        get_loss("dpo")(**FOUR, tau=0.1)


def test_calling_without_the_reference_raises():
    inputs = {**FOUR, "ref_rejected_logps": None}
    del inputs["ref_chosen_logps"]
    with pytest.raises(
        TypeError, match=r"needs ref_chosen_logps .*; ref_rejected_logps .reference"
    ):
        get_loss("dpo")(**inputs)


def test_calling_with_numbers_raises():
    with pytest.raises(TypeError, match="chosen_logps must be a tensor, got list"):
        get_loss("dpo")(**{**FOUR, "chosen_logps": [-1.0, -2.0]})


def test_calling_with_shapes_that_would_broadcast_raises():
    with pytest.raises(ValueError, match=r"differ in shape: .*'rejected_logps': \(2, 1\)"):
        get_loss("dpo")(**{**FOUR, "rejected_logps": torch.zeros(2, 1)})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dpo", {"tau": 0.1}, "loss 'dpo' has no hyper-parameter 'tau'; it takes: beta, label_smo"),
        ("dpo", {"beta": "0.1"}, "loss 'dpo': beta must be a number, got '0.1'"),
        ("dpo", {"beta": True}, "loss 'dpo': beta must be a number, got True"),
        ("dpo", {"beta": None}, "loss 'dpo': beta must be a number, got None"),
        ("ipo", {"normalize": 1}, "loss 'ipo': normalize must be of type str, got 1"),
        ("kto", {"beta": -1}, "beta must be greater than 0"),
        ("sft", {"normalize": "mean"}, "normalize must be 'token' or 'sequence'"),
    ],
)
def test_hyperparameters_are_checked_without_data(name, options, message):
    with pytest.raises(ValueError, match=message):
        get_loss(name).check_hyperparameters(options)


def test_an_integer_is_a_number():
    get_loss("dpo").check_hyperparameters({"beta": 1})


@pytest.fixture
def plug_in(scratch_registry, monkeypatch, tmp_path):
    """Return a function that installs entry points to a module with the given source."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(source, *values):
        (tmp_path / "prefopt_plug_in.py").write_text("from prefopt.losses import *\n" + source)
        points = [
            EntryPoint(f"point{i}", value, "prefopt.losses") for i, value in enumerate(values)
        ]
        monkeypatch.setattr(registry, "entry_points", lambda group: points)
        monkeypatch.setattr(registry, "_entry_points_loaded", False)

    yield install
    sys.modules.pop("prefopt_plug_in", None)


DECORATED = """
@register_loss("theirs", aliases=["other"])
def their_loss(chosen_logps, rejected_logps, *, scale=1.0):
    return LossOutput(scale * (rejected_logps - chosen_logps))
"""


@pytest.mark.parametrize("value", ["prefopt_plug_in", "prefopt_plug_in:their_loss"])
def test_an_entry_point_may_name_a_module_or_function_that_the_decorator_registers(plug_in, value):
    plug_in(DECORATED, value)
    assert get_loss("other").name == "theirs"
    assert "point0" not in [loss.name for loss in list_losses()]


def test_an_entry_point_may_name_a_plain_function_which_takes_its_name(plug_in):
    plug_in("def f(chosen_logps): return LossOutput(-chosen_logps)", "prefopt_plug_in:f")
    assert get_loss("point0").data_kind == "preferred"


def test_an_entry_point_that_fails_warns_and_the_others_are_loaded(plug_in):
    plug_in(DECORATED, "prefopt_plug_in:missing", "prefopt_plug_in")
    with pytest.warns(RuntimeWarning, match=r"'point0' .* are not available: AttributeError"):
        assert get_loss("theirs").name == "theirs"


def test_entry_points_are_loaded_once(plug_in, monkeypatch):
    plug_in(DECORATED, "prefopt_plug_in")
    list_losses()
    monkeypatch.setattr(registry, "entry_points", lambda group: pytest.fail("looked up again"))
    assert get_loss("theirs").name == "theirs"


@pytest.mark.usefixtures("scratch_registry")
def test_the_guide_lines_of_a_docstring_are_read():
    def advised_loss(chosen_logps, rejected_logps):
        """Sum: of two.

        Source: arXiv:1234.56789. Departures from it: none.
        Use it when: it is
        the best. Not when: it is not.
        Differs from: TRL adds one.
        Differs from: Liger adds two: 1 and 1.

        Use it when nothing else helps.
        """
        return LossOutput(chosen_logps + rejected_logps)

    register_loss("advised", family="sums")(advised_loss)
    loss = get_loss("advised")
    assert (loss.family, loss.source, loss.departures) == ("sums", "arXiv:1234.56789", "none")
    assert (loss.use_when, loss.not_when) == ("it is the best", "it is not")
    assert loss.differs_from == ("TRL adds one", "Liger adds two: 1 and 1")


def test_what_a_docstring_does_not_say_is_empty():
    def scratch_loss(chosen_logps, rejected_logps):
        return None

    loss = Loss("silent", scratch_loss)
    assert (loss.family, loss.use_when, loss.not_when, loss.differs_from) == ("", "", "", ())


def test_offsets_are_added_to_the_rewards_of_chosen_completions_where_there_are_any():
    losses = torch.zeros(2)
    output = LossOutput(losses, torch.ones(2), torch.ones(2)).add_to_chosen(
        torch.tensor([0.5, 2.0])
    )
    assert output.chosen_rewards.tolist() == [1.5, 3.0]
    assert output.rejected_rewards.tolist() == [1.0, 1.0]
    assert LossOutput(losses).add_to_chosen(torch.ones(2)) == LossOutput(losses)
