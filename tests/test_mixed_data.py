"""Pairs, thumbs and rankings in one run, each kind of rows with losses of its own."""

import math

import pytest
from datasets import Dataset

from prefopt import PreferenceConfig
from prefopt.data import DataError
from tests.equivalence.test_invariance import assert_same_training, run
from tests.models import tiny_rows
from tests.runs import steps, trainer

BY_KIND = {"paired": "dpo + 0.1*sft", "unpaired": "kto", "ranked": "plackett_luce"}


def mixed(count, kinds=("paired", "unpaired", "ranked"), seed=0):
    """Return rows of several kinds in turn; what a kind does not have is null."""
    of_kind = {kind: list(tiny_rows(count, kind, seed=seed)) for kind in kinds}
    columns = {name for rows in of_kind.values() for row in rows for name in row}
    rows = [
        {name: of_kind[kinds[i % len(kinds)]][i].get(name) for name in columns}
        for i in range(count)
    ]
    return Dataset.from_list(rows)


def test_the_first_losses_are_those_of_each_kind(tmp_path):
    """At the reference: ln 2 for DPO, 0.5 for KTO, ln K! for rankings of K completions."""
    rows = mixed(9)
    trained = trainer(
        tmp_path,
        rows,
        loss_type={"paired": "dpo", "unpaired": "kto", "ranked": "plackett_luce"},
        max_steps=1,
        per_device_train_batch_size=9,
    )
    trained.train()
    (logged,) = steps(trained)
    assert logged["loss/dpo"] == pytest.approx(math.log(2), rel=1e-5)
    assert logged["loss/kto"] == pytest.approx(0.5, rel=1e-5)
    sizes = [len(row["ranks"]) for row in rows if row["ranks"]]
    wanted = sum(math.lgamma(size + 1) for size in sizes) / len(sizes)
    assert logged["loss/plackett_luce"] == pytest.approx(wanted, rel=1e-5)
    assert trained.objective.name == "paired: dpo, unpaired: kto, ranked: plackett_luce"


def test_accumulation_changes_nothing(tmp_path):
    """Micro-batches of two rows hold no ranking, or nothing else."""
    rows = mixed(18)
    whole = run(tmp_path / "one", rows, loss_type=BY_KIND, per_device_train_batch_size=6)
    parts = run(
        tmp_path / "parts",
        rows,
        loss_type=BY_KIND,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=6,
    )
    assert_same_training(parts, whole)


def test_a_kind_alone_trains_as_without_the_others(tmp_path):
    rows = tiny_rows(8)
    alone = run(tmp_path / "alone", rows, loss_type="dpo")
    named = run(tmp_path / "named", rows, loss_type={"paired": "dpo", "unpaired": "kto"})
    assert_same_training(named, alone)


def test_evaluation_does_not_depend_on_its_batch_size(tmp_path):
    losses = [
        trainer(
            tmp_path / str(size),
            mixed(6),
            eval_dataset=mixed(9, seed=3),
            loss_type=BY_KIND,
            per_device_eval_batch_size=size,
        ).evaluate()
        for size in (1, 9)
    ]
    for name in ("eval_loss", "eval_loss/kto", "eval_rewards/accuracies", "eval_logps/chosen"):
        assert losses[0][name] == pytest.approx(losses[1][name], rel=1e-5), name


def test_rows_without_a_loss_and_losses_without_their_rows_are_errors(tmp_path):
    with pytest.raises(DataError, match="some of the data is ranked, but loss_type has losses for"):
        trainer(tmp_path, mixed(6), loss_type={"paired": "dpo", "unpaired": "kto"})
    with pytest.raises(DataError, match="the data is unpaired, but the loss needs pairs"):
        trainer(tmp_path, mixed(6), loss_type=BY_KIND | {"unpaired": "dpo"})
    with pytest.raises(ValueError, match="losses for 'pairs'; kinds of rows are paired, unpaired"):
        PreferenceConfig(str(tmp_path), loss_type={"pairs": "dpo"})


def test_losses_by_kind_can_be_written_as_json(tmp_path):
    config = PreferenceConfig(str(tmp_path), loss_type='{"paired": "ipo", "unpaired": "bco"}')
    assert config.objective.name == "paired: ipo, unpaired: bco"
