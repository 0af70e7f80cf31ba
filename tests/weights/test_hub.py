"""Weights from a hub, one that runs on loopback: fetched, kept, resumed, refused, and done without."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch

import resnext
from hub_server import Hub, serving
from making import TINY, write_colours
from resnext.bundle import Bundle
from resnext.training.run import train

NAME = "resnet18"
REPOSITORY = "timm/resnet18.a1_in1k"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository as timm writes it."""
    folder = tmp_path_factory.mktemp("repository")
    torch.manual_seed(3)
    timm.models.save_for_hf(timm.create_model(f"{NAME}.a1_in1k"), folder, safe_serialization=True)
    return folder


@pytest.fixture
def hub(repository: Path, tmp_path: Path) -> Iterator[Hub]:
    shutil.copytree(repository, tmp_path / "hub" / REPOSITORY)
    with serving(tmp_path / "hub") as serves:
        yield serves


def weights(address: str, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command with a hub at an address, which the library reads when it is imported."""
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    line = [sys.executable, "-m", "resnext", "weights", *arguments]
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_weights_are_fetched_once_and_then_had_without_a_network(hub: Hub, tmp_path: Path) -> None:
    done = weights(hub.address, tmp_path / "home", f"timm:{NAME}", "--out", str(tmp_path / "one"), "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["source"] == "timm:resnet18.a1_in1k"
    assert told["preprocessing"] == {
        "image_size": 224,
        "resize": 235,
        "channels": 3,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "interpolation": "bicubic",
        "rounding": "torchvision",
    }
    assert "apache-2.0" in told["licence"]
    again = weights("http://127.0.0.1:9", tmp_path / "home", f"timm:{NAME}", "--out", str(tmp_path / "two"), "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["identity"] == told["identity"]


def test_a_download_that_breaks_off_goes_on(hub: Hub, tmp_path: Path) -> None:
    hub.cuts["model.safetensors"] = 30_000_000
    done = weights(hub.address, tmp_path / "home", f"timm:{NAME}", "--out", str(tmp_path / "bundle"))
    assert done.returncode == 0, done.stderr
    ranges = [asked for method, path, asked in hub.asked if method == "GET" and path.endswith("model.safetensors")]
    assert len(ranges) == 2
    assert ranges[0] == ""
    assert int(ranges[1].removeprefix("bytes=").removesuffix("-")) >= 10_000_000


def test_a_file_of_another_hash_is_refused_and_not_kept(hub: Hub, tmp_path: Path) -> None:
    hub.wrong.add("model.safetensors")
    arguments = (f"timm:{NAME}", "--out", str(tmp_path / "bundle"))
    refused = weights(hub.address, tmp_path / "home", *arguments)
    assert refused.returncode == 2
    assert "model.safetensors is damaged: its hash is" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) <= 3
    assert not (tmp_path / "bundle").exists()
    hub.wrong.clear()
    assert weights(hub.address, tmp_path / "home", *arguments).returncode == 0


def test_without_a_network_one_is_told_what_to_fetch_at_once(tmp_path: Path) -> None:
    with socket.socket() as silent:  # accepts, and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        for address in ("http://127.0.0.1:9", f"http://127.0.0.1:{silent.getsockname()[1]}"):
            code = (
                "import time; from resnext.errors import UserError; from resnext import hub; hub._library()\n"
                "began = time.monotonic()\n"
                f"try: hub.fetch({REPOSITORY!r}, 'config.json')\n"
                "except UserError as error: print(time.monotonic() - began); print(error)"
            )
            environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home")}
            told = subprocess.run(
                [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True
            ).stdout.splitlines()
            assert float(told[0]) < 5
            assert "The hub cannot be reached" in told[1]
            assert "Fetch config.json on another machine" in told[2]
            assert len(told) == 3


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("timm:resnet34", "The hub has no repository timm/resnet34.a1_in1k"),
        (f"hub:{REPOSITORY}@v9", "has no revision 'v9'"),
        ("hub:me/empty", "me/empty has neither a config.json nor a bundle.json"),
    ],
)
def test_what_the_hub_does_not_have_is_named(hub: Hub, tmp_path: Path, spec: str, message: str) -> None:
    (hub.folder / "me" / "empty").mkdir(parents=True)
    refused = weights(hub.address, tmp_path / "home", spec, "--out", str(tmp_path / "bundle"))
    assert refused.returncode == 2
    assert message in refused.stderr
    assert len(refused.stderr.strip().splitlines()) <= 3


def test_a_network_of_timm_s_that_is_none_of_ours_is_refused(hub: Hub, tmp_path: Path) -> None:
    config = hub.folder / REPOSITORY / "config.json"
    told = json.loads(config.read_text())
    for change, message in (
        ({"architecture": "resnet18d"}, "is a network that resnext does not have"),
        ({"model_args": {"act_layer": "silu"}}, "was built with act_layer=silu"),
        ({"pretrained_cfg": 3}, "is not one that timm writes"),
    ):
        config.write_text(json.dumps({**told, **change}))
        spec = str(config.parent)
        refused = weights(hub.address, tmp_path / "home", spec, "--out", str(tmp_path / "bundle"))
        assert refused.returncode == 2, refused.stderr
        assert message in refused.stderr


LOAD = """
import sys
import resnext
classifier = resnext.load("hub:me/colours")
print(classifier.bundle.identity, classifier(sys.argv[1]).label)
"""


def test_our_own_bundles_are_had_from_a_hub(hub: Hub, tmp_path: Path) -> None:
    run = train(write_colours(tmp_path / "photos", 8), out=tmp_path / "run", **{**TINY, "epochs": 1})
    shutil.copytree(run.path / "model", hub.folder / "me" / "colours")
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home")}
    line = [sys.executable, "-c", LOAD, str(tmp_path / "photos" / "red" / "0.png")]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    identity, label = done.stdout.split()
    assert identity == Bundle.open(run.path).identity
    assert label in ("red", "green", "blue")


PUSH = """
import sys
from resnext.bundle import Bundle
from resnext.errors import UserError
try:
    print(Bundle.open(sys.argv[1]).push_to_hub("me/colours"))
except UserError as error:
    sys.exit(str(error))
"""


def test_a_bundle_is_pushed_as_the_hub_has_it_and_pulled_again(hub: Hub, tmp_path: Path) -> None:
    run = train(write_colours(tmp_path / "photos", 8), out=tmp_path / "run", **{**TINY, "epochs": 1})
    hub.token = "hf_right"
    line = [sys.executable, "-c", PUSH, str(run.path)]
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home")}
    environment["HF_HUB_DISABLE_XET"] = (
        "1"  # the hub's other way to take large files, which no loopback can stand in for
    )
    options = {"capture_output": True, "text": True, "timeout": 120, "check": False}
    refused = subprocess.run(line, env={**environment, "HF_TOKEN": "hf_wrong"}, **options)
    assert refused.returncode == 1
    assert "The hub did not take me/colours" in refused.stderr
    assert "hf auth login" in refused.stderr
    done = subprocess.run(line, env={**environment, "HF_TOKEN": "hf_right"}, **options)
    assert done.returncode == 0, done.stderr
    pushed = hub.folder / "me" / "colours"
    names = {"bundle.json", "config.json", "golden.safetensors", "model.safetensors", "README.md"}
    assert {path.name for path in pushed.iterdir()} == names
    config = json.loads((pushed / "config.json").read_text())
    assert config["id2label"] == {"0": "blue", "1": "green", "2": "red"}
    header = (pushed / "README.md").read_text().split("---")[1]
    assert "library_name: resnext" in header
    assert "pipeline_tag: image-classification" in header
    bundle = tmp_path / "pulled"
    pulled = weights(hub.address, tmp_path / "home", "hub:me/colours", "--out", str(bundle), "--json")
    assert pulled.returncode == 0, pulled.stderr
    assert Bundle.open(bundle).contents.classes == ("blue", "green", "red")


def test_a_damaged_bundle_is_not_pushed(tmp_path: Path) -> None:
    run = train(write_colours(tmp_path / "photos", 8), out=tmp_path / "run", **{**TINY, "epochs": 1})
    weights_file = run.path / "model" / "model.safetensors"
    weights_file.write_bytes(weights_file.read_bytes()[:-1] + b"x")
    with pytest.raises(resnext.UserError, match="is damaged and was not pushed"):
        Bundle.open(run.path).push_to_hub("me/colours")
