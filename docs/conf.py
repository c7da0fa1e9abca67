"""The site: Sphinx with MyST. `make docs` builds docs/_build/html; every warning is an error.

Pages are Markdown whose links also work in the repository; `_site/links.py` turns them into the site's.
Notebooks (docs/notebooks/*.md) are run when they or the library have changed, on a CPU.
"""

import os
import pathlib
import sys

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))  # fmt: skip

from jaxlm import __version__  # noqa: E402

project, author, release = "jaxlm", "the jaxlm developers", __version__
copyright = "the jaxlm developers, Apache License 2.0"
extensions = [
  "sphinx.ext.autodoc",
  "myst_nb",
  "_site.links",
  "_site.docstrings",
  "_site.fields",
  "_site.mathml",
]
exclude_patterns = ["_build", "_site", "**/.ipynb_checkpoints"]

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 4
nb_execution_mode = "cache"
nb_execution_timeout = 1800  # seconds of a cell: a guard, generous for busy machines
nb_execution_raise_on_error = True
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
default_role = "code"
smartquotes = False
html_math_renderer = "mathml"
python_display_short_literal_types = True

html_theme = "furo"
html_title = "jaxlm"
html_static_path = ["_site/static"]
html_css_files = ["jaxlm.css"]
html_theme_options = {"sidebar_hide_name": False}
html_show_sphinx = False
