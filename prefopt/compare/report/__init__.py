"""The report of a comparison: one page that needs no network, pictures, and a table as CSV."""

from pathlib import Path

from prefopt.compare.results import Comparison

__all__ = ["write_report"]


def write_report(comparison: Comparison, folder: Path) -> None:
    """Write ``report.html``, a PNG of each chart, and ``results.csv``.

    Args:
        comparison: What was found; parts that are missing are named on the page.
        folder: Where to write; made if it is missing. Files of these names are replaced.

    Raises:
        ImportError: If what draws charts is not installed.
        ValueError: If two methods have one name.
    """
    try:
        from prefopt.compare.report.page import make_page
        from prefopt.compare.report.pictures import draw_pictures
    except ModuleNotFoundError as error:
        raise ImportError(
            f"a report needs {error.name}: pip install 'prefopt[report]'", name=error.name
        ) from None
    from prefopt.compare.report.spreadsheet import write_csv

    folder.mkdir(parents=True, exist_ok=True)
    page = make_page(comparison)
    (folder / "report.html").write_text(page.html, encoding="utf-8")
    draw_pictures(page.charts, folder)
    write_csv(comparison, folder / "results.csv")
