"""``prefopt losses`` prints what the registry knows."""

import json
import subprocess
import sys

from prefopt.cli import losses
from prefopt.losses import get_loss, list_losses


def test_the_table_fits_80_columns_and_has_every_loss_with_its_facts(prefopt, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    result = prefopt("losses")
    assert result.code == 0
    assert max(map(len, result.out.splitlines())) <= 80
    assert result.out.count("\n") < 160
    words = " ".join(result.out.split())
    for loss in list_losses():
        (row,) = (line for line in result.out.splitlines() if line.startswith(f"{loss.name} "))
        assert row.split()[1] == losses.DATA[loss.data_kind]
        assert row.split()[2] == ("yes" if loss.needs_reference else "no")
        assert losses.in_a_few_words(loss) in words  # no word is broken
        assert all(alias in words for alias in loss.aliases)


def test_json_is_for_programs(prefopt):
    rows = json.loads(prefopt("losses", "--json").out)
    assert [row["name"] for row in rows] == [loss.name for loss in list_losses()]
    kto = next(row for row in rows if row["name"] == "kto")
    assert kto["data_kind"] == "unpaired"
    assert kto["needs_reference"] is True
    assert kto["inputs"] == list(get_loss("kto").inputs)
    assert kto["hyperparameters"]["desirable_weight"] == 1.0
    ln_dpo = next(row for row in rows if row["name"] == "ln_dpo")
    assert ln_dpo["published"] == {"beta": [2.0, 15.0]}


def test_a_named_loss_is_shown_in_full_by_name_or_alias(prefopt):
    result = prefopt("losses", "sigmoid")
    assert result.out.startswith("dpo\n  DPO: logistic loss")
    assert "2305.18290" in result.out
    assert "beta: Reward per nat of log-ratio" in result.out
    assert "published    beta 0.05 to 5\n" in result.out


def test_an_unknown_loss_is_a_mistake_of_the_user(prefopt):
    result = prefopt("losses", "xpo")
    assert result.code == 2
    assert "unknown loss 'xpo'; did you mean" in result.err
    assert "Traceback" not in result.err


def test_listing_imports_neither_transformers_nor_trl():
    code = (
        "import sys; from prefopt.cli import main; main(['losses']);"
        "print(sorted({'transformers', 'trl', 'datasets', 'peft'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"
