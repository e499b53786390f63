"""The page in Chromium: nothing leaves, everything is drawn, filters filter, nothing overflows."""

import pytest

from prefopt.compare import Comparison
from prefopt.compare.report.page import make_page
from prefopt.compare.report.palette import looks
from tests.compare.report.browser import Browser, find_chromium
from tests.compare.report.test_page import HOSTILE, crowded

SHOWN = "[...document.querySelectorAll('.answer')].filter((it) => it.offsetParent).length"
# Of each text of a chart, how many pixels stand outside its chart; the worst, with its words.
OVERFLOW = """
Math.max(0, ...[...document.querySelectorAll('.drawing svg')].flatMap((svg) => {
  const box = svg.getBoundingClientRect();
  return [...svg.querySelectorAll('text')].map((text) => {
    const own = text.getBoundingClientRect();
    if (!own.width) return 0;
    return Math.max(box.left - own.left, own.right - box.right, box.top - own.top,
                    own.bottom - box.bottom);
  });
}))
"""
COLOUR = "getComputedStyle(document.querySelector('.drawing svg text')).fill"


@pytest.fixture(scope="module")
def crowded_page(tmp_path_factory):
    comparison = crowded()
    path = tmp_path_factory.mktemp("crowded") / "report.html"
    path.write_text(make_page(comparison).html, encoding="utf-8")
    return path


def opened(browser: Browser, path, width: int = 1280, *, dark: bool = False) -> Browser:
    browser.requests.clear()
    browser.problems.clear()
    browser.screen(width, dark=dark)
    browser.open(path)
    return browser


def test_every_chart_is_drawn_and_nothing_is_asked_for(browser, html_file):
    opened(browser, html_file)
    assert browser.requests == [html_file.as_uri()]
    assert browser.problems == []
    browser.value("document.querySelectorAll('details').forEach((it) => { it.open = true; })")
    browser.value("new Promise((done) => setTimeout(done, 1500))")
    assert browser.value("document.querySelectorAll('figure').length") == 15
    assert browser.value("document.querySelectorAll('figure svg.marks').length") == 15
    assert browser.requests == [html_file.as_uri()]
    assert browser.problems == []


def test_a_request_would_be_seen_and_is_forbidden_by_the_page(browser, html_file, tmp_path):
    """What the test above relies on: the browser tells of requests, and the policy stops them."""
    address = "https://example.org/picture.png"
    html = html_file.read_text(encoding="utf-8")
    own = f'<body><img src="{address}"><iframe src="https://example.org/page"></iframe>'
    (tmp_path / "strict.html").write_text(html.replace("<body>", own), encoding="utf-8")
    opened(browser, tmp_path / "strict.html")
    for forbidden in ("Loading the image", "Framing"):
        assert any(forbidden in problem for problem in browser.problems), forbidden
    loose = html.replace("<body>", own).replace("Content-Security-Policy", "nothing")
    (tmp_path / "loose.html").write_text(loose, encoding="utf-8")
    opened(browser, tmp_path / "loose.html")
    assert address in browser.requests


def test_filters_of_method_temperature_and_text_hide_answers(browser, html_file):
    opened(browser, html_file)
    assert browser.value(SHOWN) == 5 * 12  # of five prompts, at the lowest temperature
    browser.value("document.querySelector('[name=method][value=discopop]').click()")
    assert browser.value(SHOWN) == 5 * 11
    browser.value("document.querySelector('.filters .none').click()")
    assert browser.value(SHOWN) == 0
    browser.value("document.querySelector('[name=method][value=discopop]').click()")
    assert browser.value(SHOWN) == 5
    assert browser.value("document.querySelector('.count').textContent").startswith(
        "24 of 552 answers to 24 of 24 prompts"
    )
    type_text(browser, "review 1:")
    assert browser.value(SHOWN) == 1
    browser.value(
        "(() => { const it = document.querySelector('[name=temperature]'); it.value = ''; "
        "it.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )
    assert browser.value(SHOWN) == 2
    type_text(browser, "no such words")
    assert browser.value(SHOWN) == 0
    type_text(browser, "")
    browser.value("document.querySelector('.more').click()")
    assert browser.value(SHOWN) == 20


def type_text(browser: Browser, text: str) -> None:
    browser.value("document.querySelector('[type=search]').select()")
    browser.call("Input.insertText", text=text or " ")


def test_a_click_on_the_key_hides_a_method_in_the_charts(browser, html_file, comparison):
    opened(browser, html_file)
    own = looks(comparison.methods)["discopop"].colour
    mark = f"[data-chart=frontier] .mark-symbol path[fill='{own}']"
    points = f'document.querySelectorAll("{mark}").length'
    assert browser.value(points) == 1
    click = "document.querySelector('.methods [data-method=discopop]').click()"
    wait = "new Promise((done) => setTimeout(done, 300))"
    browser.value(f"{click}; {wait}")
    assert browser.value(points) == 0
    browser.value(f"{click}; {wait}")
    assert browser.value(points) == 1


def test_a_click_on_a_head_sorts_the_table(browser, html_file):
    opened(browser, html_file)
    browser.value("document.querySelectorAll('#main-table .sort')[4].click()")
    first = "document.querySelector('#main-table tbody tr .name').textContent"
    assert browser.value(first) == "dpo beta=0.1"
    browser.value("document.querySelectorAll('#main-table .sort')[4].click()")
    assert browser.value(first) == "start"
    browser.value("document.querySelectorAll('#main-table .sort')[0].click()")
    assert browser.value(first) == "best of 4"


def test_a_command_is_copied(browser, html_file):
    opened(browser, html_file)
    browser.value("document.querySelector('#again .copy').click()")
    browser.value("new Promise((done) => setTimeout(done, 300))")
    assert browser.value("document.querySelector('#again .copy').textContent") == "Copied"


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_window_or_its_chart(browser, html_file, crowded_page, width):
    for path in (html_file, crowded_page):
        opened(browser, path, width)
        assert browser.value("document.documentElement.scrollWidth") == width
        assert browser.value(OVERFLOW) <= 2
        assert browser.problems == []


def test_text_of_charts_follows_the_theme_and_print_is_black_on_white(browser, html_file):
    opened(browser, html_file)
    assert browser.value(COLOUR) == "rgb(27, 31, 36)"
    browser.screen(1280, dark=True)
    assert browser.value(COLOUR) == "rgb(230, 232, 235)"
    assert browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(18, 20, 23)"
    browser.screen(1280, dark=True, media="print")
    assert browser.value(COLOUR) == "rgb(0, 0, 0)"
    assert browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.value("getComputedStyle(document.querySelector('nav')).display") == "none"


def test_text_of_others_runs_nothing(browser, html_file, comparison, tmp_path):
    from dataclasses import replace

    hostile = replace(
        comparison,
        title=HOSTILE,
        verdict=HOSTILE,
        methods=tuple(replace(it, name=it.name + HOSTILE) for it in comparison.methods),
        curves=tuple(replace(it, method=it.method + HOSTILE) for it in comparison.curves),
        samples=tuple(replace(it, completion=HOSTILE) for it in comparison.samples),
    )
    path = tmp_path / "report.html"
    path.write_text(make_page(hostile).html, encoding="utf-8")
    opened(browser, path)
    assert browser.value("window.hacked") is None
    assert browser.value("document.querySelector('.answer .text').textContent") == HOSTILE
    assert browser.value("document.querySelectorAll('figure img, .answer img').length") == 0
    assert browser.requests == [path.as_uri()]


def test_a_page_of_nothing_has_no_problems(browser, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(
        make_page(Comparison("Nothing yet", "", "prefopt compare")).html, encoding="utf-8"
    )
    opened(browser, path, 390)
    assert browser.problems == []


@pytest.mark.parametrize(("in_ci", "outcome"), [("true", "Failed"), ("", "Skipped")])
def test_without_chromium_tests_skip_but_never_in_ci(monkeypatch, tmp_path, in_ci, outcome):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("PREFOPT_CHROMIUM", raising=False)
    monkeypatch.setenv("CI", in_ci)
    with pytest.raises((pytest.fail.Exception, pytest.skip.Exception)) as error:
        find_chromium()
    assert (error.typename, "apt-get install chromium" in str(error.value)) == (outcome, True)
