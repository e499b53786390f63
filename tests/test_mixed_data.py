"""Several kinds of rows, and several datasets, in one run."""

import math

import pytest
from datasets import Dataset, concatenate_datasets

from prefopt import PreferenceConfig
from prefopt.data import DataError
from tests.equivalence.test_invariance import assert_same_training, results, run
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


def test_only_rows_of_a_loss_that_takes_margins_need_them(tmp_path):
    kinds = ("paired", "unpaired")
    rows = mixed(6, kinds)
    losses = {"paired": "odpo", "unpaired": "kto"}
    with pytest.raises(DataError, match="row 0: the loss takes margins"):
        trainer(tmp_path, rows, loss_type=losses)
    margins = [1.0 if row["chosen"] else None for row in rows]
    trainer(tmp_path, rows.add_column("margin", margins), loss_type=losses, max_steps=1).train()


def test_losses_by_kind_can_be_written_as_json(tmp_path):
    config = PreferenceConfig(str(tmp_path), loss_type='{"paired": "ipo", "unpaired": "bco"}')
    assert config.objective.name == "paired: ipo, unpaired: bco"


@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_a_list_of_datasets_trains_as_the_same_rows_in_one(tmp_path, loss):
    """The order of rows is the sampler's, so it is that of one dataset of them all."""
    kind = "unpaired" if loss == "kto" else "paired"
    parts = [tiny_rows(8, kind), tiny_rows(4, kind, seed=1)]
    several = trainer(tmp_path / "several", [parts[0], (parts[1], 2)], loss_type=loss, optim="sgd")
    # KTO's mismatched completions are those of each dataset: the prepared rows are compared.
    joined = several.train_dataset.select(range(16))
    one = trainer(tmp_path / "one", joined, loss_type=loss, optim="sgd")
    assert len(joined) == 16
    for trained in (several, one):
        trained.train()
    assert_same_training(results(several), results(one))
    if loss == "dpo":
        raw = concatenate_datasets([parts[0], parts[1].select([0, 0, 1, 1, 2, 2, 3, 3])])
        assert_same_training(results(several), run(tmp_path / "raw", raw, loss_type=loss))


def test_a_list_is_evaluated_as_its_rows(tmp_path):
    parts = [tiny_rows(6), tiny_rows(3, seed=1)]
    trained = trainer(tmp_path, tiny_rows(4), eval_dataset=parts, max_steps=1)
    trained.train()
    whole = trained.evaluate()["eval_logps/chosen"]
    of_parts = [trained.evaluate(part)["eval_logps/chosen"] for part in parts]
    assert whole == pytest.approx((6 * of_parts[0] + 3 * of_parts[1]) / 9, rel=1e-5)
    assert trained.evaluate([parts[0]])["eval_logps/chosen"] == pytest.approx(of_parts[0])


def test_a_row_that_is_used_twice_has_one_reference(tmp_path, scored):
    trainer(tmp_path, [(tiny_rows(8), 2.5), tiny_rows(5, seed=1)])
    assert sum(scored) == 26
    # Another weight, and another order, ask for nothing new.
    trainer(tmp_path, [tiny_rows(5, seed=1), (tiny_rows(8), 0.5)])
    assert sum(scored) == 26
