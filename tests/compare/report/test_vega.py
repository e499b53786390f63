"""What the charts share."""

import altair as alt

from prefopt.compare.report.metrics import find_metric
from prefopt.compare.report.vega import is_finite, rows_named, spec_of, text_of
from prefopt.evaluation import Estimate


def test_a_specification_holds_its_data_once_however_many_rows_and_has_no_theme():
    rows = [{"a": it} for it in range(6000)]
    base = rows_named("rows").encode(x="a:Q")
    spec = spec_of([base.mark_point(), base.mark_line()], height=10, rows=rows)
    assert spec["datasets"] == {"rows": rows}
    assert spec["data"] == {"name": "rows"}
    assert "config" not in spec
    assert {param["name"] for param in spec["params"]} == {"hidden", "letters"}


def test_a_step_of_height_gives_each_method_its_row():
    spec = spec_of([rows_named("rows").mark_point()], height=alt.Step(22), rows=[])
    assert spec["height"] == {"step": 22}


def test_tooltips_have_the_interval_and_the_unit():
    half = Estimate(0.5, 0.4, 0.61, 100)
    assert text_of(half, find_metric("accuracy")) == "50.0 [40.0, 61.0] %"
    assert text_of(half, find_metric("kl")) == "0.500 [0.400, 0.610] nats"


def test_a_number_is_drawn_if_all_of_it_is_finite():
    assert is_finite(Estimate(0.5, 0.4, 0.6, 1))
    assert not is_finite(Estimate(0.5, 0.4, float("inf"), 1))
    assert not is_finite(None)
