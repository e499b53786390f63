"""The page: everything put into one HTML file that asks nothing of any network.

A content security policy says so to the browser: no request is allowed, and only the page's own
scripts run, each named by its hash. Text of models and users is escaped by the template.
"""

import base64
import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import vl_convert
from markupsafe import Markup

from prefopt.compare.report.charts import all_charts
from prefopt.compare.report.marks import SIGNIFICANT
from prefopt.compare.report.metrics import decimals, find_metric, number
from prefopt.compare.report.names import short_names, with_all_methods, with_names
from prefopt.compare.report.palette import SHAPES, looks
from prefopt.compare.report.rules import rules_of
from prefopt.compare.report.samples import MOST_BYTES as SAMPLE_BYTES
from prefopt.compare.report.samples import shown_samples
from prefopt.compare.report.tables import (
    detail_table,
    main_table,
    opponent_title,
    win_rate_table,
)
from prefopt.compare.report.vega import Chart
from prefopt.compare.results import Comparison, Diagnosis

__all__ = ["MOST_BYTES", "Page", "make_page", "missing_parts"]

MOST_BYTES = 4_800_000  # of a page; where it would have more, it shows fewer samples
_HERE = Path(__file__).parent


class Page(NamedTuple):
    """A page and the charts on it."""

    html: str
    charts: list[Chart]


def make_page(comparison: Comparison) -> Page:
    """Return the page of a comparison.

    Args:
        comparison: What was found.

    Raises:
        ValueError: If two methods have one name.
    """
    comparison = with_all_methods(comparison)
    full_names = [it.name for it in comparison.methods]
    comparison = with_names(comparison, short_names(full_names))
    charts = all_charts(comparison)
    contents = _contents(comparison, charts, full_names)
    room = MOST_BYTES
    if comparison.samples:
        room -= len(_html(contents | {"samples": shown_samples(comparison, 0)}).encode("utf-8"))
    samples = shown_samples(comparison, min(SAMPLE_BYTES, max(room, 0)))
    return Page(_html(contents | {"samples": samples}), charts)


def _html(contents: Mapping[str, Any]) -> str:
    """Return the template, filled."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["duration"] = _duration
    return environment.get_template("page.html.jinja").render(contents).lstrip()


def _contents(
    comparison: Comparison, charts: Sequence[Chart], full_names: Sequence[str]
) -> dict[str, Any]:
    """Return what the template shows, without samples."""
    sections: dict[str, list[Chart]] = defaultdict(list)
    for chart in charts:
        sections[chart.section].append(chart)
    opponents = sorted({it.against for it in comparison.win_rates})
    scripts = [_bundle(), (_HERE / "page.js").read_text(encoding="utf-8")]
    return {
        "it": comparison,
        "created": comparison.created.replace("T", " ")[:16],
        "verdict": comparison.verdict or _no_verdict(comparison),
        "facts": _facts(comparison),
        "missing": missing_parts(comparison),
        "main": main_table(comparison),
        "details": detail_table(comparison),
        "win_tables": [(opponent_title(it), win_rate_table(comparison, it)) for it in opponents],
        "tests": _tests(comparison),
        "charts": sections,
        "has_bands": len({it.seed for it in comparison.curves}) > 1,
        "key": _key(comparison),
        "diagnoses": _diagnoses(comparison),
        "spec": json.dumps(comparison.spec, indent=2, default=str, ensure_ascii=False),
        "states": _states(comparison),
        "methods": list(zip(comparison.methods, full_names, strict=True)),
        "style": Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        "scripts": [Markup(script) for script in scripts],
        "hashes": [_hash(script) for script in scripts],
        "specs": {chart.name: chart.spec for chart in charts},
    }


@cache
def _bundle() -> str:
    """Return Vega, Vega-Lite and vega-embed as one script, fit to stand inside HTML."""
    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return str(script).replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


# --- Parts of the page ---


def _no_verdict(comparison: Comparison) -> str:
    done = sum(run.state == "done" for run in comparison.runs)
    return f"There is no verdict yet: {done} of {len(comparison.runs)} runs are done."


def _facts(comparison: Comparison) -> list[str]:
    """Return the size of the comparison in a few words each."""
    losses = sum(not it.is_baseline for it in comparison.methods)
    baselines = len(comparison.methods) - losses
    seeds = len({run.seed for run in comparison.runs})
    facts = [_count(losses, "method"), _count(baselines, "baseline"), _count(seeds, "seed")]
    sizes = {it.metrics["accuracy"].size for it in comparison.methods if "accuracy" in it.metrics}
    if sizes:
        facts.append(f"{max(sizes):,} held-out pairs")
    seconds = sum(run.seconds or 0.0 for run in comparison.runs)
    return [it for it in facts if it] + ([f"{_duration(seconds)} for all runs"] if seconds else [])


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}" if count else ""


def missing_parts(comparison: Comparison) -> list[str]:
    """Return what the page does not show, and why.

    Args:
        comparison: What was found.
    """
    measured = {name for it in comparison.methods for name in it.metrics}
    seeds = {run.seed for run in comparison.runs}
    absent = {
        "Reward against KL: none was measured; that needs a reward function or a judge.": (
            "reward" not in measured
        ),
        "Win rates: none was measured; that needs a judge.": not comparison.win_rates,
        "Spread over seeds: there is one, so intervals cover the held-out rows only.": (
            len(seeds) == 1
        ),
        "Paired tests between methods: none was made; overlap of intervals stands in for them.": (
            not comparison.tests and len(comparison.methods) > 1
        ),
        "Accuracy of rules that look at lengths: not measured.": not rules_of(
            "accuracy", comparison.data_baselines
        ),
        "Training curves: nothing was logged.": not comparison.curves,
        "Diagnoses: none was made.": not comparison.diagnoses,
        "Samples: none were taken.": not comparison.samples,
    }
    return [text for text, is_absent in absent.items() if is_absent]


class _Test(NamedTuple):
    """A paired test, as text."""

    pair: str
    metric: str
    difference: str
    p: str
    differs: bool


def _tests(comparison: Comparison) -> list[_Test]:
    found = []
    for test in comparison.tests:
        metric = find_metric(test.metric)
        places = decimals([test.difference], metric)
        value, low, high = (number(it * metric.scale, places) for it in test.difference[:3])
        found.append(
            _Test(
                f"{test.first} − {test.second}",
                metric.title,
                f"{value} [{low}, {high}] {metric.unit}".strip(),
                "< 0.001" if test.p_adjusted < 0.001 else f"{test.p_adjusted:.3f}",
                test.p_adjusted < SIGNIFICANT,
            )
        )
    return found


def _key(comparison: Comparison) -> list[dict[str, str]]:
    """Return colour and shape of each method."""
    return [
        {"name": name, "colour": look.colour, "path": SHAPES[look.shape]}
        for name, look in looks(comparison.methods).items()
    ]


def _diagnoses(comparison: Comparison) -> list[tuple[str, list[Diagnosis], list[Diagnosis]]]:
    """Return those of each kind that fire and those that do not; kinds that fire come first."""
    kinds: dict[str, list[Diagnosis]] = defaultdict(list)
    for diagnosis in comparison.diagnoses:
        kinds[diagnosis.name].append(diagnosis)
    found = [
        (name, [it for it in its if it.fires], [it for it in its if not it.fires])
        for name, its in kinds.items()
    ]
    return sorted(found, key=lambda kind: not kind[1])


def _states(comparison: Comparison) -> list[tuple[str, int]]:
    """Return how many runs are in each state."""
    states = [run.state for run in comparison.runs]
    known = ("done", "failed", "running", "waiting")
    return [
        (it, states.count(it)) for it in (*known, *sorted({*states} - {*known})) if it in states
    ]


def _duration(seconds: float | None) -> str:
    """Return a duration for people.

    >>> _duration(75), _duration(4000), _duration(None)
    ('1 min 15 s', '1 h 6 min', '–')
    """
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
