"""Colours and shapes: readable on white and on dark, and different for each method."""

import pytest

from prefopt.compare import MethodResult
from prefopt.compare.report.palette import BASELINE, COLOURS, looks


def luminance(colour: str) -> float:
    """Return the relative luminance of #RRGGBB (WCAG 2.2)."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [it / 12.92 if it <= 0.04045 else ((it + 0.055) / 1.055) ** 2.4 for it in parts]
    return sum(weight * it for weight, it in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours (WCAG 2.2)."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colour", [*COLOURS, BASELINE])
@pytest.mark.parametrize("page", ["#ffffff", "#121417"])
def test_each_colour_stands_out_from_both_pages(colour, page):
    assert contrast(colour, page) >= 3


def test_methods_of_a_loss_share_its_colour_and_differ_in_shape():
    methods = [
        MethodResult("start", "start", is_baseline=True),
        MethodResult("dpo 1", "dpo"),
        MethodResult("dpo 2", "dpo"),
        MethodResult("ipo", "ipo"),
    ]
    found = looks(methods)
    assert found["start"].colour == BASELINE
    assert found["dpo 1"].colour == found["dpo 2"].colour == COLOURS[0]
    assert found["ipo"].colour == COLOURS[1]
    assert len(set(found.values())) == 4


@pytest.mark.parametrize("losses", [40, 6, 1])
def test_forty_methods_look_different(losses):
    methods = [MethodResult(f"m{it}", f"l{it % losses}") for it in range(40)]
    assert len(set(looks(methods).values())) == 40


def test_more_methods_than_looks_are_still_drawn():
    assert len(looks([MethodResult(f"m{it}", "dpo") for it in range(60)])) == 60
