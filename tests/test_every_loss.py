"""Every registered loss trains: it lowers itself on made-up data, and runs once on real rows."""

import gzip
import json
import math

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from prefopt.losses import get_loss, list_losses
from tests.models import tiny_model, tiny_rows
from tests.runs import steps, trainer

LOSSES = [loss.name for loss in list_losses() if loss.function.__module__.startswith("prefopt.")]

# Data that a kind of loss can learn from; a loss on preferred completions takes any.
DATA = {"paired": "paired", "unpaired": "unpaired", "ranked": "ranked", "preferred": "paired"}

# Step sizes that suit all losses but these, whose losses per nat are far larger or smaller.
RATES = {"ipo": 1e-3, "sppo": 1e-3, "cal_dpo": 1e-3}
# What makes a few steps on eight rows show: at their defaults the gradients are tiny.
OPTIONS = {"infonca": {"beta": 0.1, "alpha": 1.0}, "nca_ranked": {"beta": 0.1, "alpha": 1.0}}


# A penalty on moving away has no gradient at the reference itself.
REFERENCES = {"squared_log_ratio": lambda **size: tiny_model("llama", seed=5, **size)}


def told(rows, kind):
    """Return rows with everything that a loss may ask of them."""
    if kind == "paired":
        count = len(rows)
        rows = rows.add_column("margin", [0.5 + 0.1 * (i % 5) for i in range(count)])
        return rows.add_column("preference_probability", [0.9 - 0.02 * i for i in range(count)])
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_twenty_steps_lower_every_loss(tmp_path, name):
    kind = DATA[get_loss(name).data_kind]
    trained = trainer(
        tmp_path,
        told(tiny_rows(8, kind), kind),
        ref_model=REFERENCES.get(name, lambda: None)(),
        loss_type=name,
        loss_kwargs=OPTIONS.get(name),
        max_steps=20,
        per_device_train_batch_size=8,
        learning_rate=RATES.get(name, 1e-2),
    )
    trained.train()
    logged = [entry["loss"] for entry in steps(trained)]
    assert len(logged) == 20
    assert all(map(math.isfinite, logged))
    assert min(logged[-3:]) < logged[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("layout", ["shared_prefix", "padded"])
def test_a_batch_without_rows_adds_nothing_to_any_gradient(tmp_path, name, layout):
    """What a process takes part with where rows run out; parallel training waits for all."""
    kind = DATA[get_loss(name).data_kind]
    trained = trainer(tmp_path, told(tiny_rows(8, kind), kind), loss_type=name, layout=layout)
    trained.model.train()
    loss = trained.compute_loss(trained.model, trained.data_collator([]))
    loss.backward()
    assert loss.item() == 0
    for parameter in trained.model.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()


def read(path):
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def real(shared_dir, tmp_path_factory):
    """Rows of human judgements by kind, and a tokenizer."""
    data = shared_dir / "data"
    pairs = read(data / "preference/hh_helpful_base_test.jsonl.gz")[:6]
    votes = read(data / "preference/oasst_en100_votes.jsonl.gz")
    thumbs = [row for row in votes if row["up"] > row["down"]][:4]
    thumbs += [row for row in votes if row["up"] < row["down"]][:2]
    rankings = read(data / "preference/oasst_en100_rankings.jsonl.gz")[:6]
    rows = {
        "paired": pairs,
        "unpaired": [
            {
                "prompt": row["messages"],
                "completion": [{"role": "assistant", "content": row["response"]}],
                "label": row["up"] > row["down"],
            }
            for row in thumbs
        ],
        "ranked": [{"prompt": row["messages"], "responses": row["responses"]} for row in rankings],
    }
    packed = data / "tokenizers/simplestories-4096.tokenizer.json.gz"
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    file.write_bytes(gzip.decompress(packed.read_bytes()))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(file), bos_token="[EOS]", eos_token="[EOS]"
    )
    tokenizer.chat_template = (data / "tokenizers/chat_templates/vicuna.jinja").read_text()
    return {kind: Dataset.from_list(of_kind) for kind, of_kind in rows.items()}, tokenizer


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_takes_a_step_on_real_rows(tmp_path, real, name):
    rows, tokenizer = real
    kind, size = DATA[get_loss(name).data_kind], {"vocab_size": 4096}
    trained = trainer(
        tmp_path,
        told(rows[kind], kind),
        ref_model=REFERENCES.get(name, lambda **size: None)(**size),
        model=tiny_model("llama", **size),
        processing_class=tokenizer,
        loss_type=name,
        max_steps=1,
        per_device_train_batch_size=6,
        max_length=512,
    )
    before = [parameter.detach().clone() for parameter in trained.model.parameters()]
    trained.train()
    (logged,) = steps(trained)
    assert math.isfinite(logged["loss"])
    assert logged["grad_norm"] > 0
    moved = zip(before, trained.model.parameters(), strict=True)
    assert any((old != new).any() for old, new in moved)
