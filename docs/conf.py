"""The documentation site: `make docs` builds out/site from the pages of this folder, the docstrings and examples/tutorials.

What is generated (docs/reference, docs/tutorials) lies beside the pages while it is built, and git ignores it.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import site_pages  # noqa: E402  (beside this file, which Sphinx does not import from its folder)

project = "meanfield"
author = "The meanfield authors"
copyright = "2026, The meanfield authors"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.intersphinx",
    "sphinxcontrib.bibtex",
    "sphinx_gallery.gen_gallery",
]
root_doc = "index"
exclude_patterns = ["tutorials/*.ipynb", "tutorials/*.py", "tutorials/*.zip"]
nitpicky = False  # type hints name torch and numpy, whose inventories are on the network
show_warning_types = True

# Pages
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
suppress_warnings = ["config.cache"]
bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "plain"

# Reference: types stand with the parameters; a dataclass shows its fields with their texts
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True}
python_maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# With a network: sphinx-build -D intersphinx_mapping.. or this, uncommented; without, links to torch and numpy stay plain names
# intersphinx_mapping = {"torch": ("https://docs.pytorch.org/docs/stable", None), "numpy": ("https://numpy.org/doc/stable", None)}
intersphinx_mapping = {}

# Tutorials: scripts that run while the site is built (QUICK=1: shown, not run)
sphinx_gallery_conf = {
    "examples_dirs": "../examples/tutorials",
    "gallery_dirs": "tutorials",
    "filename_pattern": r"/\d_",
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "show_signature": False,
    "write_computation_times": False,
    "remove_config_comments": True,
    "matplotlib_animations": False,
    "image_scrapers": ("matplotlib",),
    "default_thumb_file": str(HERE / "images" / "own_network.png"),
    "abort_on_example_error": True,
    "capture_repr": (),  # what is printed and drawn, not what the last line returns
}

# Appearance
html_theme = "furo"
html_title = "meanfield"
html_static_path = ["site"]
html_css_files = ["wide.css"]
html_show_sourcelink = False
html_copy_source = False
mathjax_path = "mathjax/tex-chtml.js"  # copied by site_pages from a wheel, so that pages need no network
mathjax3_config = {"chtml": {"displayAlign": "left", "displayIndent": "2em"}}


def setup(app: object) -> None:
    """Called by Sphinx"""
    site_pages.setup(app)
