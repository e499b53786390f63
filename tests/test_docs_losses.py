"""Pages, pictures and tables about losses show what the code computes."""

import importlib
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch

from prefopt.losses import get_loss, list_losses
from prefopt.losses.vocabulary import specs_of

DOCS = Path(__file__).parent.parent / "docs"
BUILT_IN = [loss for loss in list_losses() if loss.built_in]


def docs_module(name: str):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DOCS)
        return importlib.import_module(name)


@pytest.fixture(scope="module")
def curves():
    return docs_module("loss_curves")


@pytest.fixture(scope="module")
def pictures():
    pytest.importorskip("matplotlib")
    return docs_module("pictures")


@pytest.fixture(scope="module")
def generate():
    return docs_module("generate")


@pytest.fixture(scope="module")
def tables():
    return docs_module("page_tables")


@pytest.mark.parametrize("loss", BUILT_IN, ids=lambda loss: loss.name)
def test_curves_are_finite_and_slopes_are_their_derivatives(curves, loss):
    for curve in curves.loss_curves(loss):
        assert curve.losses.isfinite().all()
        assert curve.slopes.isfinite().all()
        between = (curve.slopes[1:] + curve.slopes[:-1]) / 2
        steps = curve.losses.diff() / curve.x.diff()
        # Kinks, jumps and changes of rank are where a step differs from the slopes at its ends.
        close = torch.isclose(
            steps, between, rtol=0.02, atol=0.01 * float(curve.slopes.abs().max())
        )
        assert close.double().mean() > 0.95, curve.label


def test_the_curve_of_dpo_is_the_logistic_loss_of_the_margin(curves):
    plain, *smoothed = curves.loss_curves(get_loss("dpo"))
    torch.testing.assert_close(plain.losses, torch.log1p(torch.exp(-plain.x)))
    torch.testing.assert_close(plain.slopes, -torch.sigmoid(-plain.x))
    assert len(smoothed) == 2


def test_what_a_pair_adds_to_a_batch_is_its_own_loss_where_pairs_do_not_interact(curves):
    loss, variant = get_loss("hinge"), curves.Variant("hinge")
    x = curves.axis_of(loss)
    alone = curves.curve(loss, variant, x).losses
    added = curves.contributions(loss, variant, curves.make_inputs(loss, variant, x))
    torch.testing.assert_close(added, alone)


def test_no_log_prob_of_a_picture_is_above_zero(curves):
    for loss in BUILT_IN:
        for variant in (curves.Variant("", inputs={"k": 4, "desirable": 1}),):
            inputs = curves.make_inputs(loss, variant, curves.axis_of(loss))
            logps = [
                inputs[spec.name]
                for spec in specs_of(inputs)
                if spec.quantity in ("logps", "head_logps")
            ]
            assert all((values <= 0).all() for values in logps), loss.name


def test_dpo_is_scaled_to_the_order_of_a_loss_and_not_otherwise(curves, pictures):
    scales = {}
    for name in ("hinge", "ipo", "sppo"):
        (first, *_) = curves.loss_curves(get_loss(name))
        scales[name] = pictures.dpo_scale(first, curves.dpo_beside(get_loss(name), [first]))
    # IPO's slope at margin 0 is -1/beta^2 = -100 where DPO's is -1/2; SPPO's is -1/(2 beta^2).
    assert scales == {"hinge": 1.0, "ipo": 200.0, "sppo": 1e6}


def test_a_picture_is_drawn_to_the_same_bytes(pictures, tmp_path):
    first, second = tmp_path / "first.svg", tmp_path / "second.svg"
    for path in (first, second):
        pictures.write_picture(get_loss("apo_down"), path)
    assert first.read_bytes() == second.read_bytes()
    assert ElementTree.parse(first).getroot().tag.endswith("svg")


def test_pictures_are_drawn_once_for_every_loss_large_and_small(
    generate, pictures, tmp_path, monkeypatch
):
    for name in ("write_picture", "write_small"):
        monkeypatch.setattr(pictures, name, lambda loss, path: path.write_text(loss.name))
    generate.write_pictures(tmp_path)
    assert {path.stem for path in tmp_path.glob("*.svg")} == {
        f"{size}{loss.name}" for loss in list_losses() for size in ("", "small_")
    }
    for name in ("write_picture", "write_small"):
        monkeypatch.setattr(pictures, name, lambda loss, path: pytest.fail("drawn again"))
    generate.write_pictures(tmp_path)


def test_pictures_have_no_background(pictures, tmp_path):
    path = tmp_path / "small.svg"
    pictures.write_small(get_loss("dpo"), path)
    text = path.read_text()
    assert re.search(r'id="patch_1">\s*<path [^>]*style="fill: none"', text)  # the figure's
    assert "#ffffff" not in text


@pytest.mark.parametrize("loss", BUILT_IN, ids=lambda loss: loss.name)
def test_the_page_of_a_loss_has_its_picture_advice_and_differences(generate, loss):
    page = generate.loss_page(loss)
    assert f"../_pictures/{loss.name}.svg" in page
    assert "## When to use it\n\nUse it when " in page
    assert "## How other implementations differ\n\n" in page
    assert "Args:" not in page.split("## Function")[0]


def test_losses_with_golden_cases_say_how_others_differ(tables):
    assert {*tables.golden.MATCHED} <= {loss.name for loss in BUILT_IN if loss.differs_from}


def test_a_page_lists_each_difference_and_says_where_none_is_known(generate):
    points = generate.differences(get_loss("simpo_hinge")), generate.differences(get_loss("dpop"))
    assert points == ("- None: the same in the authors' code.", generate.NOT_ELSEWHERE)
    assert generate.differences(get_loss("aot")).count("\n- ") == 1


def test_the_choosing_page_and_the_gallery_have_every_loss_once(tables):
    advice, gallery = tables.advice_tables(), tables.gallery()
    for loss in BUILT_IN:
        assert advice.count(f"[`{loss.name}`](losses/{loss.name}.md)") == 1
        assert gallery.count(f"(_pictures/small_{loss.name}.svg)](losses/{loss.name}.md)") == 1


def test_the_table_of_golden_cases_adds_up(tables):
    rows = [line.split(" | ") for line in tables.golden_counts().splitlines()[2:]]
    *losses, total = [[int(cell.strip("| ")) for cell in row[1:]] for row in rows]
    assert [sum(column) for column in zip(*losses, strict=True)] == total
    assert total[:2] == [
        sum(tables.golden.MATCHED.values()),
        sum(tables.golden.NOT_TARGET.values()),
    ]
    assert f"{total[0] + total[1]} recorded cases" in (DOCS / "faithfulness.md").read_text()
    readme = (DOCS.parent / "README.md").read_text()
    assert f"{total[0]} recorded values" in readme
    assert f"{total[1]} listed with the reason" in readme
    reasons = [
        int(row.split(" | ")[1].strip("| ")) for row in tables.golden_reasons().splitlines()[2:]
    ]
    assert sum(reasons) == total[1]


def test_roles_of_docstrings_become_markdown(tables):
    text = tables.markdown("at :math:`\\beta` see :func:`~prefopt.f`")
    assert text == "at $\\beta$ see `prefopt.f`"
