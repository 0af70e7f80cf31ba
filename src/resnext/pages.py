"""Pages that need nothing but themselves: one style, templates, and pictures as SVG inside them."""

from __future__ import annotations

import base64
import io
from importlib import resources
from typing import TYPE_CHECKING, Any

from resnext import machine
from resnext.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind people can tell apart; black last, as it is for text.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#555555"
MISSING = "Reports need matplotlib and jinja2. Install them: pip install 'resnext[report]'."


def render(package: str, template: str, **values: Any) -> str:
    """Return a page: a template of a package in the frame of all pages; what is filled in is escaped.

    Besides what is given, it has `style`, and in words `made_on`, this machine, and `made_with`, its software. Raises
    UserError where jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError:
        raise UserError(MISSING) from None
    names = {"frame.html": "resnext", "page.css": "resnext", template: package}
    texts = {name: resources.files(owner).joinpath(name).read_text("utf-8") for name, owner in names.items()}
    about = machine.description()
    environment = jinja2.Environment(
        loader=jinja2.DictLoader(texts),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(
        style=texts["page.css"],
        made_on=f"{about['processor']}, {about['cores']} cores, {about['memory_gib']} GiB",
        made_with=", ".join(f"{name} {version}" for name, version in machine.software().items()),
        **values,
    )


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
