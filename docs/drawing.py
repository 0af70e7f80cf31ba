"""Draws what `tracing` found as an SVG: time runs downwards, branches stand side by side.

The background is white and the strokes are dark, so that a picture can be read on light and on dark pages.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from xml.sax.saxutils import escape

from tracing import Flow, Fork, Series, Shape, Step

MAIN, SMALL = 13, 11  # pixels: the letters' sizes
LETTER = 0.64  # of a letter's size: the mean width of a wide, bold font's, so that text fits in any
PADDING, GAP, SIDE = 7, 20, 14  # pixels: within boxes, between steps, between branches
BUS, JOIN, RADIUS = 16, 30, 9  # pixels: where branches part, where they meet, the circle of a sum
MARGIN, WIDEST = 12, 900
INK = "#1f2937"
FILLS = {
    "convolution": "#dbeafe",
    "linear": "#fde68a",
    "pool": "#dcfce7",
    "shortcut": "#f3e8ff",
    "small": "#f3f4f6",
}
HEAD = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {view}" role="img" '
    'font-family="Helvetica, Arial, \'DejaVu Sans\', sans-serif" text-anchor="middle" fill="#111827">\n'
    "<title>{title}</title>\n"
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    f'<path d="M0 0 8 4 0 8z" fill="{INK}"/></marker></defs>\n'
    '<rect width="100%" height="100%" fill="#ffffff"/>\n'
)


@dataclass(frozen=True)
class Extent:
    """The room that something takes: to the left and to the right of the line that runs through it, and its height."""

    left: float
    right: float
    height: float


@dataclass
class Picture:
    """The elements of an SVG, drawn from the top; the shape behind the `last` step is written elsewhere."""

    last: Step | Fork
    elements: list[str] = field(default_factory=list)

    def line(self, *points: tuple[float, float], tip: bool = True) -> None:
        """Draw a line through points, with an arrow's tip at its end."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        end = ' marker-end="url(#tip)"' if tip else ""
        self.elements.append(f'<polyline points="{path}" fill="none" stroke="{INK}" stroke-width="1.5"{end}/>')

    def text(self, x: float, y: float, words: str, size: int, more: str = "") -> None:
        """Write words with their middle at x and their foot at y."""
        self.elements.append(f'<text x="{x:g}" y="{y:g}" font-size="{size}"{more}>{escape(words)}</text>')

    def box(self, x: float, y: float, step: Step) -> None:
        """Draw a step with its upper middle at (x, y)."""
        extent = _box(step)
        rounded = 11 if step.kind == "small" else 4
        self.elements.append(
            f'<rect x="{x - extent.left:g}" y="{y:g}" width="{2 * extent.left:g}" height="{extent.height:g}" '
            f'rx="{rounded}" fill="{FILLS[step.kind]}" stroke="{INK}" stroke-width="1.2"/>'
        )
        y += PADDING - 3
        for words, size in _lines(step):
            y += size + 3
            weight = ' font-weight="bold"' if size == MAIN else ""
            self.text(x, y - 1, words, size, weight)

    def series(self, series: Series, x: float, y: float) -> float:
        """Draw steps along the line at x from y on, each with the arrow to it; return where they end."""
        for item in series:
            if isinstance(item, Fork):
                y = self.fork(item, x, y)
            else:
                self.line((x, y), (x, y + GAP))
                self.box(x, y + GAP, item)
                y += GAP + _box(item).height
        return y

    def fork(self, fork: Fork, x: float, y: float) -> float:
        """Draw branches and where they meet; return where that ends."""
        places = [x + offset for offset in _offsets(fork)]
        bus, meeting = y + BUS, y + _fork(fork).height - (JOIN if fork.join == "concatenation" else 2 * RADIUS)
        self.line((x, y), (x, bus), tip=False)
        self.line((min(*places, x), bus), (max(*places, x), bus), tip=False)
        bottoms = [self.series(branch, place, bus) for branch, place in zip(fork.branches, places, strict=True)]
        if fork.join == "concatenation":
            for place, bottom in zip(places, bottoms, strict=True):
                self.line((place, bottom), (place, meeting))
            left, right = places[0] - 20, places[-1] + 20
            self.elements.append(
                f'<rect x="{left:g}" y="{meeting:g}" width="{right - left:g}" height="7" rx="2" fill="{INK}"/>'
            )
            self.line((x, meeting + 7), (x, meeting + JOIN), tip=False)
            if fork is not self.last:
                self.text(x + 8, meeting + JOIN - 6, _shape(fork.output), SMALL, ' text-anchor="start"')
            return meeting + JOIN
        self.line((x, bottoms[0]), (x, meeting))
        for place, bottom in zip(places[1:], bottoms[1:], strict=True):
            self.line((place, bottom), (place, meeting + RADIUS), (x + RADIUS, meeting + RADIUS))
        self.sum(x, meeting + RADIUS)
        return meeting + 2 * RADIUS

    def sum(self, x: float, y: float) -> None:
        """Draw a ⊕ around (x, y)."""
        arm = RADIUS - 3
        self.elements.append(
            f'<circle cx="{x:g}" cy="{y:g}" r="{RADIUS}" fill="#ffffff" stroke="{INK}" stroke-width="1.5"/>'
            f'<path d="M{x - arm:g} {y:g}h{2 * arm}M{x:g} {y - arm:g}v{2 * arm}" stroke="{INK}" stroke-width="1.5"/>'
        )


def svg(flow: Flow, title: str) -> str:
    """Return the picture of a module; it is at most `WIDEST` pixels wide."""
    extent = _series(flow.series)
    half = LETTER * MAIN * len(_shape(flow.input)) / 2
    left, right = max(extent.left, half), max(extent.right, half)
    picture, x, y = Picture(flow.series[-1]), MARGIN + left, float(MARGIN + MAIN)
    picture.text(x, y, _shape(flow.input), MAIN)
    y = picture.series(flow.series, x, y + 5)
    picture.line((x, y), (x, y + GAP))
    y += GAP + MAIN + 4
    picture.text(x, y, _shape(flow.output), MAIN)
    width, height = left + right + 2 * MARGIN, y + MARGIN
    scale = min(1.0, WIDEST / width)
    view = f"{width:g} {height:g}"
    head = HEAD.format(width=f"{scale * width:.0f}", height=f"{scale * height:.0f}", view=view, title=escape(title))
    return head + "\n".join(picture.elements) + "\n</svg>\n"


def in_words(flow: Flow) -> str:
    """Return what a picture shows, for those who don't see it."""
    return f"{_shape(flow.input)}: {_series_in_words(flow.series)}; {_shape(flow.output)}"


def _series_in_words(series: Series) -> str:
    parts = []
    for item in series:
        if isinstance(item, Fork):
            branches = " | ".join(_series_in_words(branch) or "identity" for branch in item.branches)
            parts.append(f"{item.join} of ({branches})")
        else:
            name = " ".join((item.name.replace(", ", " ", 1), *item.details))
            parts.append(" – ".join((*item.before, name, *item.after)))
    return ", ".join(parts)


def _shape(shape: Shape) -> str:
    return "×".join(map(str, shape))


def _lines(step: Step) -> list[tuple[str, int]]:
    """Return the lines of text in a box, with the sizes of their letters."""
    size = SMALL if step.kind == "small" else MAIN
    words = [(", ".join(each), SMALL) for each in (step.before, step.details, step.after)]
    lines = [words[0], (step.name, size), *words[1:]]
    return [line for line in lines if line[0]]


def _box(step: Step) -> Extent:
    lines = _lines(step)
    half = max(LETTER * size * len(words) for words, size in lines) / 2 + PADDING
    return Extent(half, half, sum(size + 3 for _, size in lines) + 2 * PADDING - 5)


def _series(series: Series) -> Extent:
    """Return the room of steps with the arrows to them."""
    extents = [_fork(item) if isinstance(item, Fork) else _box(item) for item in series]
    arrows = GAP * sum(isinstance(item, Step) for item in series)
    return Extent(
        max([4.0, *(extent.left for extent in extents)]),
        max([4.0, *(extent.right for extent in extents)]),
        sum(extent.height for extent in extents) + arrows,
    )


def _offsets(fork: Fork) -> list[float]:
    """Return where the branches' lines are, from the fork's: a sum's first branch goes straight on."""
    extents = [_series(branch) for branch in fork.branches]
    offsets = [0.0]
    for before, after in pairwise(extents):
        offsets.append(offsets[-1] + before.right + SIDE + after.left)
    shift = 0.0 if fork.join == "sum" else (offsets[-1] + extents[-1].right - extents[0].left) / 2
    return [round(offset - shift, 1) for offset in offsets]


def _fork(fork: Fork) -> Extent:
    extents, offsets = [_series(branch) for branch in fork.branches], _offsets(fork)
    end = GAP + JOIN if fork.join == "concatenation" else GAP + 2 * RADIUS
    label = LETTER * SMALL * len(_shape(fork.output)) + 8 if fork.join == "concatenation" else 0.0
    return Extent(
        max(extent.left - offset for extent, offset in zip(extents, offsets, strict=True)),
        max(label, *(extent.right + offset for extent, offset in zip(extents, offsets, strict=True))),
        BUS + max(extent.height for extent in extents) + end,
    )
