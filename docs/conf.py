"""Configuration of the documentation: Sphinx, MyST, Furo; nothing is fetched from the network."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import generate  # noqa: E402 - the folder is on the path only now

from prefopt import __version__  # noqa: E402

project = "prefopt"
author = "the prefopt authors"
copyright = f"2026, {author}"
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build", "examples"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
smartquotes = False  # the tables hold code: 'dpo + 0.2*sft'
suppress_warnings = ["myst.header"]  # the changelog starts where its own title ends

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes of dataclasses are described once, in the class
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"prefopt {release}"
html_show_sphinx = False
html_theme_options = {"source_repository": "", "top_of_page_buttons": []}


def setup(app):
    """Write the pages of the losses, and fill the tables that come from the code."""
    generate.write_loss_pages(HERE / "losses")
    app.connect("source-read", generate.fill_tables)
    return {"parallel_read_safe": True}
