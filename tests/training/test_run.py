"""What a run begins with: checked and prepared without a trainer."""

import pytest
from rich.console import Console

from prefopt.data import DataError
from prefopt.objective import parse_objective
from prefopt.training.run import DataPreparation, named_datasets, prepare_run
from tests.models import tiny_model, tiny_rows, tiny_tokenizer
from tests.runs import config


def preparation(loss="dpo", max_length=64):
    console = Console(quiet=True)
    return DataPreparation(tiny_tokenizer(), parse_objective(loss), max_length, None, console)


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
    assert named_datasets(1, 2) == [("train", 1), ("eval", 2)]
    assert named_datasets(1, {"train": 2}) == [("train", 1), ("train", 2)]
