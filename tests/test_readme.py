"""The README's commands do what it says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from making import write_colours

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
WALKTHROUGH = (ROOT / "docs" / "walkthrough.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"<!-- tested -->\n```(\w+)\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_colours(tmp_path / "photos", 12, size=32)
    shutil.copy(tmp_path / "photos" / "red" / "1.png", tmp_path / "photo.jpg")  # its bytes tell its format
    return tmp_path


def execute(place: Path, command: list[str]) -> str:
    scripts = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{scripts}:{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readme_has_both_kinds() -> None:
    assert [kind for kind, _ in BLOCKS] == ["python", "sh", "sh", "sh", "sh"]


def test_python(photos: Path) -> None:
    code = next(text for kind, text in BLOCKS if kind == "python")
    assert execute(photos, [sys.executable, "-c", code]).strip() in ("blue", "green", "red")


def test_commands(photos: Path) -> None:
    text = "".join(text for kind, text in BLOCKS if kind == "sh")
    # The defaults train, tune and time for as long as suits the data; here a moment is enough.
    text = text.replace("train photos/", "train photos/ --epochs 2")
    text = text.replace(
        "--networks resnet18,resnet34 --seeds 6", "--networks cifar_resnet8,cifar_plain8 --seeds 1 --epochs 1"
    )
    text = text.replace("optimize runs/photos", "optimize runs/photos --minutes 0.05")
    text = text.replace("openvino\n", "openvino --batch 1 --rounds 1 --seconds 0.1\n")
    out = execute(photos, ["bash", "-ec", text])
    assert "top-1" in out
    assert "photo.jpg" in out
    assert "is whole" in out
    assert "torch eager fp32 NCHW" in out
    assert (photos / "runs" / "photos" / "model" / "engines" / "engine.json").is_file()
    assert (photos / "runs" / "two" / "model" / "bundle.json").is_file()
    assert "resnext50_32x4d" in out
    assert (photos / "runs" / "study" / "index.html").is_file()
    assert (photos / "runs" / "benchmark-photos" / "benchmark.png").is_file()


def test_walkthrough(photos: Path) -> None:
    execute(photos, ["resnext", "train", "photos/", "--epochs", "1", "--out", "runs/photos"])
    code = re.search(r"```python\n(.*?)```", WALKTHROUGH, flags=re.DOTALL)
    assert code is not None
    label, probability = execute(photos, [sys.executable, "-c", code[1]]).split()
    assert label in ("blue", "green", "red")
    assert 0.3 < float(probability) <= 1
