"""Sphinx configuration: `python -m sphinx -W --keep-going -b html docs build/site`.

Sphinx, because the reference comes from docstrings in a format that the field's tools read, because a warning can fail
the build, and because its pages need no network: formulas become MathML when the site is built.
"""

from __future__ import annotations

import sys
from inspect import Signature
from pathlib import Path
from typing import Any

import latex2mathml.converter
from docutils import nodes
from sphinx.util.inspect import signature as sphinx_signature
from sphinx.util.inspect import stringify_signature

sys.path.insert(0, str(Path(__file__).parent))

import generated

import ssdcore

generated.make()

project = "ssdcore"
author = "The ssdcore developers"
copyright = author
version = release = ssdcore.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "myst_nb",
    "sphinx_copybutton",
    "sphinx_design",
]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
exclude_patterns = ["README.md"]
templates_path: list[str] = []

html_theme = "furo"
html_title = "ssdcore"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_show_sourcelink = False
html_copy_source = False

myst_enable_extensions = ["dollarmath", "colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the notebooks are committed as executed; CI executes them
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "show-inheritance": False}
default_role = "literal"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
python_use_unqualified_type_names = True
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
suppress_warnings = ["mystnb.unknown_mime_type", "ref.python"]  # attributes of one name in two classes


def _mathml(latex: str, display: str) -> str:
    # ∼ is a relation, with room around it, and ~ is not
    return str(latex2mathml.converter.convert(latex, display=display)).replace("&#x0007E;", "&#x0223C;")


def _inline(self: Any, node: nodes.math) -> None:
    self.body.append(_mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def _block(self: Any, node: nodes.math_block) -> None:
    r"""A formula, with its \tag{number} at the right edge."""
    formula, _, number = node.astext().rstrip().removesuffix("}").partition(r"\tag{")
    if not number:
        formula = node.astext()
    shown = f'<span class="eqno">({number})</span>' if number else ""
    self.body.append(f'<div class="math">{_mathml(formula, "block")}{shown}</div>')
    raise nodes.SkipNode


def _class_signature(app: Any, what: str, name: str, found: Any, options: Any, signature: str, returns: str) -> Any:
    """Classes that are made through a `__new__` of anything show what their `__init__` takes."""
    if what != "class" or not signature.startswith("(*args"):
        return None
    if found.__init__ is object.__init__ or getattr(found, "_is_protocol", False):
        return "", None
    own = sphinx_signature(found.__init__, bound_method=True).replace(return_annotation=Signature.empty)
    return stringify_signature(own, unqualified_typehints=True), None


def setup(app: Any) -> None:
    app.connect("autodoc-process-signature", _class_signature)
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))
