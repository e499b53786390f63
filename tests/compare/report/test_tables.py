"""The tables: what stands where, and what has no place in a column."""

from prefopt.compare import Comparison, MethodResult, RunRecord, WinRate
from prefopt.compare.report.tables import detail_table, main_table, win_rate_table
from prefopt.evaluation import Estimate

HALF = Estimate(0.5, 0.4, 0.6, 100)
MORE = Estimate(0.9, 0.8, 1.0, 90)


def compared(**parts) -> Comparison:
    methods = (
        MethodResult("start", "start", is_baseline=True),
        MethodResult("dpo", "dpo", metrics={"accuracy": MORE, "kl": HALF, "politeness": HALF}),
        MethodResult("ipo", "ipo", metrics={"accuracy": HALF, "truncated": HALF}),
    )
    return Comparison("", "", "", **({"methods": methods} | parts))


def texts(row) -> list[str]:
    return [cell.text for cell in row.cells]


def test_the_main_table_has_the_columns_that_were_measured():
    table = main_table(compared())
    assert [column.metric.name for column in table.columns] == ["accuracy", "kl"]
    assert [column.sizes for column in table.columns] == ["n = 90 to 100", "n = 100"]
    assert [texts(row) for row in table.rows] == [["–", "–"], ["90.0", "0.50"], ["50.0", "–"]]
    assert table.rows[1].cells[0].interval == "[80.0, 100.0]"
    assert [row.cells[0].mark for row in table.rows] == [None, "best", None]
    assert table.rules == ()


def test_the_other_numbers_stand_in_the_second_table_unknown_ones_included():
    table = detail_table(compared())
    assert [column.metric.name for column in table.columns] == ["truncated", "politeness"]


def test_rules_stand_under_the_accuracies_of_the_same_pairs_only():
    table = main_table(compared(data_baselines={"longer": HALF, "loudest": MORE}))
    assert [row.name for row in table.rules] == ["always the longer answer", "loudest"]
    assert [texts(row) for row in table.rules] == [["50.0", ""], ["90.0", ""]]
    alone = main_table(compared(methods=(), data_baselines={"longer": HALF}))
    assert [column.metric.name for column in alone.columns] == ["accuracy"]


def test_win_rates_stand_in_the_main_table_at_temperature_1_or_the_highest():
    rates = (
        WinRate("dpo", "start", 0.0, HALF),
        WinRate("dpo", "start", 1.0, MORE),
        WinRate("dpo", "start", 1.5, HALF),
    )
    table = main_table(compared(win_rates=rates))
    assert table.columns[-1].metric.title == "Wins against the start"
    assert texts(table.rows[1])[-1] == "90.0"
    table = main_table(compared(win_rates=rates[:1]))
    assert texts(table.rows[1])[-1] == "50.0"


def test_win_rates_by_temperature_stand_beside_those_at_equal_lengths():
    rates = (
        WinRate("dpo", "start", 1.0, MORE, HALF),
        WinRate("dpo", "start", 0.25, HALF),
        WinRate("dpo", "chosen", 0.0, HALF),
    )
    table = win_rate_table(compared(win_rates=rates), "start")
    assert [column.metric.title for column in table.columns] == [
        "Temperature 0.25",
        "Temperature 1",
        "Temperature 1, equal lengths",
    ]
    assert texts(table.rows[1]) == ["50.0", "90.0", "50.0"]


def test_a_method_says_which_of_its_runs_are_missing():
    runs = tuple(
        RunRecord(f"{it}", "dpo", it, state, "")
        for it, state in enumerate(("done", "failed", "failed", "waiting"))
    )
    notes = [row.note for row in main_table(compared(runs=runs)).rows]
    assert notes == ["", "2 failed, 1 waiting of 4 runs", ""]
