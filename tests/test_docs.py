"""docs/networks.md and its pictures: as generated, complete, and drawn so that they can be read."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
from PIL import ImageFont
from torch import nn

import resnext.networks
from resnext import catalog
from resnext.layers import Network

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "networks.md").read_text(encoding="utf-8")
PICTURES = sorted((DOCS / "blocks").glob("*.svg"))
MODULES = sorted(file.stem for file in Path(resnext.networks.__path__[0]).glob("[!_]*.py"))
SVG = "{http://www.w3.org/2000/svg}"
# Drawn as what they extend, or as the form (c) that they equal: with 32 paths side by side they could not be read.
NOT_DRAWN = {"BiasedConvNorm", "SummedBottleneck", "ConcatenatedBottleneck", "SummedBranches"}


@pytest.fixture(scope="module")
def generator() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DOCS)
        yield import_module("generate")


def test_what_is_generated_is_what_is_committed(generator: ModuleType) -> None:
    committed = {f"blocks/{picture.name}": picture.read_text(encoding="utf-8") for picture in PICTURES}
    generated = generator.pages()
    stale = [name for name in generated if generated[name] != {"networks.md": PAGE, **committed}.get(name)]
    assert not stale, "run `make docs`"
    assert committed.keys() == generated.keys() - {"networks.md"}, "run `make docs`"


def test_every_module_and_every_listed_name_is_there() -> None:
    headings = re.findall(r"^## .+", PAGE, flags=re.MULTILINE)
    assert len(headings) == len(MODULES)
    for row in catalog.rows():
        training = row["training_parameters"] if row["training_parameters"] != row["parameters"] else ""
        [line] = [line for line in PAGE.splitlines() if line.startswith(f"| `{row['name']}` |")]
        cells = [cell.strip().replace(",", "") for cell in line.strip("|").split("|")[2:6]]
        assert cells == [str(row["parameters"]), str(training), str(row["macs"]), str(row["image_size"])]
    for module in MODULES:
        assert f"`{next(iter(import_module(f'resnext.networks.{module}').VARIANTS))}`" in PAGE


def test_every_kind_of_block_is_drawn(generator: ModuleType) -> None:
    families = generator.FAMILIES.values()
    drawn = [part for family in families for figure in family.figures for part in figure.module().modules()]
    missing = []
    for module in MODULES:
        for name, kind in vars(import_module(f"resnext.networks.{module}")).items():
            is_block = isinstance(kind, type) and issubclass(kind, nn.Module) and kind.__module__.endswith(module)
            if is_block and not issubclass(kind, Network | nn.Conv2d | nn.Linear) and name not in NOT_DRAWN:
                missing += [] if any(isinstance(part, kind) for part in drawn) else [f"{module}.{name}"]
    assert not missing, "add them to docs/figures.py"


def test_a_picture_says_what_the_block_is() -> None:
    texts = re.findall(r">([^<>\n]+)</text>", (DOCS / "blocks/resnext50_32x4d_stage1_block2.svg").read_text("utf-8"))
    assert texts == [
        *("256×56×56", "1×1, 256 → 128", "BN, ReLU"),
        *("3×3, 128 → 128", "32 groups", "BN, ReLU"),
        *("1×1, 128 → 256", "BN", "ReLU", "256×56×56"),
    ]
    image = re.search(r"!\[(.+?)\]\(blocks/resnext50_32x4d_stage1_block2\.svg\)", PAGE)
    assert image is not None
    assert image[1].endswith("3×3 128 → 128 32 groups – BN – ReLU, 1×1 128 → 256 – BN | identity), ReLU; 256×56×56")


def test_every_picture_is_shown_with_words() -> None:
    shown = dict(re.findall(r"!\[(.*?)\]\(blocks/(.+?)\)", PAGE))
    assert sorted(shown.values()) == [picture.name for picture in PICTURES]
    assert all(len(words) > 30 for words in shown)


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.stem)
def test_a_picture_can_be_read(picture: Path) -> None:
    """White behind; boxes apart, their text within, and no line through them."""
    root = ElementTree.fromstring(picture.read_text(encoding="utf-8"))
    assert float(root.attrib["width"]) <= 900
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    background, *rects = root.iter(f"{SVG}rect")
    assert (background.attrib["width"], background.attrib["fill"]) == ("100%", "#ffffff")
    sides = ([float(rect.attrib[key]) for key in ("x", "y", "width", "height")] for rect in rects)
    boxes = [(x, y, x + w, y + h) for x, y, w, h in sides]
    for box, other in itertools.combinations(boxes, 2):
        assert box[2] < other[0] or other[2] < box[0] or box[3] < other[1] or other[3] < box[1]
    for text in root.iter(f"{SVG}text"):
        assert text.text
        size = float(text.attrib["font-size"])
        length = ImageFont.load_default(size).getlength(text.text)
        x, foot = float(text.attrib["x"]), float(text.attrib["y"])
        left = x if text.get("text-anchor") == "start" else x - length / 2
        assert left > 0
        assert left + length < width
        assert foot < height
        for box in boxes:
            apart = box[2] < left or left + length < box[0] or box[3] < foot - size or foot < box[1]
            within = box[0] < left and left + length < box[2] and box[1] < foot - size * 0.7 and foot < box[3]
            assert apart or within, text.text
    for line in root.iter(f"{SVG}polyline"):
        points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
        for (x, y), (to_x, to_y) in itertools.pairwise(points):
            assert x == to_x or y == to_y
            for left, top, right, bottom in boxes:
                crosses = min(x, to_x) < right - 1 and left + 1 < max(x, to_x) and top + 1 < max(y, to_y)
                assert not (crosses and min(y, to_y) < bottom - 1)


def test_the_generator_keeps_the_limits_of_the_house() -> None:
    assert not [file for file in DOCS.glob("*.py") if len(file.read_text().splitlines()) > 350]
