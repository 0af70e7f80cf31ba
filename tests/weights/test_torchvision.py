"""Weights of torchvision's from a mirror on loopback: fetched, resumed, refused, done without; and chosen unasked."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torchvision.models._api import WeightsEnum

from making import picture
from mirror_server import Mirror, serving
from resnext.errors import UserError
from resnext.training import automatic, plan
from resnext.training.plan import Plan, Wish
from resnext.training.run import train
from resnext.weights import elsewhere, published
from resnext.weights.spec import Spec


@pytest.fixture(scope="module")
def content() -> bytes:
    """A file of resnet18's weights, random ones."""
    torch.manual_seed(4)
    file = io.BytesIO()
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), file)
    return file.getvalue()


@pytest.fixture
def mirror(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    """A mirror with that file, and torchvision's table changed so that the file's name ends in its hash."""
    name = f"resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    real = torchvision.models.get_model_weights
    weights = replace(real("resnet18").DEFAULT.value, url=f"https://download.pytorch.org/models/{name}")
    table = WeightsEnum("Changed", {"IMAGENET1K_V1": weights, "DEFAULT": weights})
    monkeypatch.setattr(
        torchvision.models, "get_model_weights", lambda each: table if each == "resnet18" else real(each)
    )
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as state:
        state.files[name] = content
        monkeypatch.setenv("RESNEXT_MIRROR", state.url)
        yield state


def kept(tmp_path: Path) -> list[str]:
    """The names of what lies in torch's cache."""
    return sorted(path.name for path in (tmp_path / "torch" / "hub" / "checkpoints").iterdir())


def test_a_file_is_fetched_once(mirror: Mirror, content: bytes, tmp_path: Path) -> None:
    for _ in range(2):
        found = elsewhere.find("torchvision:resnet18")
        assert found.about.file.read_bytes() == content
    assert len(mirror.requests) == 1
    assert kept(tmp_path) == list(mirror.files)


def test_a_download_that_was_given_up_goes_on_another_time(mirror: Mirror, tmp_path: Path) -> None:
    mirror.break_after = [1_000_000, 1_000_000, 1_000_000]
    with pytest.raises(UserError, match="broke off"):
        elsewhere.find("torchvision:resnet18")
    assert kept(tmp_path) == [f"{name}.part" for name in mirror.files]
    elsewhere.find("torchvision:resnet18")
    assert mirror.requests[-1][1] == "bytes=3000000-"
    assert kept(tmp_path) == list(mirror.files)


def test_a_file_of_another_hash_is_refused_and_not_kept(mirror: Mirror, tmp_path: Path) -> None:
    (name,) = mirror.files
    mirror.files[name] = mirror.files[name][:-1] + b"!"
    with pytest.raises(UserError, match="its SHA-256 is") as refused:
        elsewhere.find("torchvision:resnet18")
    assert len(str(refused.value).splitlines()) <= 3
    assert kept(tmp_path) == []


@pytest.mark.parametrize("silent", [False, True])
def test_without_a_network_one_is_told_soon_what_to_place_where(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent: bool
) -> None:
    if silent:
        mirror.awake.clear()
    else:
        monkeypatch.setenv("RESNEXT_MIRROR", "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(UserError) as refused:
        elsewhere.find("torchvision:resnet18")
    mirror.awake.set()
    assert time.monotonic() - began < 5
    lines = str(refused.value).splitlines()
    assert len(lines) == 3
    (name,) = mirror.files
    assert f"{name} cannot be fetched: {'timed out' if silent else 'Connection refused'}" in lines[0]
    assert lines[2] == (
        f"Or fetch it on another machine and place it at {tmp_path / 'torch' / 'hub' / 'checkpoints' / name}."
    )


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(24):
        place = folder / ("left", "right")[number % 2]
        place.mkdir(exist_ok=True)
        picture(number, (96, 80)).save(place / f"{number}.png")
    return folder


def planned(photos: Path, tmp_path: Path, recipe: Path | None = None, **fields: Any) -> Plan:
    return plan.plan(photos, wish=Wish(tmp_path / "run"), recipe=recipe, fields=fields)


def notes(made: Plan) -> str:
    return " ".join(made.notes)


def test_photos_are_learned_from_what_is_in_the_cache(mirror: Mirror, photos: Path, tmp_path: Path) -> None:
    elsewhere.find("torchvision:resnet18")
    made = planned(photos, tmp_path)
    (name,) = mirror.files
    assert made.recipe.network == "resnet18"
    assert made.recipe.transfer.weights == "torchvision:resnet18.IMAGENET1K_V1"
    assert made.recipe.transfer.sha256.startswith(name.split("-")[1].removesuffix(".pth"))
    assert made.recipe.transfer.head_epochs == 20
    assert made.recipe.data.image_size == 224
    assert "Weights chosen as they are in the cache and suit photos" in notes(made)
    assert len(mirror.requests) == 1


def test_what_is_chosen_can_be_trained(mirror: Mirror, photos: Path, tmp_path: Path) -> None:
    elsewhere.find("torchvision:resnet18")
    run = train(photos, out=tmp_path / "run", epochs=2, image_size=64)
    assert run.bundle.contents.preprocessing.resize == round(256 * 64 / 224)
    assert "torchvision:resnet18" in run.bundle.contents.licence


def test_weights_that_can_be_fetched_are_where_they_suit(
    mirror: Mirror, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(automatic, "CANDIDATES", (Spec("torchvision", "resnet18"),))
    made = planned(photos, tmp_path, weights="auto")
    assert made.recipe.network == "resnet18"
    assert "as they could be fetched" in notes(made)
    assert len(mirror.requests) == 1


def test_without_a_cache_or_a_network_weights_are_random_and_that_is_said(
    mirror: Mirror, photos: Path, tmp_path: Path
) -> None:
    mirror.files.clear()
    made = planned(photos, tmp_path)
    assert made.recipe.transfer.weights == ""
    assert "No weights are in the cache, and none can be fetched" in notes(made)
    assert "404 Not Found" in notes(made)
    assert "It begins with random ones." in notes(made)


@pytest.mark.parametrize(
    "fields",
    [{"network": "resnet18"}, {"weights": "none"}, {"options": {"final_survival": 0.9}, "network": "resnet18"}],
)
def test_who_decides_what_is_trained_gets_that(
    mirror: Mirror, photos: Path, tmp_path: Path, fields: dict[str, Any]
) -> None:
    elsewhere.find("torchvision:resnet18")
    assert planned(photos, tmp_path, **fields).recipe.transfer.weights == ""


def test_a_recipe_means_what_it_says(mirror: Mirror, photos: Path, tmp_path: Path) -> None:
    elsewhere.find("torchvision:resnet18")
    file = tmp_path / "recipe.toml"
    file.write_text('network = "resnet18"\nepochs = 3\n')
    assert planned(photos, tmp_path, file).recipe.transfer.weights == ""
    file.write_text('network = "resnet18"\nepochs = 3\n[transfer]\nweights = "auto"\n')
    assert planned(photos, tmp_path, file).recipe.transfer.weights == "torchvision:resnet18.IMAGENET1K_V1"


def test_small_images_and_networks_without_weights_begin_with_random_ones(
    mirror: Mirror, photos: Path, tmp_path: Path
) -> None:
    elsewhere.find("torchvision:resnet18")
    small = tmp_path / "small"
    for number in range(12):
        (small / str(number % 2)).mkdir(parents=True, exist_ok=True)
        picture(number, (32, 32)).save(small / str(number % 2) / f"{number}.png")
    assert planned(small, tmp_path).recipe.transfer.weights == ""
    made = planned(photos, tmp_path, network="bn_inception", weights="auto")
    assert made.recipe.transfer.weights == ""
    assert "There are no weights for bn_inception that are known here. It begins with random ones." in notes(made)


def test_many_images_on_a_slow_machine_get_a_small_network() -> None:
    minutes = {spec.name: automatic._minutes(spec, {}, 1_000, "cpu") for spec in automatic.CANDIDATES}
    assert minutes["resnet18"] < 0.5 * minutes["resnext50_32x4d"]
    assert automatic._minutes(automatic.CANDIDATES[0], {}, 4_000, "cpu") > 30


def test_the_cache_is_asked_for_every_tag(mirror: Mirror, tmp_path: Path) -> None:
    assert published.cached(Spec("torchvision", "resnet50")) is None
    older = torchvision.models.ResNet50_Weights.IMAGENET1K_V1
    file = tmp_path / "torch" / "hub" / "checkpoints" / Path(older.url).name
    file.parent.mkdir(parents=True)
    file.write_bytes(b"")
    assert published.cached(Spec("torchvision", "resnet50")) == Spec("torchvision", "resnet50", "IMAGENET1K_V1")
