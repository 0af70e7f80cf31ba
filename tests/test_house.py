"""The limits of the house: sizes, names and what may be imported where."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "resnext"
FILES = sorted(SOURCE.rglob("*.py"))
DRAWERS = {"utils", "util", "helpers", "helper", "common", "misc"}

# Where a module may be imported; everywhere else it is refused. Paths are relative to src/resnext.
ALLOWED = {
    "torchvision": {"data/augmentation.py", "data/randaugment.py", "weights/published.py"},
    "openvino": {"inference/engines/openvino.py", "inference/quantization.py", "export.py", "benchmarking"},
    "fastapi": {"serving/app.py"},
    "pickle": set(),
    "cPickle": set(),
    "dill": set(),
    "joblib": set(),
    "timm": {"benchmarking"},
}
# The Pillow modules that decode; PIL.Image itself is also how pixels are resized.
DECODERS = {"data/images.py"}


def trees() -> Iterator[tuple[str, ast.Module]]:
    for file in FILES:
        yield file.relative_to(SOURCE).as_posix(), ast.parse(file.read_text(encoding="utf-8"))


def imported(tree: ast.Module) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


def test_files_are_at_most_350_lines_long() -> None:
    long = {str(file): n for file in FILES if (n := len(file.read_text().splitlines())) > 350}
    assert not long


def test_functions_are_at_most_50_lines_long_and_take_at_most_8_parameters() -> None:
    over = []
    for name, tree in trees():
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            arguments = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            count = len([a for a in arguments if a not in ("self", "cls")])
            if lines > 50 or count > 8:
                over.append(f"{name}:{node.lineno} {node.name}: {lines} lines, {count} parameters")
    assert not over


def test_no_module_is_a_drawer() -> None:
    assert not [str(file) for file in FILES if file.stem in DRAWERS or DRAWERS & set(file.parts)]


def test_libraries_are_imported_only_in_their_rooms() -> None:
    wrong = []
    for name, tree in trees():
        for module in imported(tree) & ALLOWED.keys():
            if not any(name == place or name.startswith(place + "/") for place in ALLOWED[module]):
                wrong.append(f"{name} imports {module}")
    assert not wrong


def test_printing_opening_of_images_and_torch_load_stay_in_their_rooms() -> None:
    wrong = []
    for name, tree in trees():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if called == "print" and not name.startswith("cli/"):
                wrong.append(f"{name}:{node.lineno} prints")
            if called == "torch.load" and not name.startswith("weights/"):
                wrong.append(f"{name}:{node.lineno} calls torch.load")
            if called in ("Image.open", "PIL.Image.open") and name not in DECODERS:
                wrong.append(f"{name}:{node.lineno} decodes images")
            if called in ("eval", "exec"):
                wrong.append(f"{name}:{node.lineno} executes text")
    assert not wrong


@pytest.mark.parametrize(
    "call",
    [
        "import resnext",
        "from resnext.cli import run; run(['--help'])",
        "from resnext.cli import run; run(['train', '-h'])",
    ],
)
def test_import_and_help_need_neither_torch_nor_numpy(call: str) -> None:
    heavy = ("torch", "torchvision", "numpy", "pyarrow", "pydantic", "sklearn", "scipy")
    code = f"import sys; sys.modules.update(dict.fromkeys({heavy}))\n{call}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_reading_preprocessing_and_ranking_need_no_torch() -> None:
    code = """
import sys
sys.modules["torch"] = None
sys.modules["torchvision"] = None
import io
import numpy as np
from PIL import Image
from resnext.bundle import Bundle
from resnext.data.images import read_image
from resnext.data.preprocessing import Preprocessing
from resnext.engine import rank
from resnext.inference import classifier, evaluation, files
from resnext.inference.engines import openvino, stored

file = io.BytesIO()
Image.new("RGB", (40, 30), "red").save(file, "PNG")
preprocessing = Preprocessing(image_size=16, resize=16)
pixels = preprocessing.pixels(read_image(file.getvalue()))
order, shares = rank(np.array([[0.0, 2.0, 1.0]]), 2)
assert order.tolist() == [[1, 2]], order
assert preprocessing.normalise(pixels[None]).shape == (1, 3, 16, 16)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_planted_violations_are_seen() -> None:
    tree = ast.parse("import pickle\nfrom torchvision.transforms import v2\n")
    assert {"pickle", "torchvision"} <= imported(tree)
