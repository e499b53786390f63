import pytest
import torch

from prefopt.losses import VOCABULARY
from prefopt.objective import parse_objective
from prefopt.objective.inputs import (
    _COMPUTED,
    Completions,
    loss_inputs,
    term_counts,
    term_output,
    term_weights,
)
from prefopt.objective.preference_index import Ranking
from tests.indices import make_index

PER_TOKEN = torch.tensor([-1.0, -2.0, -4.0, -0.5, -3.0, -7.0])
KNOWN = Completions(
    logps=torch.tensor([-3.0, -4.0, -10.5]),
    lengths=torch.tensor([2, 1, 3]),
    ref_logps=torch.tensor([-2.0, -5.0, -8.0]),
    per_token_logps=PER_TOKEN,
    ref_per_token_logps=2 * PER_TOKEN,
    log_collisions=torch.tensor([-3.0, -4.0, -4.5]),
    scalars={"kl": torch.tensor(0.25), "mean_margin": torch.tensor(-1.0)},
)
PAIRS = {"chosen": [0, 2], "rejected": [1, 0]}


def inputs_of(loss, index, known=KNOWN):
    (term,) = parse_objective(loss).terms
    return [
        {name: value.tolist() for name, value in inputs.items()}
        for inputs in loss_inputs(term, index, known)
    ]


def test_every_quantity_of_the_vocabulary_that_is_not_a_scalar_is_computed():
    assert {*_COMPUTED} == {spec.quantity for spec in VOCABULARY.values() if not spec.scalar}


def test_a_loss_on_pairs_takes_both_completions_of_each():
    (found,) = inputs_of("dpo", make_index(**PAIRS))
    assert found == {
        "chosen_logps": [-3.0, -10.5],
        "rejected_logps": [-4.0, -3.0],
        "ref_chosen_logps": [-2.0, -8.0],
        "ref_rejected_logps": [-5.0, -2.0],
    }


def test_heads_are_as_many_first_tokens_as_the_shorter_completion_has():
    (found,) = inputs_of("ld_dpo", make_index(**PAIRS))
    assert found["chosen_head_logps"] == [-1.0, -3.5]
    assert found["rejected_head_logps"] == [-4.0, -3.0]
    assert found["ref_chosen_head_logps"] == [-2.0, -7.0]


def test_what_the_data_do_not_say_of_pairs_has_a_default():
    (found,) = inputs_of("sppo", make_index(**PAIRS, preference_probabilities=[0.75, 1.0]))
    assert found["chosen_win_rates"] == [0.75, 1.0]
    assert found["rejected_win_rates"] == [0.25, 0.0]
    (found,) = inputs_of("sppo", make_index(**PAIRS, chosen_win_rates=[0.5, 0.6]))
    assert found["chosen_win_rates"] == pytest.approx([0.5, 0.6])
    assert inputs_of("odpo", make_index(**PAIRS))[0]["margins"] == [0.0, 0.0]
    assert inputs_of("soft_dpo", make_index(**PAIRS))[0]["preference_probabilities"] == [1.0, 1.0]


def test_a_loss_on_unpaired_data_takes_completions_labels_and_the_estimate():
    (found,) = inputs_of("kto", make_index(unpaired=[2, 0], labels=[True, False]))
    assert found == {
        "logps": [-10.5, -3.0],
        "ref_logps": [-8.0, -2.0],
        "desirable": [True, False],
        "kl": 0.25,
    }


def test_a_loss_on_rankings_is_given_those_of_each_size_apart():
    rankings = (
        Ranking(torch.tensor([[2, 1]]), torch.tensor([[1.0, 0.0]])),
        Ranking(torch.tensor([[0, 2, 1]]), torch.tensor([[9.0, 5.0, 5.0]])),
    )
    two, three = inputs_of("infonca", make_index(rankings=rankings))
    assert two["ranked_logps"] == [[-10.5, -4.0]]
    assert three["ref_ranked_logps"] == [[-2.0, -8.0, -5.0]]
    assert three["ranked_scores"] == [[9.0, 5.0, 5.0]]


def test_what_is_not_known_is_left_out_and_the_loss_says_so():
    known = Completions(KNOWN.logps, KNOWN.lengths)
    (found,) = inputs_of("dpo", make_index(**PAIRS), known)
    assert {*found} == {"chosen_logps", "rejected_logps"}
    (term,) = parse_objective("ld_dpo").terms
    with pytest.raises(TypeError, match=r"needs ref_chosen_logps .* chosen_head_logps"):
        term_output(term, make_index(**PAIRS), known)


@pytest.mark.parametrize(
    ("loss", "count"), [("dpo", 2), ("ld_dpo", 2), ("sft", 5), ("kto", 1), ("infonca", 0)]
)
def test_counts_are_known_before_any_log_prob(loss, count):
    (term,) = parse_objective(loss).terms
    index = make_index(**PAIRS, unpaired=[1], labels=[True], preferred=[0, 2])
    assert float(term_counts(term, index, KNOWN.lengths)) == count


def test_weights_are_those_of_the_data():
    (term,) = parse_objective("dpo").terms
    assert term_weights(term, make_index(**PAIRS), KNOWN) is None
    index = make_index(**PAIRS, pair_weights=[0.0, 3.0])
    assert term_weights(term, index, KNOWN).tolist() == [0.0, 3.0]
    losses = term_output(term, index, KNOWN).losses
    plain = term_output(term, make_index(**PAIRS), KNOWN).losses
    assert losses.tolist() == pytest.approx([0.0, 3 * float(plain[1])])
