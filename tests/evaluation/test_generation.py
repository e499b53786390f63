"""What is generated, against loops over the model's own forward pass, and its distribution."""

import copy

import pytest
import torch
from transformers import GenerationConfig

from prefopt.data import DataError, read_example
from prefopt.data.tokenize import tokenize
from prefopt.evaluation import generate
from prefopt.evaluation.generation import leave_room
from prefopt.evaluation.prompts import as_example, read_prompts
from tests.models import tiny_model, tiny_tokenizer

PROMPTS = ["w5 w6 w7 w8 w9 w10 w11", "w20", "w30 w31 w32", "w40 w41 w42 w43"]
TEMPLATE = (
    "{% for m in messages %}{{ 'w4' if m['role'] == 'assistant' else 'w3' }} "
    "{{ m['content'] }} <unk> {% endfor %}"
    "{% if add_generation_prompt %}w4{% endif %}"
)


def alone(model, ids: list[int], count: int) -> list[int]:
    """Return the most likely tokens after a prompt, one forward pass of the whole text for each."""
    ids = list(ids)
    for _ in range(count):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
        ids.append(int(logits.argmax()))
    return ids[-count:]


def next_probabilities(model, prompt: str, temperature: float = 1.0) -> torch.Tensor:
    ids = tiny_tokenizer()([prompt])["input_ids"][0]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
    return (logits.double() / temperature).softmax(0)


def without_end(model):
    """Return the model, for which no token ends an answer."""
    model.generation_config.eos_token_id = None
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    return model, tokenizer


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mamba"])
def test_temperature_zero_takes_the_most_likely_token_each_time(name):
    model, tokenizer = without_end(tiny_model(name))
    found = generate(model, tokenizer, PROMPTS, temperature=0, max_new_tokens=5, batch_size=4)
    expected = [alone(model, ids, 5) for ids in tokenizer(PROMPTS)["input_ids"]]
    assert [list(answer.token_ids) for answer in found] == expected
    texts = [tokenizer.decode(ids, skip_special_tokens=True).split() for ids in expected]
    assert [answer.text.split() for answer in found] == texts


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_samples_are_of_the_models_own_distribution(temperature):
    model, tokenizer = without_end(tiny_model("llama"))
    options = {"temperature": temperature, "max_new_tokens": 1, "samples": 4000, "batch_size": 4000}
    found = generate(model, tokenizer, ["w20 w21"], **options)
    counts = torch.bincount(torch.tensor([a.token_ids[0] for a in found]), minlength=97).double()
    expected = 4000 * next_probabilities(model, "w20 w21", temperature)
    common = expected >= 5
    statistic = ((counts - expected).square() / expected)[common].sum()
    freedom = int(common.sum()) - 1
    # Mean and variance of chi-square: k and 2k.
    assert freedom > 5
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5
    assert (
        abs(counts[~common].sum() - expected[~common].sum())
        < 4 * expected[~common].sum().sqrt() + 1
    )


def test_top_k_and_top_p_leave_the_likeliest_tokens():
    model, tokenizer = without_end(tiny_model("llama"))
    chances, order = next_probabilities(model, "w20").sort(descending=True)
    options = {"max_new_tokens": 1, "samples": 300, "batch_size": 300}
    drawn = {a.token_ids[0] for a in generate(model, tokenizer, ["w20"], top_k=3, **options)}
    assert drawn == set(order[:3].tolist())
    least = int((chances.cumsum(0) < 0.5).sum()) + 1
    drawn = {a.token_ids[0] for a in generate(model, tokenizer, ["w20"], top_p=0.5, **options)}
    assert drawn == set(order[:least].tolist())


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_settings_of_the_checkpoint_take_no_part(temperature):
    model, tokenizer = without_end(tiny_model("llama"))
    options = {"temperature": temperature, "max_new_tokens": 8, "samples": 3}
    own = generate(model, tokenizer, PROMPTS, **options)
    theirs = GenerationConfig(
        do_sample=True,
        top_k=1,
        top_p=0.1,
        temperature=0.01,
        min_p=0.9,
        repetition_penalty=50.0,
        no_repeat_ngram_size=1,
        suppress_tokens=list(range(50)),
        min_new_tokens=4,
        num_beams=3,
        max_length=3,
    )
    model.generation_config = theirs
    kept = copy.deepcopy(theirs)
    assert generate(model, tokenizer, PROMPTS, **options) == own
    assert model.generation_config is theirs
    assert theirs == kept


def test_answers_do_not_depend_on_what_is_written_beside_them():
    model, tokenizer = without_end(tiny_model("llama"))
    options = {"max_new_tokens": 12, "samples": 2, "seed": 3}
    whole = generate(model, tokenizer, PROMPTS, batch_size=8, **options)
    assert len(set(whole)) == len(whole) == 8
    assert generate(model, tokenizer, PROMPTS, batch_size=1, **options) == whole
    assert generate(model, tokenizer, PROMPTS, batch_size=3, **options) == whole
    assert generate(model, tokenizer, PROMPTS[:1], **options) == whole[:2]
    more = generate(model, tokenizer, PROMPTS, **(options | {"samples": 3}))
    assert [answer for place, answer in enumerate(more) if place % 3 < 2] == whole
    longer = generate(model, tokenizer, PROMPTS, **(options | {"max_new_tokens": 15}))
    assert [answer.token_ids[:12] for answer in longer] == [answer.token_ids for answer in whole]
    assert generate(model, tokenizer, PROMPTS, **(options | {"seed": 4})) != whole


def test_nothing_of_the_model_is_changed():
    model, tokenizer = without_end(tiny_model("llama"))
    model.train()
    torch.manual_seed(0)
    state, weights = torch.get_rng_state(), copy.deepcopy(model.state_dict())
    generate(model, tokenizer, PROMPTS, max_new_tokens=3)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(model.state_dict(), weights, rtol=0, atol=0)


def test_every_end_token_ends_an_answer():
    model, tokenizer = without_end(tiny_model("llama"))
    free = generate(model, tokenizer, PROMPTS, temperature=0, max_new_tokens=6)
    assert all(answer.truncated and answer.tokens == 6 for answer in free)
    ends = [free[0].token_ids[2], free[1].token_ids[1]]
    model.generation_config.eos_token_id = ends
    found = generate(model, tokenizer, PROMPTS, temperature=0, max_new_tokens=6)
    for answer, longer in zip(found, free, strict=True):
        places = [place for place, token in enumerate(longer.token_ids) if token in ends]
        length = places[0] + 1 if places else 6
        assert answer.token_ids == longer.token_ids[:length]
        assert (answer.tokens, answer.truncated) == (length, not places)
        said = longer.token_ids[: length - bool(places)]
        assert answer.text.split() == tokenizer.decode(said).split()


def test_conversations_are_rendered_as_in_training():
    model, tokenizer = without_end(tiny_model("llama"))
    tokenizer.chat_template = TEMPLATE
    row = {
        "prompt": [{"role": "user", "content": "w20 w21"}],
        "chosen": [{"role": "assistant", "content": "w22"}],
        "rejected": [{"role": "assistant", "content": "w23"}],
    }
    (example,) = read_prompts([row])
    trained = tokenize([read_example(row, 0)], [0], tokenizer)
    asked = generate(model, tokenizer, [example], temperature=0, max_new_tokens=4)
    assert trained[0].prompt_ids == [3, 20, 21, 1, 4]
    expected = alone(model, trained[0].prompt_ids, 4)
    assert list(asked[0].token_ids) == expected[: expected.index(1) + 1]  # which ends a turn
    assert generate(model, tokenizer, [row["prompt"]], temperature=0, max_new_tokens=4) == asked
    of_ids = generate(model, tokenizer, [[3, 20, 21, 1, 4]], temperature=0, max_new_tokens=4)
    assert of_ids[0].token_ids == asked[0].token_ids


def test_a_prompt_that_leaves_no_room_is_an_error():
    model, tokenizer = without_end(tiny_model("llama", max_position_embeddings=16))
    generate(model, tokenizer, ["w5 " * 12], max_new_tokens=4)
    with pytest.raises(ValueError, match=r"prompt 1 has 13 tokens.*max_new_tokens of at most 3"):
        generate(model, tokenizer, ["w5", "w5 " * 13], max_new_tokens=4)
    with pytest.raises(ValueError, match=r"more than the 16 .*: leave those out"):
        generate(model, tokenizer, ["w5 " * 16], max_new_tokens=4)
    assert leave_room(model, tokenizer, ["w5 " * 12, "w5 " * 13], 4) == [True, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"samples": 0}, "samples"),
        ({"seed": -1}, "seed"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_settings_out_of_range_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        generate(None, None, ["w5"], **options)


def test_an_empty_prompt_is_an_error():
    model, tokenizer = without_end(tiny_model("llama"))
    with pytest.raises(DataError, match=r"row 1, column 'prompt': has no token"):
        generate(model, tokenizer, ["w5", ""])
    with pytest.raises(DataError, match="no chat template"):
        generate(model, tokenizer, [[{"role": "user", "content": "w5"}]])


def test_adapters_take_part():
    peft = pytest.importorskip("peft")
    base, tokenizer = without_end(tiny_model("llama"))
    plain = generate(base, tokenizer, PROMPTS, temperature=0, max_new_tokens=5)
    config = peft.LoraConfig(r=4, init_lora_weights=False, task_type="CAUSAL_LM")
    torch.manual_seed(0)
    model = peft.get_peft_model(base, config)
    found = generate(model, tokenizer, PROMPTS, temperature=0, max_new_tokens=5)
    assert found != plain
    ids = tokenizer(PROMPTS)["input_ids"]
    assert [list(a.token_ids) for a in found] == [alone(model, one, 5) for one in ids]


@pytest.mark.filterwarnings("ignore")  # of packages that quantise
def test_quantised_models_answer(tmp_path):
    from tests.quantisers import load, save_base

    model, tokenizer = without_end(load(save_base(tmp_path / "base"), "nf4"))
    layers = [it for it in model.modules() if hasattr(it, "support_avx512bf16_for_cpu")]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = True  # as on CPUs that multiply in bf16
    found = generate(model, tokenizer, PROMPTS, temperature=0, max_new_tokens=4, batch_size=1)
    # Their weights are not packed, which would round them for good.
    states = [layer.weight.quant_state for layer in layers]
    assert not any(getattr(state, "packing_format_for_cpu", False) for state in states)
    assert all(layer.support_avx512bf16_for_cpu for layer in layers)
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False
    ids = tokenizer(PROMPTS)["input_ids"]
    assert [list(a.token_ids) for a in found] == [alone(model, one, 4) for one in ids]


def test_the_space_before_a_first_word_is_kept():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({f"▁w{i}": i for i in range(97)}, unk_token="▁w0"))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    assert tokenizer.decode([5]) == "w5"
    model, _ = without_end(tiny_model("llama"))
    (answer,) = generate(model, tokenizer, ["w20 w21"], temperature=0, max_new_tokens=2)
    first, second = answer.token_ids
    assert answer.text == f" w{first} w{second}"


def test_a_bar_is_shown_where_people_look(capsys):
    model, tokenizer = without_end(tiny_model("llama"))
    generate(model, tokenizer, PROMPTS, max_new_tokens=1)
    assert capsys.readouterr().err == ""
    generate(model, tokenizer, PROMPTS, max_new_tokens=1, progress=True)
    assert "4/4" in capsys.readouterr().err


def test_prompts_are_none_of_the_forms():
    with pytest.raises(DataError, match="needs text or a list of messages"):
        as_example(3)
