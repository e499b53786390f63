"""What a run begins with: checked and prepared without a trainer."""

import pytest
from datasets import Dataset, concatenate_datasets
from rich.console import Console

from prefopt.data import DataError, WeightedDataset
from prefopt.objective import parse_objective
from prefopt.training.run import DataPreparation, named_datasets, prepare_run
from tests.models import VOCABULARY, tiny_model, tiny_rows, tiny_tokenizer
from tests.runs import config, trainer


def preparation(loss="dpo", max_length=64, num_proc=None, seed=0):
    console = Console(quiet=True)
    objective = parse_objective(loss)
    return DataPreparation(
        tiny_tokenizer(), objective, max_length, num_proc, console, VOCABULARY, seed
    )


def run(tmp_path, model="llama", train=None, **options):
    return prepare_run(
        tiny_model(model),
        config(tmp_path, **options),
        train_dataset=tiny_rows(6) if train is None else train,
        eval_dataset={"held_out": tiny_rows(3, seed=1)},
        processing_class=tiny_tokenizer(),
    )


def test_datasets_become_token_ids_with_a_report_each():
    data = preparation()
    prepared = data.prepare({"a": tiny_rows(4), "b": tiny_rows(2, seed=1)}, "eval")
    assert {name: len(rows) for name, rows in prepared.items()} == {"a": 4, "b": 2}
    assert "prompt_ids" in prepared["a"].column_names
    assert sorted(data.reports) == ["a", "b"]


def test_what_it_prepared_stays_and_nothing_stays_nothing():
    data = preparation()
    prepared = data.prepare(tiny_rows(4), "train")
    assert data.prepare(prepared, "train") is prepared
    assert data.prepare(None, "eval") is None
    # Mismatched completions are missing for a loss that needs them.
    assert "kl_completion_ids" in preparation("kto").prepare(prepared, "train").column_names


def test_data_that_a_loss_cannot_learn_from_is_an_error():
    with pytest.raises(DataError, match="the data is unpaired, but the loss needs pairs"):
        preparation("dpo").prepare(tiny_rows(4, "unpaired"), "train")


def test_several_datasets_are_prepared_and_reported_by_themselves():
    """One of texts, one of messages, one of unpaired rows; a prompt of one is too long."""
    turns = [[{"role": "user", "content": f"w{i}"}] for i in range(5, 8)]
    answers = [
        [[{"role": "assistant", "content": f"w{i + n} w9"}] for i in (3, 6, 9)] for n in (5, 30)
    ]
    messages = Dataset.from_dict({"prompt": turns, "chosen": answers[0], "rejected": answers[1]})
    long = Dataset.from_list([{"prompt": "w3 " * 80, "chosen": " w4", "rejected": " w5"}])
    data = preparation({"paired": "dpo", "unpaired": "kto"})
    data._tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    texts = concatenate_datasets([tiny_rows(4), long])
    rows = data.prepare(
        [texts, (messages, 2.0, "chats.jsonl"), WeightedDataset(tiny_rows(6, "unpaired"), 0.5)],
        "train",
    )
    assert rows["kind"][:] == ["paired"] * 4 + ["paired"] * 6 + ["unpaired"] * 3
    reports = [
        (name, report.rows, report.kept, report.weight, report.used)
        for name, report in data.reports.items()
    ]
    assert reports == [
        ("train[0]", 5, 4, 1.0, 4),
        ("train: chats.jsonl", 3, 3, 2.0, 6),
        ("train[2]", 6, 6, 0.5, 3),
    ]
    assert "used                     6 rows, by weight 2" in "\n".join(
        report.render() for report in data.reports.values()
    )


def test_a_mixture_is_the_same_for_a_seed_whatever_the_number_of_processes():
    parts = [(tiny_rows(20), 0.5), (tiny_rows(10, seed=1), 1.5)]
    first, same, parallel, other = (
        preparation(seed=seed, num_proc=num_proc).prepare(parts, "train").to_list()
        for seed, num_proc in ((1, None), (1, None), (1, 2), (2, None))
    )
    assert first == same == parallel
    assert len(first) == len(other) == 25
    assert first != other


def test_rows_that_are_prepared_already_mix_too():
    rows = preparation().prepare(tiny_rows(4), "train")
    data = preparation()
    assert len(data.prepare([rows, (tiny_rows(3, seed=1), 2)], "train")) == 10
    assert list(data.reports) == ["train[0]", "train[1]"]


@pytest.mark.parametrize(
    ("parts", "loss", "message"),
    [
        (["paired", "unpaired"], "dpo", r"train\[0\] is paired, train\[1\] is unpaired"),
        (["paired", "ranked"], "kto", r"train\[1\] is ranked"),
        (["paired", "unpaired"], {"paired": "dpo"}, "add one for 'unpaired'"),
        (["paired", "paired"], "odpo", r"train\[0\] data, row 0: the loss takes margins"),
    ],
)
def test_a_mixture_that_losses_cannot_learn_from_is_named(parts, loss, message):
    with pytest.raises(DataError, match=message):
        preparation(loss).prepare([tiny_rows(4, kind) for kind in parts], "train")


def test_losses_look_at_the_rows_of_all_parts_together():
    both = [tiny_rows(4), tiny_rows(4, "unpaired")]
    assert len(preparation("kto").prepare(both, "train")) == 8
    # The term for unpaired rows has none in the first part, that for pairs none in the second.
    assert len(preparation("dpo + kto").prepare(both, "train")) == 8
    margins = tiny_rows(4).add_column("margin", [1, 2, 3, 4])
    by_kind = preparation({"paired": "odpo", "unpaired": "kto"})
    rows = by_kind.prepare([margins, tiny_rows(4, "unpaired")], "train")
    assert rows["margin"][:] == [1.0, 2.0, 3.0, 4.0, None, None, None, None]


def test_wrong_rows_and_weights_name_the_dataset():
    wrong = Dataset.from_list([{"prompt": "w3", "chosen": "w4", "rejected": None}])
    data = preparation()
    with pytest.raises(DataError, match=r"train: b.csv data, row 0, column 'rejected'"):
        data.prepare([tiny_rows(2), (wrong, 1.0, "b.csv")], "train")
    with pytest.raises(DataError, match=r"train: b.csv data: a weight of 0.01 leaves none of 4"):
        data.prepare([(tiny_rows(4), 0.01, "b.csv")], "train")


def test_a_list_of_datasets_is_checked_before_anything_is_loaded(tmp_path):
    with pytest.raises(ValueError, match="train_dataset is an empty list"):
        prepare_run("nowhere", config(tmp_path), train_dataset=[])
    streams = [tiny_rows(4), tiny_rows(4).to_iterable_dataset()]
    with pytest.raises(ValueError, match=r"train_dataset\[1\] is a stream"):
        prepare_run("nowhere", config(tmp_path), train_dataset=streams)
    with pytest.raises(TypeError, match="got list; make one with"):
        prepare_run("nowhere", config(tmp_path), train_dataset=tiny_rows(2).to_list())
    with pytest.raises(ValueError, match=r"train_dataset\[0\] has no rows"):
        prepare_run("nowhere", config(tmp_path), train_dataset=[tiny_rows(2).select([])])


def test_without_a_name_the_loss_is_that_of_all_parts(tmp_path):
    unpaired = tiny_rows(6, "unpaired")
    assert run(tmp_path, train=[unpaired, unpaired]).objective.name == "kto"
    assert run(tmp_path, train=[tiny_rows(6), tiny_rows(4, "ranked")]).objective.name == "dpo"


def test_a_run_has_policy_tokenizer_losses_and_data(tmp_path):
    made = run(tmp_path, loss_type="ipo")
    assert made.objective.name == "ipo"
    assert (len(made.train_dataset), list(made.eval_dataset)) == (6, ["held_out"])
    assert sorted(made.data.reports) == ["held_out", "train"]


def test_without_a_name_the_loss_is_that_of_the_data(tmp_path):
    assert run(tmp_path).objective.name == "dpo"
    assert run(tmp_path, train=tiny_rows(6, "unpaired")).objective.name == "kto"


def test_texts_are_cut_to_the_positions_that_the_model_has(tmp_path, capsys):
    model = tiny_model("gpt2")
    most = model.config.max_position_embeddings
    made = run(tmp_path, "gpt2", max_length=most + 10)
    assert made.max_length == most
    assert "the model has no more positions" in capsys.readouterr().err
    assert run(tmp_path, "gpt2", max_length=most - 1).max_length == most - 1
    assert run(tmp_path, max_length=None).max_length is None


def test_wrong_arguments_are_met_before_anything_is_loaded(tmp_path):
    with pytest.raises(TypeError, match="args must be a PreferenceConfig, got dict"):
        prepare_run("nowhere", {}, train_dataset=tiny_rows(2))
    model = tiny_model("llama")
    with pytest.raises(ValueError, match="model and ref_model are the same object"):
        prepare_run(model, config(tmp_path), model, tiny_rows(2))
    with pytest.raises(ValueError, match="give a train_dataset, or an eval_dataset"):
        prepare_run("nowhere", config(tmp_path))


def test_datasets_are_named_and_an_evaluation_set_may_be_called_train():
    assert named_datasets(1, 2) == [("train", 1, None), ("eval", 2, None)]
    assert named_datasets(1, {"train": 2}, 3) == [("train", 1, 3), ("train", 2, None)]


@pytest.mark.parametrize("disabled", [True, False])
def test_that_an_adapters_dropout_has_no_effect_is_said(tmp_path, capsys, disabled):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.25)
    options = {"peft_config": config, "disable_dropout": disabled}
    trained = trainer(tmp_path, tiny_rows(4), **options)
    layers = [it for name, it in trained.model.named_modules() if name.endswith("lora_dropout")]
    assert {it["default"].p for it in layers} == {0.0 if disabled else 0.25}
    assert ("lora_dropout=0.25 has no effect" in capsys.readouterr().err) == disabled
