"""Configuration of the documentation: Sphinx, MyST, Furo."""

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

from docutils import nodes

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import generate  # noqa: E402 - the folder is on the path only now
import page_tables  # noqa: E402

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
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "tasklist"]
myst_heading_anchors = 3
smartquotes_action = "D"  # dashes of autodoc; the tables hold quotes of code: 'dpo + 0.2*sft'
suppress_warnings = ["myst.header"]  # the changelog starts where its own title ends

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes of dataclasses are described once, in the class
napoleon_use_rtype = False
strip_signature_backslash = (
    True  # has napoleon escape names such as lambda_, which are links otherwise
)

html_theme = "furo"
html_title = f"prefopt {release}"
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["prefopt.css"]
html_theme_options = {"source_repository": "", "top_of_page_buttons": []}
SHORT_CODE = 30  # letters that fit on a line of a phone, also in a table


# With this package formulas need no network; its own extension would copy 24 MB to each build.
MATHJAX = find_spec("sphinx-mathjax-offline")
MATHJAX_FILES = ("tex-chtml.js", "output/chtml/fonts/woff-v2")
if MATHJAX:
    mathjax_path = "mathjax/tex-chtml.js"


def setup(app):
    """Write what comes from the code: pages and pictures of the losses, tables in other pages."""
    generate.write_loss_pages(HERE / "losses")
    generate.write_pictures(HERE / "_pictures")
    app.connect("source-read", page_tables.fill_tables)
    app.connect("env-get-outdated", pages_with_tables)
    app.connect("builder-inited", copy_mathjax)
    app.connect("doctree-resolved", mark_short_code)
    return {"parallel_read_safe": True}


def pages_with_tables(app, env, added, changed, removed):
    """Name the pages with tables from the code, which may have changed: they are read anew."""
    return [name for name in env.found_docs if "{{ " in env.doc2path(name).read_text()]


def mark_short_code(app, doctree, docname):
    """Give code whose words are short a class: the style sheet keeps each on one line."""
    for node in doctree.findall(nodes.literal):
        if max(map(len, node.astext().split()), default=0) <= SHORT_CODE:
            node["classes"].append("short")


def copy_mathjax(app):
    """Copy MathJax into the pages, where the package that brings it is installed."""
    if not MATHJAX or app.builder.format != "html":
        return
    source = Path(MATHJAX.origin).parent / "static" / "mathjax"
    for name in MATHJAX_FILES:
        target = Path(app.outdir) / "_static" / "mathjax" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (source / name).is_dir():
            shutil.copytree(source / name, target, dirs_exist_ok=True)
        else:
            shutil.copyfile(source / name, target)
