"""Prediction through an optimised engine, in a process of its own, in which torch cannot be imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from making import write_colours
from optimised import optimised_bundle
from resnext.bundle import Bundle

HEAVY = ("torch", "torchvision", "timm", "nncf")
TOO_MUCH_FOR_A_PHOTO = ("pyarrow", "scipy", "sklearn", "pydantic", "rich", "matplotlib", "safetensors")

PROGRAM = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"{{name}} is blocked")
sys.meta_path.insert(0, Blocked())
from resnext.cli import run
code = run({arguments})
called_home = [name for name in sys.modules if name.startswith("openvino_telemetry") and sys.modules[name]]
assert not called_home, called_home
sys.exit(code)
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return optimised_bundle(tmp_path_factory.mktemp("cold") / "model")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colours(tmp_path_factory.mktemp("photos"), 3, size=40, suffix="jpg")


def resnext(*arguments: object, blocked: tuple[str, ...] = HEAVY, home: Path) -> subprocess.CompletedProcess[str]:
    program = PROGRAM.format(blocked=blocked, arguments=[str(argument) for argument in arguments])
    environment = {**os.environ, "HOME": str(home)}
    command = [sys.executable, "-W", "error", "-c", program]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


def test_a_photo_is_named_without_torch_and_without_what_one_photo_does_not_need(
    bundle: Bundle, photos: Path, tmp_path: Path
) -> None:
    photo = photos / "red" / "0.jpg"
    done = resnext("predict", bundle.path, photo, "--json", blocked=(*HEAVY, *TOO_MUCH_FOR_A_PHOTO), home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["path"] == str(photo)
    assert done.stderr == "Optimised engine: OpenVINO fp32 (as good as it was).\n"
    assert list(tmp_path.iterdir()) == [], "OpenVINO's telemetry leaves an identifier in the user's home"


def test_folders_are_predicted_and_evaluated_without_torch(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    done = resnext("predict", bundle.path, photos, "--json", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 9
    done = resnext("evaluate", bundle.path, photos, "--json", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"] == 9
    assert json.loads(done.stdout)["notes"] == ["Optimised engine: OpenVINO fp32 (as good as it was)."]


def test_torch_is_asked_for_by_name(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    done = resnext("predict", bundle.path, photos / "red" / "0.jpg", "--engine", "torch", home=tmp_path)
    assert done.returncode == 1
    assert "torch is blocked" in done.stderr
    done = resnext("predict", bundle.path, photos / "red" / "0.jpg", "--engine", "torch", blocked=(), home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
