"""The documentation as pages: Sphinx reads the same Markdown that is read here. `make docs` builds them."""

from importlib.metadata import version as version_of
from typing import Any

from latex2mathml.converter import convert

project, author, copyright = "nas-kd", "the nas-kd contributors", "the nas-kd contributors"
extensions = ["myst_parser"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_theme = "furo"
version = release = version_of("nas-kd")
html_title = f"nas-kd {release}"
html_show_sourcelink = False
html_math_renderer = "mathml"
exclude_patterns = ["_build", "web"]
nitpicky = True


def _inline(translator: Any, node: Any) -> None:
    translator.body.append(convert(node.astext()))
    _skip()


def _block(translator: Any, node: Any) -> None:
    # On a phone a long equation scrolls by itself.
    math = convert(node.astext(), display="block")
    translator.body.append(f'<p style="overflow-x: auto">{math}</p>')
    _skip()


def _skip() -> None:
    from docutils.nodes import SkipNode

    raise SkipNode


def setup(app: Any) -> None:
    """Equations as MathML: browsers set it themselves, no page asks a network for a script."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
