"""A text scored in any company has the log-probs it has alone; models are found that need care."""

from types import SimpleNamespace

import pytest
import torch

from prefopt.engine import Scorer, build_layout
from prefopt.engine.company import (
    ANY,
    Company,
    known_company,
    original_window,
    reset_positions,
    rope_types,
)
from prefopt.engine.layout import Example
from tests.engine.companions import COMPANIONS, WINDOWED, companion, uneven_examples
from tests.engine.trees import assert_equal_gradients, gradients, plain_logps
from tests.models import MULTIMODAL, PADDED_ONLY, SHARING, tiny_model


def alone_logps(model, examples):
    """Return the log-probs of each completion from a forward pass of its own; (N,)."""
    logps = []
    for example in examples:
        for completion in example.completion_ids:
            reset_positions(model)  # else it would remember longer texts
            logps.append(plain_logps(model, [Example(example.prompt_ids, [completion])]))
    return torch.cat(logps)


def own_messages(caplog):
    return [record.message for record in caplog.records if record.name == "prefopt"]


def scored(model, examples):
    scorer = Scorer(model)
    return scorer.score(build_layout(examples, scorer.layout)).logps


@pytest.mark.parametrize("name", COMPANIONS)
def test_a_plain_batch_of_such_a_model_is_not_what_its_texts_are_alone(name):
    """Else the tests below would show nothing."""
    model, examples = companion(name), uneven_examples()
    batch = build_layout(examples, "padded")
    mask = batch.attention_mask.long()
    logits = model(input_ids=batch.input_ids, attention_mask=mask).logits
    logps = logits.flatten(0, 1)[batch.predict_positions].log_softmax(-1)
    together = logps.gather(-1, batch.target_ids[:, None])[batch.token_index, 0]
    sums = torch.zeros(len(batch.lengths)).index_add(0, batch.completion_index, together)
    assert (sums - alone_logps(model, examples)).abs().max() > 1e-2


@pytest.mark.parametrize("name", COMPANIONS)
def test_a_batch_gives_each_text_what_it_has_alone_and_so_do_its_gradients(name):
    model, examples = companion(name), uneven_examples()
    wanted = alone_logps(model, examples)
    wanted_gradients = gradients(model, wanted)
    got = scored(model, examples)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=3e-5)
    assert_equal_gradients(gradients(model, got), wanted_gradients)


@pytest.mark.parametrize("name", WINDOWED)
def test_texts_within_the_window_share_prefixes_where_no_other_is_to_come(name, caplog):
    model = companion(name)
    short = [one for one in uneven_examples() if max(map(len, one.texts())) <= 16]
    scorer = Scorer(model, longest=16)
    assert scorer.layout == "shared_prefix"
    assert not own_messages(caplog)
    got = scorer.score(build_layout(short)).logps
    torch.testing.assert_close(got, alone_logps(companion(name), short), rtol=1e-5, atol=3e-5)
    with pytest.raises(ValueError, match=r'a text has 17 tokens, more than .* layout="padded"'):
        scorer.score(build_layout(uneven_examples()[2:3]))


@pytest.mark.parametrize("name", WINDOWED)
def test_a_model_that_has_seen_a_long_text_computes_short_ones_as_before(name):
    model, examples = companion(name), uneven_examples()
    model(input_ids=torch.arange(90)[None])
    torch.testing.assert_close(
        scored(model, examples), alone_logps(companion(name), examples), rtol=1e-5, atol=3e-5
    )


@pytest.mark.parametrize("name", COMPANIONS)
def test_what_is_done_is_said(name, caplog):
    scorer = Scorer(companion(name))
    assert "each by itself, since" in str(scorer)
    assert len(own_messages(caplog)) in (1, 2)
    with pytest.raises(ValueError, match="cannot share prefixes"):
        Scorer(companion(name), layout="shared_prefix")


def test_positions_that_a_configuration_does_not_name_are_found_by_scoring_beyond_the_window():
    model = tiny_model("llama", max_position_embeddings=20)
    rotary = model.model.rotary_emb
    plain = type(rotary).forward

    def stretched(x, position_ids):
        longest = int(position_ids.max()) + 1
        return plain(rotary, x, position_ids / (2 if longest > 20 else 1))

    rotary.forward = stretched
    scorer = Scorer(model)
    assert scorer.company == Company("equal", 20, "they change beside a longer text")
    examples = uneven_examples()
    wanted = plain_logps(model, examples)
    got = scorer.score(build_layout(examples, scorer.layout)).logps
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=3e-5)


@pytest.mark.parametrize("name", [*SHARING, *PADDED_ONLY, *MULTIMODAL])
def test_ordinary_models_compute_all_texts_together(name):
    scorer = Scorer(tiny_model(name))
    assert scorer.company == ANY
    assert "training mode" not in str(scorer)


def test_models_that_compute_otherwise_in_training_are_asked_in_training_mode():
    model = tiny_model("llama")
    mlp = model.model.layers[0].mlp
    plain = mlp.forward
    mlp.forward = lambda hidden: plain(hidden) * (1.5 if mlp.training else 1.0)
    scorer = Scorer(model)
    assert "scored in training mode" in str(scorer)
    batch = build_layout(uneven_examples(), scorer.layout)
    model.train()
    trained = scorer.score(batch).logps
    model.eval()
    with scorer.evaluating():
        asked = scorer.score(batch).logps
    torch.testing.assert_close(asked, trained)
    assert not model.training


def test_dropout_is_no_such_difference():
    model = tiny_model("gpt2", resid_pdrop=0.5)
    model.train()
    assert "training mode" not in str(Scorer(model))


def test_routers_that_choose_at_random_in_training_are_warned_of(caplog):
    model = tiny_model("mixtral")
    gate = model.model.layers[0].mlp
    plain = gate.forward
    gate.forward = lambda hidden: plain(hidden + torch.randn_like(hidden) * gate.training)
    assert "training mode" not in str(Scorer(model))
    assert ["at random in training" in message for message in own_messages(caplog)] == [True]


def test_groups_are_by_length_beyond_the_window():
    assert ANY.groups([3, 9, 3]) == [[0, 1, 2]]
    assert Company("equal", 4).groups([3, 9, 4, 9, 5]) == [[0, 2], [1, 3], [4]]
    assert Company("none", 0).groups([3, 3]) == [[0], [1]]


def test_only_longer_texts_must_be_kept_apart():
    assert not ANY.may_separate(None)
    company = Company("equal", 16, "of a reason")
    assert [company.may_separate(longest) for longest in (16, 17, None)] == [False, True, True]
    assert str(company) == "texts of more than 16 tokens each by itself, since of a reason"
    assert str(ANY) == "all texts together"


def test_the_window_is_that_of_the_rotary_embeddings():
    assert [known_company(companion(name)).window for name in WINDOWED] == [16] * len(WINDOWED)
    assert known_company(tiny_model("llama")) == ANY
    assert original_window(SimpleNamespace()) is None


def test_rotary_types_are_found_by_layer_and_under_old_names():
    by_layer = {"full": {"rope_type": "linear"}, "sliding": {"rope_type": "default"}, "rest": None}
    assert rope_types(SimpleNamespace(rope_parameters=by_layer)) == {"linear", "default"}
    assert rope_types(SimpleNamespace(rope_scaling={"type": "su"})) == {"su"}
    assert rope_types(SimpleNamespace(rope_scaling=None)) == set()


def test_dynamic_positions_forget_the_longest_text():
    model = companion("dynamic")
    rotary = model.model.rotary_emb
    before = rotary.inv_freq.clone()
    model(input_ids=torch.arange(60)[None])
    assert not torch.equal(rotary.inv_freq, before)
    reset_positions(model)
    assert torch.equal(rotary.inv_freq, before)
    assert rotary.max_seq_len_cached == 16


def test_eight_bit_layers_on_a_gpu_compute_each_text_alone():
    class Linear8bitLt(torch.nn.Linear):
        state = SimpleNamespace(threshold=6.0)

    layer = Linear8bitLt(2, 2)
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace())
    model = SimpleNamespace(modules=lambda: [layer], config=config, device=torch.device("cuda"))
    assert known_company(model).beyond == "none"
    model.device = torch.device("cpu")  # where they are exact in training, and asked so
    assert known_company(model) == ANY
    model.device, layer.state.threshold = torch.device("cuda"), 0.0
    assert "round what they are given" in known_company(model).reason
