"""Options that go with every loss: their values, and that no loss ignores one in silence."""

import itertools
import math
import re
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import logsigmoid

from prefopt.losses import get_loss, list_losses
from prefopt.losses.contract import make_inputs
from prefopt.losses.vocabulary import specs_of
from prefopt.objective import parse_objective
from prefopt.objective.inputs import loss_inputs, term_output
from prefopt.objective.options import (
    LossOptions,
    divergence_scores,
    fit_options,
    scheduled_beta,
    transformed,
    wpo_weights,
)
from tests.equivalence.test_invariance import assert_same_training, run
from tests.models import tiny_model, tiny_rows
from tests.objective.batches import batch
from tests.runs import steps, trainer

EACH = {
    "length_normalize": {"length_normalize": True},
    "f_divergence_type": {"f_divergence_type": "forward_kl"},
    "ld_alpha": {"ld_alpha": 0.3},
    "margin_scale": {"margin_scale": 2.0},
    "beta_schedule": {"beta_schedule": "linear", "beta_final": 0.7},
    "use_weighting": {"use_weighting": True},
}
LOSSES = [loss.name for loss in list_losses()]


def outcome(loss, given=None, progress=0.0, **options):
    """Return losses of the batch under options of every loss, and their gradient by token."""
    (term,) = parse_objective(loss, options=given, loss_options=LossOptions(**options)).terms
    index, completions = batch()
    output = term_output(term.at(progress), index, completions)
    (gradient,) = torch.autograd.grad(output.losses.sum(), completions.per_token_logps)
    return output, gradient


def assert_same(one, other):
    torch.testing.assert_close(one[0].losses, other[0].losses, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one[1], other[1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one[0].chosen_rewards, other[0].chosen_rewards)
    torch.testing.assert_close(one[0].rejected_rewards, other[0].rejected_rewards)


# Every loss and every option ----------------------------------------------------------------------


@pytest.mark.parametrize("option", EACH)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_changes_under_an_option_or_refuses_it(loss, option):
    refused = refusal(get_loss(loss), option)
    if refused:
        assert re.match(rf"{option}=.* cannot be used here: {loss} ", refused)
        with pytest.raises(ValueError, match=re.escape(refused)):
            outcome(loss, **EACH[option])
        return
    changed, gradient = outcome(loss, progress=0.5, **EACH[option])
    plain, _ = outcome(loss)
    assert changed.losses.isfinite().all()
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0
    assert not torch.allclose(changed.losses, plain.losses, rtol=1e-6)


def takers(option):
    losses = [get_loss(name) for name in LOSSES]
    return {loss.name for loss in losses if not refusal(loss, option)}


def refusal(loss, option):
    try:
        fit_options(LossOptions(**EACH[option]), [loss], [{}])
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("option", "takes", "refuses"),
    [
        (
            "length_normalize",
            {"dpo", "cpo", "aot", "plackett_luce", "kto", "bco", "bco_pair", "beta_dpo", "tdpo"},
            {"ipo", "simpo", "orpo"},
        ),
        (
            "f_divergence_type",
            {"ipo", "exo", "plackett_luce", "bco", "bco_pair", "beta_dpo"},
            {"cpo", "aot", "chi_po", "kto", "tdpo"},
        ),
        (
            "ld_alpha",
            {"ipo", "cpo", "aot", "bco_pair", "beta_dpo"},
            {"ld_dpo", "kto", "bco", "tdpo", "sft"},
        ),
        (
            "margin_scale",
            {"hinge", "cpo", "r_dpo", "tdpo"},
            {"odpo", "nca", "ln_dpo", "aot", "kto"},
        ),
        ("beta_schedule", {"dpo", "kto", "simpo"}, {"orpo", "sft"}),
        ("use_weighting", {"dpo", "simpo", "ld_dpo"}, {"aot", "kto", "sft"}),
    ],
)
def test_which_losses_take_an_option(option, takes, refuses):
    found = takers(option)
    assert takes <= found
    assert not refuses & found


def test_f_divergences_go_with_the_losses_they_go_with_in_trl():
    trls = {"dpo", "ln_dpo", "hinge", "ipo", "exo", "robust", "discopop"}
    assert trls <= takers("f_divergence_type")


def test_a_refusal_names_loss_reason_and_what_to_use():
    assert "ipo takes the lengths" in refusal(get_loss("ipo"), "length_normalize")
    assert "`normalize`" in refusal(get_loss("ipo"), "length_normalize")
    assert "ld_dpo weighs tokens itself: use ld_alpha" in refusal(get_loss("ld_dpo"), "ld_alpha")
    chi_po = refusal(get_loss("chi_po"), "f_divergence_type")
    assert "chi_po has a divergence of its own" in chi_po
    assert "leave margin_scale out" in refusal(get_loss("odpo"), "margin_scale")
    assert "no hyper-parameter beta" in refusal(get_loss("orpo"), "beta_schedule")
    kl = refusal(get_loss("kto"), "f_divergence_type")
    assert "kto takes `kl`, which is a KL divergence over whole completions" in kl
    assert "tdpo takes `chosen_divergences`, which is a KL" in refusal(get_loss("tdpo"), "ld_alpha")
    assert "bco is a loss on unpaired data, not pairs" in refusal(get_loss("bco"), "ld_alpha")


def test_a_loss_refuses_options_that_exist():
    assert {name for loss in list_losses() for name in loss.refuses} <= {*EACH}


def test_hyperparameters_decide_what_a_loss_can_take():
    """IPO on sums looks at a margin alone, on means at lengths too."""
    options = LossOptions(margin_scale=1.0)
    parse_objective("ipo", options={"normalize": "sum"}, loss_options=options)
    with pytest.raises(ValueError, match=r"margin_scale=1\.0 cannot be used here: ipo depends"):
        parse_objective("ipo", options={"normalize": "mean"}, loss_options=options)


def test_in_a_sum_an_option_goes_to_the_terms_that_can_take_it():
    options = LossOptions(length_normalize=True, ld_alpha=0.5)
    dpo, ipo, sft = parse_objective("dpo + ipo + 0.2*sft", loss_options=options).terms
    assert dpo.options == options
    assert ipo.options == LossOptions(ld_alpha=0.5)
    assert sft.options == LossOptions()


def test_an_option_that_no_term_can_take_is_an_error_with_the_reason_of_each():
    with pytest.raises(ValueError, match=r"length_normalize=True .* orpo takes .*; sft takes"):
        parse_objective("orpo + sft", loss_options=LossOptions(length_normalize=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"f_divergence_type": "js"}, "f_divergence_type must be 'reverse_kl'"),
        ({"f_alpha_divergence_coef": 0.3}, "no effect without f_divergence_type='alpha"),
        (
            {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": math.inf},
            "must be finite",
        ),
        ({"ld_alpha": 1.1}, "ld_alpha must be from 0 to 1"),
        ({"margin_scale": -1.0}, "margin_scale must be at least 0"),
        ({"beta_schedule": "step"}, "beta_schedule must be"),
        ({"beta_schedule": "linear"}, "needs the beta at its end"),
        ({"beta_final": 0.1}, "beta_schedule='constant' does not go with beta_final"),
    ],
)
def test_values_out_of_range_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        LossOptions(**options)


def test_a_loss_refuses_a_final_beta_out_of_its_range():
    with pytest.raises(ValueError, match="beta must be greater than 0"):
        parse_objective("dpo", loss_options=LossOptions(beta_schedule="linear", beta_final=0.0))


# Lengths ------------------------------------------------------------------------------------------


def test_dpo_per_token_is_ln_dpo():
    assert_same(outcome("dpo", {"beta": 5.0}, length_normalize=True), outcome("ln_dpo"))


def test_cpo_per_token_is_simpo_without_its_margin():
    found, found_gradient = outcome("cpo", {"beta": 2.0}, length_normalize=True)
    wanted, gradient = outcome("simpo", {"beta": 2.0, "gamma": 0.0})
    torch.testing.assert_close(found.losses, wanted.losses)
    torch.testing.assert_close(found_gradient, gradient)


def test_a_ranking_of_two_per_token_is_ln_dpo():
    inputs = {
        "ranked_logps": torch.tensor([[-6.0, -8.0]]),
        "ref_ranked_logps": torch.tensor([[-9.0, -6.0]]),
        "ranked_lengths": torch.tensor([[3, 2]]),
    }
    loss = get_loss("plackett_luce")
    moved = transformed(LossOptions(length_normalize=True), loss, {}, inputs)
    # Log-ratios 3 and -2 over 3 and 2 tokens: 1 and -1 nats per token.
    wanted = -logsigmoid(torch.tensor([0.5 * 2.0]))
    torch.testing.assert_close(loss(**moved, beta=0.5).losses, wanted)


def test_kto_per_token_compares_with_the_kl_estimate_per_token():
    _, completions = batch()
    output, _ = outcome("kto", {"beta": 0.5}, length_normalize=True)
    per_token = (completions.logps - completions.ref_logps).detach() / completions.lengths
    sides = torch.tensor([1.0, 1.0, -1.0, 1.0, 1.0, -1.0])
    torch.testing.assert_close(
        output.losses.detach(), torch.sigmoid(-0.5 * sides * (per_token - 0.07))
    )


def test_tdpo_per_token_takes_its_divergences_per_token_too():
    index, completions = batch()
    output, _ = outcome("tdpo", {"beta": 0.5, "alpha": 0.3}, length_normalize=True)
    log_ratios = (completions.logps - completions.ref_logps).detach() / completions.lengths
    drifts = completions.divergences.detach() / completions.lengths
    chosen, rejected = index.chosen, index.rejected
    margins = log_ratios[chosen] - log_ratios[rejected] - 0.3 * (drifts[rejected] - drifts[chosen])
    torch.testing.assert_close(output.losses.detach(), -logsigmoid(0.5 * margins))


# Divergences --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("divergence", "coefficient", "at_2"),
    [
        ("reverse_kl", 0.5, math.log(2)),
        ("forward_kl", 0.5, 1 - 1 / 2),
        ("js_divergence", 0.5, math.log(2 * 2 / 3)),
        ("alpha_divergence", 0.5, (2**-0.5 - 1) / -0.5),
        ("alpha_divergence", 2.0, 1.0),
        ("alpha_divergence", 0.0, 1 - 1 / 2),  # forward KL
        ("alpha_divergence", 1.0, math.log(2)),  # reverse KL
    ],
)
def test_scores_of_a_ratio_of_2_and_of_1(divergence, coefficient, at_2):
    log_ratios = torch.tensor([2.0, 1.0], dtype=torch.float64).log()
    scores = divergence_scores(log_ratios, divergence, coefficient)
    torch.testing.assert_close(scores, torch.tensor([at_2, 0.0], dtype=torch.float64))


def test_a_divergence_replaces_the_log_ratio():
    index, completions = batch()
    (term,) = parse_objective(
        "dpo", options={"beta": 0.3}, loss_options=LossOptions(f_divergence_type="forward_kl")
    ).terms
    ratios = (completions.logps - completions.ref_logps).detach()
    scores = 1 - torch.exp(-ratios)
    margins = scores[index.chosen] - scores[index.rejected]
    output = term_output(term, index, completions)
    torch.testing.assert_close(output.losses.detach(), -logsigmoid(0.3 * margins))
    torch.testing.assert_close(output.chosen_rewards, 0.3 * scores[index.chosen])


@pytest.mark.parametrize("divergence", ["forward_kl", "js_divergence", "alpha_divergence"])
@pytest.mark.parametrize("loss", sorted(takers("f_divergence_type")))
def test_divergences_are_finite_in_float32_to_a_thousand_nats(loss, divergence):
    loss = get_loss(loss)
    names = [spec.name for spec in specs_of(loss.inputs) if spec.quantity == "logps"]
    inputs = make_inputs(loss, size=2 ** len(names))
    for name, values in zip(
        names, torch.tensor([*itertools.product([0.0, -1e3], repeat=len(names))]).T, strict=True
    ):
        shape = inputs[name].shape
        values = values.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
        inputs[name] = values.clone().requires_grad_()
    if loss.data_kind == "ranked":  # the first of each ranking apart from the others
        inputs[names[0]].data[:, 0] = -500.0
    lengths = [spec.name for spec in specs_of(inputs) if spec.quantity == "lengths"]
    inputs |= {name: torch.ones_like(inputs[name]) for name in lengths}
    moved = transformed(LossOptions(f_divergence_type=divergence), loss, {}, inputs)
    losses = loss(**moved).losses
    torch.autograd.backward(losses.sum())
    assert losses.isfinite().all()
    assert inputs[names[0]].grad.isfinite().all()


# Tails --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_dpo_with_light_tails_is_ld_dpo(alpha):
    assert_same(outcome("dpo", ld_alpha=alpha), outcome("ld_dpo", {"alpha": alpha}))


def test_tokens_beyond_the_shorter_completion_count_by_alpha():
    """CPO, without a reference: the gradient of a tail is alpha times that of the head."""
    index, completions = batch()
    of_first = torch.arange(6).repeat_interleave(completions.lengths)
    index = replace(index, chosen=torch.tensor([0]), rejected=torch.tensor([1]))  # 3, 5 tokens
    (term,) = parse_objective("cpo", loss_options=LossOptions(ld_alpha=0.25)).terms
    losses = term_output(term, index, completions).losses
    (gradient,) = torch.autograd.grad(losses.sum(), completions.per_token_logps)
    longer = gradient[of_first == 1]
    torch.testing.assert_close(longer[3:], 0.25 * longer[:2])
    torch.testing.assert_close(gradient[of_first == 0], -longer[:3])


# Margins of the data ------------------------------------------------------------------------------


def test_dpo_with_a_margin_is_odpo_and_its_rewards_stay_whole():
    odpo = {"alpha": 0.7, "scale": "identity", "beta": 0.2}
    assert_same(outcome("dpo", {"beta": 0.2}, margin_scale=0.7), outcome("odpo", odpo))


def test_a_margin_without_reference_is_taken_off_the_reward():
    index, completions = batch()
    logps = completions.logps.detach()
    margins = logps[index.chosen] - logps[index.rejected]
    output, _ = outcome("cpo", {"beta": 0.5}, margin_scale=2.0)
    wanted = -logsigmoid(0.5 * margins - 2.0 * index.margins)
    torch.testing.assert_close(output.losses.detach(), wanted)


def test_a_margin_per_token_is_simpos_where_the_data_have_the_same_everywhere():
    index, completions = batch()
    index = replace(index, margins=torch.full((6,), 0.4, dtype=torch.float64))
    losses = []
    for name, given, options in (
        ("cpo", {"beta": 2.0}, LossOptions(length_normalize=True, margin_scale=2.5)),
        ("simpo", {"beta": 2.0, "gamma": 1.0}, None),
    ):
        (term,) = parse_objective(name, options=given, loss_options=options).terms
        losses.append(term_output(term, index, completions).losses)
    torch.testing.assert_close(*losses)


# Beta ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "betas"),
    [
        ("linear", [0.5, 0.4, 0.3, 0.1]),
        ("cosine", [0.5, 0.1 + 0.2 * (1 + math.sqrt(0.5)), 0.3, 0.1]),
    ],
)
def test_beta_goes_from_its_own_value_to_the_final_one(schedule, betas):
    options = LossOptions(beta_schedule=schedule, beta_final=0.1)
    found = [scheduled_beta(options, 0.5, progress) for progress in (0, 0.25, 0.5, 1)]
    assert found == pytest.approx(betas)
    (term,) = parse_objective("dpo", options={"beta": 0.5}, loss_options=options).terms
    assert [term.at(progress).beta for progress in (0, 0.25, 0.5, 1)] == pytest.approx(betas)


def test_a_scheduled_beta_is_used_and_logged(tmp_path):
    fields = {"loss_type": "ipo", "loss_kwargs": {"normalize": "sum"}, "learning_rate": 0.0}
    fields |= {"beta": 0.5, "beta_schedule": "linear", "beta_final": 0.1, "max_steps": 4}
    trained = trainer(tmp_path, tiny_rows(8), **fields)
    trained.train()
    logged = steps(trained)
    assert [entry["beta"] for entry in logged] == pytest.approx([0.5, 0.4, 0.3, 0.2])
    # Policy is reference: the loss of IPO is 1 / (2 beta) squared.
    wanted = [(1 / (2 * beta)) ** 2 for beta in (0.5, 0.4, 0.3, 0.2)]
    assert [entry["loss"] for entry in logged] == pytest.approx(wanted, rel=1e-4)


# WPO ----------------------------------------------------------------------------------------------


def test_wpo_weighs_by_usual_tokens_up_to_1():
    logps = torch.tensor([-4.0, -6.0, -1.0], requires_grad=True)
    log_collisions = torch.tensor([-3.0, -3.0, -4.0])
    lengths = torch.tensor([2, 3, 1])
    chosen, rejected = torch.tensor([0, 2]), torch.tensor([1, 0])
    weights = wpo_weights(logps, log_collisions, lengths, chosen, rejected)
    # By token: -1/2, -1 and 3 nats; the second pair would weigh exp(2.5).
    torch.testing.assert_close(weights, torch.tensor([math.exp(-1.5), 1.0]))
    assert not weights.requires_grad


def test_wpo_weighs_the_losses_and_the_weights_of_the_data():
    index, completions = batch()
    pairs = torch.tensor([1.0, 2.0, 0.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    (term,) = parse_objective("dpo", loss_options=LossOptions(use_weighting=True)).terms
    plain, _ = outcome("dpo")
    weighed, _ = outcome("dpo", use_weighting=True)
    both = term_output(term, replace(index, pair_weights=pairs), completions)
    torch.testing.assert_close(both.losses, weighed.losses * pairs)
    assert (weighed.losses <= plain.losses).all()


def test_wpo_in_training_weighs_by_the_models_own_predictions(tmp_path):
    """Policy is reference, so the loss is ln 2 times the mean weight: from plain forwards here."""
    rows, model = tiny_rows(4), tiny_model("llama")
    trained = trainer(
        tmp_path, rows, model=model, use_weighting=True, max_steps=1, learning_rate=0.0
    )
    weights = [pair_weight(model, example) for example in trained.train_dataset]
    assert min(weights) < 0.9  # they say something
    trained.train()
    wanted = math.log(2) * sum(weights) / len(weights)
    assert steps(trained)[0]["loss"] == pytest.approx(wanted, rel=1e-4)


@torch.no_grad()
def pair_weight(model, example):
    total = 0.0
    for completion in example["completion_ids"]:
        ids = torch.tensor([[*example["prompt_ids"], *completion]])
        logps = model(ids).logits[0].log_softmax(-1)
        first = len(example["prompt_ids"])
        predicted = logps[first - 1 : -1]
        chosen = predicted.gather(1, ids[0, first:, None])[:, 0]
        total += float((chosen - (2 * predicted).logsumexp(-1)).mean())
    return math.exp(min(total, 0.0))


# Together, through the trainer --------------------------------------------------------------------

TOGETHER = {
    "length_normalize": True,
    "f_divergence_type": "js_divergence",
    "ld_alpha": 0.5,
    "beta_schedule": "cosine",
    "beta_final": 2.0,
    "beta": 5.0,
}


def together(loss):
    """Return the fields of all those options that a loss takes."""
    names = {name: {name} for name in EACH} | {"beta_schedule": {"beta_schedule", "beta_final"}}
    refused = [names[name] for name in EACH if refusal(get_loss(loss.split()[0]), name)]
    kept = set(TOGETHER).difference(*refused)
    return {"loss_type": loss} | {name: TOGETHER[name] for name in kept}


@pytest.mark.parametrize(
    "loss", ["dpo + 0.1*sft", "aot_unpaired", "kto", "bco", "bco_pair", "beta_dpo", "tdpo"]
)
def test_accumulation_changes_nothing_under_options(tmp_path, loss):
    rows = tiny_rows(16)
    options = together(loss)
    if loss.startswith("dpo"):
        rows = rows.add_column("margin", [0.1 * (index % 5) for index in range(16)])
        options |= {"margin_scale": 0.5, "use_weighting": True}
    whole, parts = (
        run(
            tmp_path / str(cut),
            rows,
            per_device_train_batch_size=8 // cut,
            gradient_accumulation_steps=cut,
            **options,
        )
        for cut in (1, 4)
    )
    assert_same_training(parts, whole, tolerance=3e-5)


@pytest.mark.parametrize("loss", ["dpo", "aot_unpaired", "kto", "bco_pair", "beta_dpo"])
def test_evaluation_under_options_does_not_depend_on_its_batch_size(tmp_path, loss):
    policy, losses = tiny_model("llama"), []
    for batch_size in (1, 16):
        evaluator = trainer(
            tmp_path / str(batch_size),
            tiny_rows(4, seed=1),
            model=policy,
            ref_model=tiny_model("llama", seed=5),
            eval_dataset=tiny_rows(11),
            per_device_eval_batch_size=batch_size,
            **together(loss) | {"use_weighting": loss == "dpo"},
        )
        losses.append(evaluator.evaluate()["eval_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_kto_per_token_evaluates_as_plain_forwards_do(tmp_path):
    policy, reference = tiny_model("llama"), tiny_model("llama", seed=5)
    options = {"loss_type": "kto", "length_normalize": True, "beta": 0.5}
    rows = tiny_rows(9, "unpaired")
    evaluator = trainer(
        tmp_path, rows, model=policy, ref_model=reference, eval_dataset=rows, **options
    )
    metrics = evaluator.evaluate()
    examples = list(evaluator.train_dataset)
    own, mismatched = (
        [
            per_token_log_ratio(policy, reference, row["prompt_ids"], row[column][0])
            for row in examples
        ]
        for column in ("completion_ids", "kl_completion_ids")
    )
    kl = max(0.0, sum(mismatched) / len(mismatched))
    values = [
        0.5 * (ratio - kl) * (1 if row["desirable"][0] else -1)
        for ratio, row in zip(own, examples, strict=True)
    ]
    loss = sum(1 / (1 + math.exp(value)) for value in values) / len(values)
    assert metrics["eval_mean_kl"] == pytest.approx(kl, rel=1e-4, abs=1e-6)
    assert kl > 0.01  # it says something
    assert metrics["eval_loss"] == pytest.approx(loss, rel=1e-5)


@torch.no_grad()
def per_token_log_ratio(policy, reference, prompt, completion):
    ids = torch.tensor([[*prompt, *completion]])
    logps = [
        model(ids)
        .logits[0]
        .log_softmax(-1)[len(prompt) - 1 : -1]
        .gather(1, ids[0, len(prompt) :, None])
        for model in (policy, reference)
    ]
    return float((logps[0] - logps[1]).mean())


def test_a_model_card_names_the_options(tmp_path):
    trained = trainer(tmp_path, tiny_rows(4), ld_alpha=0.5, max_steps=1)
    trained.save_model(str(tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "ld_alpha=0.5" in card
    assert "length_normalize" not in card


def test_options_apply_in_their_order():
    """Tails, then the divergence, then lengths, then the margin of the data."""
    index, completions = batch()
    options = LossOptions(
        ld_alpha=0.5, f_divergence_type="js_divergence", length_normalize=True, margin_scale=0.3
    )
    (term,) = parse_objective("dpo", options={"beta": 2.0}, loss_options=options).terms
    (inputs,) = loss_inputs(term, index, completions)
    # The first pair has 3 and 5 tokens.
    ratios = (completions.per_token_logps - completions.ref_per_token_logps).detach()
    chosen = ratios[:3].sum()
    rejected = ratios[3:6].sum() + 0.5 * ratios[6:8].sum()
    scores = [(math.log(2) + logsigmoid(one)) for one in (chosen, rejected)]
    margin = scores[0] / 3 - scores[1] / 5
    found = (inputs["chosen_logps"] - inputs["ref_chosen_logps"])[0] - (
        inputs["rejected_logps"] - inputs["ref_rejected_logps"]
    )[0]
    torch.testing.assert_close(found.detach(), margin - 0.3 * index.margins[0] / 2.0)


def test_margins_must_be_in_the_data(tmp_path):
    with pytest.raises(ValueError, match="margin"):
        trainer(tmp_path, tiny_rows(4), margin_scale=1.0)
