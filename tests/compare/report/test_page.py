"""The page: it says what the records say, escapes what others wrote, holds with parts missing."""

import re
from dataclasses import replace

import pytest

from prefopt.compare import Comparison, Diagnosis, MethodResult, RunRecord, Sample
from prefopt.compare.report import write_report
from prefopt.compare.report.page import make_page, missing_parts
from prefopt.evaluation import Estimate
from tests.compare.report.made import made_comparison
from tests.compare.report.parsed import Page

HALF = Estimate(0.5, 0.4, 0.6, 100)
HOSTILE = (
    "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>&amp;\"'"
)


def page_of(comparison: Comparison) -> Page:
    return Page(make_page(comparison).html)


@pytest.fixture(scope="module")
def page(made):
    return Page(made.html)


def test_the_page_is_one_file_under_5_megabytes_that_names_no_address(made):
    html = made.html
    assert len(html.encode()) < 2_000_000
    tags = Page(html).tags
    loading = {"src", "srcset", "data", "poster", "action", "background"}
    assert [tag for tag, own in tags if loading & set(own)] == []
    assert {own["href"][0] for _, own in tags if own.get("href")} == {"#"}
    assert not any(tag in ("link", "iframe", "object", "embed", "base") for tag, _ in tags)
    policy = next(own["content"] for tag, own in tags if "Content-Security-Policy" in own.values())
    assert policy.startswith("default-src 'none'")
    assert "unsafe-eval" not in policy


def test_the_verdict_comes_first(page, comparison):
    before = page.text[: page.text.index(comparison.verdict)]
    assert comparison.title in before
    assert "Results" not in before


def test_the_values_of_the_table_are_the_records(page, comparison):
    table = page.table("main-table")
    checked = 0
    for method in comparison.methods:
        row = next(row for name, row in table.items() if name.split(" 1 failed")[0] == method.name)
        for title, metric, scale in (
            ("Accuracy, %", "accuracy", 100),
            ("Log-ratio accuracy, %", "log_ratio_accuracy", 100),
            ("Reward", "reward", 1),
            ("KL from the start, nats", "kl", 1),
            ("Length, tokens", "completion_tokens", 1),
        ):
            cell = next(cell for head, cell in row.items() if head.startswith(title))
            if metric not in method.metrics:
                assert cell.text == "–"
                continue
            own = method.metrics[metric]
            assert float(cell.value) == own.value
            shown = re.match(r"([\d.−]+) (?:[★≈] )?\[([\d.−]+), ([\d.−]+)\]$", cell.text)
            digits = [float(it.replace("−", "-")) for it in shown.groups()]
            assert digits == pytest.approx([it * scale for it in own[:3]], abs=0.051)
            checked += 1
    assert checked == 9 * 2 + 11 * 3


def test_the_rules_stand_beside_the_accuracies(page):
    table = page.table("main-table")
    longer = table["always the longer answer"]
    shown = {head: cell.text for head, cell in longer.items() if cell.text}
    chosen = table["the data's chosen answers"]
    rewards = {head: cell.text for head, cell in chosen.items() if cell.text}
    assert rewards.pop("Method", "") == "the data's chosen answers"
    assert list(rewards.values()) == ["0.71 [0.64, 0.78]"]
    assert [text for text in shown.values() if "61.4 [57.1, 65.6]" in text] == [
        "61.4 [57.1, 65.6]"
    ] * 2


def test_the_best_and_what_cannot_be_told_from_it_are_marked(page):
    reward = {
        name: cell.marks
        for name, row in page.table("main-table").items()
        for head, cell in row.items()
        if head.startswith("Reward") and cell.marks
    }
    assert reward == {"dpo beta=0.1": "best", "ipo beta=0.1": "tied", "discopop": "tied"}


def test_runs_have_state_error_and_a_command_that_repeats_them(page, comparison):
    for run in comparison.runs:
        assert run.name in page.text
        assert run.command in page.text
    assert "tried to allocate 1.2 GiB" in page.text
    assert "26 done" in page.text
    assert "1 of 27 runs failed." in page.text
    assert comparison.command in page.text
    assert '"held_out": 500' in page.text
    assert "2.11.0" in page.text


def test_diagnoses_that_fire_come_first(page):
    places = [page.text.index(it) for it in ("⚠ likelihood", "⚠ length bias", "✓ over-opt")]
    assert places == sorted(places)
    assert "No reason for a warning: 8 methods" in page.text


def test_everything_that_others_wrote_is_escaped():
    estimate = {"accuracy": HALF, "reward": HALF, "kl": HALF, HOSTILE: HALF}
    hostile = Comparison(
        HOSTILE,
        HOSTILE,
        HOSTILE,
        spec={HOSTILE: HOSTILE},
        versions={HOSTILE: HOSTILE},
        verdict=HOSTILE,
        methods=(MethodResult(HOSTILE, HOSTILE, {HOSTILE: HOSTILE}, False, estimate),),
        data_baselines={HOSTILE: HALF},
        diagnoses=(Diagnosis(HOSTILE, HOSTILE, True, HOSTILE),),
        samples=(Sample(HOSTILE, HOSTILE, HOSTILE, 1.0, 0.5, 3),),
        runs=(RunRecord(HOSTILE, HOSTILE, 0, "failed", HOSTILE, error=HOSTILE),),
    )
    html = make_page(hostile).html
    assert "<script>window" not in html
    assert "<img src=x" not in html
    page = Page(html)
    harmless = page_of(Comparison("", "", ""))
    assert sum(tag == "script" for tag, _ in page.tags) == 3
    assert sum(tag == "script" for tag, _ in harmless.tags) == 3
    assert not any("onerror" in own for _, own in page.tags)
    assert page.text.count(HOSTILE) > 15


@pytest.mark.parametrize(
    "part",
    [
        "verdict",
        "versions",
        "spec",
        "methods",
        "data_baselines",
        "tests",
        "frontier",
        "curves",
        "win_rates",
        "diagnoses",
        "samples",
        "runs",
    ],
)
def test_a_page_without_a_part_still_has_the_others(comparison, part):
    bare = Comparison(comparison.title, comparison.created, comparison.command)
    page = page_of(
        replace(comparison, **{"curves": comparison.curves[:1], part: getattr(bare, part)})
    )
    assert comparison.title in page.text
    assert "None" not in page.text.replace("AllNone", "")  # two buttons
    links = {own["href"][1:] for tag, own in page.tags if tag == "a"}
    assert links <= {own["id"] for _, own in page.tags if "id" in own}
    assert comparison.command in page.text


def test_a_page_of_nothing_says_so():
    page = page_of(Comparison("Nothing yet", "", "prefopt compare"))
    assert "There is no verdict yet: 0 of 0 runs are done." in page.text
    assert "Win rates: none was measured; that needs a judge." in page.text


def test_what_is_missing_is_said(comparison):
    assert missing_parts(comparison) == []
    one_seed = replace(
        comparison,
        methods=tuple(
            replace(it, metrics={"accuracy": HALF}, by_seed={}) for it in comparison.methods
        ),
        win_rates=(),
        tests=(),
        runs=tuple(run for run in comparison.runs if run.seed == 0),
    )
    assert [text.split(":")[0] for text in missing_parts(one_seed)] == [
        "Reward against KL",
        "Win rates",
        "Spread over seeds",
        "Paired tests between methods",
    ]
    page = page_of(one_seed)
    assert "Not in this report (4)" in page.text
    assert "(the intervals overlap)" in page.text
    assert "#frontier" not in {own.get("href") for _, own in page.tags}


def test_runs_that_all_failed_leave_their_methods_in_the_table():
    methods = tuple(MethodResult(name, name) for name in ("dpo", "ipo"))
    runs = tuple(RunRecord(it.name, it.name, 0, "failed", "x", error="no") for it in methods)
    page = page_of(Comparison("t", "", "c", methods=methods, runs=runs))
    assert "2 of 2 runs failed. Why they failed stands under Runs." in page.text
    assert "main-table" not in page.tables


def test_forty_methods_with_long_names_and_curves_fit_into_5_megabytes():
    html = make_page(crowded()).html
    assert len(html.encode()) < 5_000_000
    page = Page(html)
    assert len(page.table("main-table")) == 40 + 5
    assert "answers did not fit on this page" in page.text


def crowded() -> Comparison:
    """Return forty methods with names of 150 characters, much logged and sampled."""
    made = made_comparison()
    base = made.methods[-1]
    names = [f"{'dpo and another loss with every option said ' * 3}number {it}" for it in range(40)]
    return replace(
        made,
        methods=tuple(replace(base, name=name, loss=f"l{it % 9}") for it, name in enumerate(names)),
        curves=tuple(
            replace(curve, method=name, metric=f"{curve.metric}{copy}")
            for name in names
            for copy in range(2)
            for curve in made.curves[:21]
        ),
        win_rates=tuple(
            replace(rate, method=name) for name in names for rate in made.win_rates[:8]
        ),
        diagnoses=tuple(replace(it, method=name) for name in names for it in made.diagnoses[:3]),
        samples=tuple(
            Sample(f"{it}: {'a long prompt ' * 20}", name, "a long answer " * 60, 1.0, 0.1, 180)
            for it in range(100)
            for name in names
        ),
        runs=tuple(replace(run, method=name) for name in names for run in made.runs[:3]),
        tests=(),
    )


def test_a_comparison_that_was_saved_and_loaded_gives_the_same_page(comparison, made, tmp_path):
    comparison.save(tmp_path / "results.json")
    loaded = Comparison.load(tmp_path / "results.json")
    assert make_page(loaded).html == made.html


def test_a_report_is_written_with_all_its_files_over_the_one_before(written, tmp_path):
    page = Page((written / "report.html").read_text(encoding="utf-8"))
    drawn = {f"{own['data-chart']}.png" for _, own in page.tags if "data-chart" in own}
    assert len(drawn) == 7
    assert {path.name for path in written.iterdir()} == drawn | {"report.html", "results.csv"}
    (tmp_path / "report.html").write_text("old")
    write_report(Comparison("new", "", ""), tmp_path)
    assert "<h1>new</h1>" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_without_the_library_of_charts_the_error_says_what_to_install(tmp_path, monkeypatch):
    import sys

    for name in [name for name in sys.modules if name.startswith("prefopt.compare.report.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "altair", None)
    with pytest.raises(
        ImportError, match=r"a report needs altair: pip install 'prefopt\[report\]'"
    ):
        write_report(Comparison("t", "", ""), tmp_path)


def test_a_page_shows_fewer_samples_where_it_would_be_too_large(monkeypatch):
    bare = Comparison(
        "", "", "", samples=tuple(Sample(f"{it}", "dpo", "a" * 900) for it in range(99))
    )
    whole = page_of(bare)
    assert "did not fit" not in whole.text
    empty = len(make_page(replace(bare, samples=())).html.encode())
    monkeypatch.setattr("prefopt.compare.report.page.MOST_BYTES", empty + 50_000)
    html = make_page(bare).html
    assert len(html.encode()) < empty + 50_000
    assert re.search(r"\d\d of 99 answers did not fit on this page", html)
