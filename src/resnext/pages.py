"""Pages that need nothing but themselves: one style, templates, and pictures as SVG inside them."""

from __future__ import annotations

import base64
import io
from importlib import resources
from typing import TYPE_CHECKING, Any

from resnext.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind people can tell apart; black last, as it is for text.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#555555"
MISSING = "Reports need matplotlib and jinja2. Install them: pip install 'resnext[report]'."


def render(package: str, template: str, **values: Any) -> str:
    """Return a template of a package, filled in, with the style of all pages as `style`; what is filled in is escaped.

    Raises UserError where jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError:
        raise UserError(MISSING) from None
    text = resources.files(package).joinpath(template).read_text(encoding="utf-8")
    style = resources.files("resnext").joinpath("page.css").read_text(encoding="utf-8")
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return page.from_string(text).render(style=style, **values)


def figure(width: float, height: float) -> Figure:
    """Return an empty picture, in inches; raises UserError where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError(MISSING) from None
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def svg(drawn: Figure) -> str:
    """Return a picture as an SVG element, its letters as outlines, so that it looks the same everywhere."""
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "resnext"}):
        drawn.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]


def data_uri(content: bytes, kind: str) -> str:
    """Return a file as the address of an image within a page; `kind` such as image/jpeg."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
