"""The bundle: carries everything, notices every change, survives a crash while it is replaced."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from resnext import bundle, catalog, durable
from resnext.bundle import Bundle, Contents
from resnext.data.preprocessing import Preprocessing
from resnext.engine import TorchEngine
from resnext.errors import UserError

CONTENTS = Contents(
    network="cifar_resnet8",
    options={"shortcut": "B"},
    classes=("b", "a", "ü 10"),
    preprocessing=Preprocessing(image_size=16, resize=18, channels=1, mean=(0.4,), std=(0.2,)),
    recipe={"seed": 1},
    results={"images": 4, "top1": 0.5, "top1_interval": [0.15, 0.85], "data": "four images"},
)


@pytest.fixture
def network() -> torch.nn.Module:
    torch.manual_seed(1)
    return catalog.create("cifar_resnet8", num_classes=3, in_channels=1, shortcut="B").eval()


@pytest.fixture
def made(tmp_path: Path, network: torch.nn.Module) -> Bundle:
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    pixels = np.zeros((2, 16, 16, 1), np.uint8)
    return bundle.write(tmp_path / "model", CONTENTS, weights, (pixels, np.zeros((2, 3), np.float32)))


def test_it_carries_everything(made: Bundle, network: torch.nn.Module) -> None:
    opened = Bundle.open(made.path)
    assert opened.contents == CONTENTS
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 1), np.uint8)
    ours = TorchEngine(opened.build(), opened.contents.preprocessing)(images)
    theirs = TorchEngine(network, CONTENTS.preprocessing)(images)
    assert np.array_equal(ours, theirs)
    assert opened.verify() == []
    assert set(opened.files) == {"model.safetensors", "golden.safetensors", "README.md"}
    assert "ü 10" in (made.path / "README.md").read_text()


def test_it_carries_the_mean_image(made: Bundle, tmp_path: Path) -> None:
    image = np.random.default_rng(0).uniform(0, 1, (16, 16, 1)).astype(np.float32)
    centred = replace(CONTENTS, preprocessing=CONTENTS.preprocessing.with_mean_image(image))
    written = bundle.write(tmp_path / "centred", centred, made.read("model.safetensors"))
    opened = Bundle.open(written.path)
    assert opened.contents == centred
    found = opened.contents.preprocessing.mean_image
    assert found is not None
    assert np.array_equal(found, image)
    assert opened.verify() == []
    assert set(opened.files) == {"model.safetensors", "mean_image.safetensors", "README.md"}
    other = replace(CONTENTS, preprocessing=CONTENTS.preprocessing.with_mean_image(1 - image))
    identities = {bundle.identity_of(each, "0" * 64) for each in (CONTENTS, centred, other)}
    assert len(identities) == 3


def test_another_mean_image_is_refused_by_name(made: Bundle, tmp_path: Path) -> None:
    image = np.zeros((16, 16, 1), np.float32)
    centred = replace(CONTENTS, preprocessing=CONTENTS.preprocessing.with_mean_image(image))
    place = bundle.write(tmp_path / "centred", centred, made.read("model.safetensors")).path
    file, description = place / "mean_image.safetensors", json.loads((place / "bundle.json").read_text())
    file.write_bytes(save({"mean_image": image + 1}))
    with pytest.raises(UserError, match=r"mean_image\.safetensors does not match the hash"):
        Bundle.open(place)
    description["files"]["mean_image.safetensors"] = durable.sha256(file)
    (place / "bundle.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match="the mean image is not the one"):
        Bundle.open(place)
    file.write_bytes(save({"image": image}))
    description["files"]["mean_image.safetensors"] = durable.sha256(file)
    (place / "bundle.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match="damaged"):
        Bundle.open(place)
    file.unlink()
    with pytest.raises(UserError, match=r"mean_image\.safetensors is missing"):
        Bundle.open(place)


def test_the_identity_of_bundles_without_a_mean_image_never_changes() -> None:
    identity = "27ed9dfbadfd2f86b0a6f640b65ce776606e8de7b04f1e60dafeccb2086638db"
    assert bundle.identity_of(CONTENTS, "0" * 64) == identity


def test_a_run_stands_for_its_bundle(made: Bundle) -> None:
    assert Bundle.open(made.path.parent).identity == made.identity


@pytest.mark.parametrize("name", ["model.safetensors", "golden.safetensors", "README.md"])
def test_a_changed_file_is_named(made: Bundle, name: str) -> None:
    data = bytearray((made.path / name).read_bytes())
    data[-1] ^= 1
    (made.path / name).write_bytes(bytes(data))
    assert made.verify() == [f"{name}: does not match its hash"]
    if name != "README.md":
        with pytest.raises(UserError, match=name):
            made.read(name)


def test_missing_and_foreign_files_are_named(made: Bundle) -> None:
    (made.path / "golden.safetensors").unlink()
    (made.path / "extra.bin").write_bytes(b"x")
    assert made.verify() == ["golden.safetensors: missing", "extra.bin: not listed in bundle.json"]


@pytest.mark.parametrize("key", ["classes", "preprocessing", "network"])
def test_a_description_that_was_altered_is_refused(made: Bundle, key: str) -> None:
    file = made.path / "bundle.json"
    raw = json.loads(file.read_text())
    if key == "classes":
        raw["classes"].reverse()
    elif key == "preprocessing":
        raw["preprocessing"]["mean"] = [0.41]
    else:
        raw["network"]["options"] = {}
    file.write_text(json.dumps(raw))
    with pytest.raises(UserError, match="was altered"):
        Bundle.open(made.path)


def test_any_bit_of_the_description_that_was_flipped_is_noticed(made: Bundle) -> None:
    file = made.path / "bundle.json"
    original, generator = file.read_bytes(), np.random.default_rng(0)
    whole = json.loads(original)
    for place in generator.integers(0, 8 * len(original), 300).tolist():
        damaged = bytearray(original)
        damaged[place // 8] ^= 1 << place % 8
        file.write_bytes(damaged)
        try:
            same = json.loads(damaged.decode()) == whole  # a blank between two values may be another blank
        except ValueError:
            same = False
        if not same:
            with pytest.raises(UserError):  # in the words of whoever notices first
                Bundle.open(made.path)


def test_a_description_of_a_version_that_gave_it_no_hash_is_read(made: Bundle) -> None:
    file = made.path / "bundle.json"
    raw = json.loads(file.read_text())
    del raw["description_sha256"]
    file.write_text(json.dumps(raw))
    assert Bundle.open(made.path).contents == made.contents


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"schema": 1}', '{"schema": 99}', '{"schema": 1, "network": 4}'])
def test_a_broken_description_is_one_clear_line(made: Bundle, text: str) -> None:
    (made.path / "bundle.json").write_text(text)
    with pytest.raises(UserError, match=r"damaged|schema 99"):
        Bundle.open(made.path)


def test_no_bundle_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no bundle"):
        Bundle.open(tmp_path)
    with pytest.raises(UserError, match="There is no"):
        Bundle.open(tmp_path / "nowhere")


def test_identity_is_what_decides_the_answers(made: Bundle, tmp_path: Path) -> None:
    weights = made.read("model.safetensors")
    told = Contents(**{**vars(CONTENTS), "results": {}, "recipe": {"seed": 2}})
    assert bundle.write(tmp_path / "other", told, weights).identity == made.identity
    weights["head.fc.bias"] = weights["head.fc.bias"] + 1
    assert bundle.write(tmp_path / "third", told, weights).identity != made.identity


def test_a_crash_while_replacing_leaves_the_old_or_the_new(
    made: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = made.read("model.safetensors")

    def crash(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable, "sync_path", crash)
    with pytest.raises(OSError, match="No space"):
        bundle.write(made.path, CONTENTS, weights)
    monkeypatch.undo()
    assert Bundle.open(made.path).verify() == []
    # Between the two renames only model.old is there.
    made.path.rename(made.path.with_name("model.old"))
    assert Bundle.open(made.path.parent).identity == made.identity
    assert Bundle.open(made.path).identity == made.identity
    bundle.write(made.path, CONTENTS, weights)
    assert not made.path.with_name("model.old").exists()


def test_weights_that_do_not_fit_are_refused(made: Bundle, tmp_path: Path) -> None:
    weights = made.read("model.safetensors")
    del weights["head.fc.bias"]
    short = bundle.write(tmp_path / "short", CONTENTS, weights)
    with pytest.raises(UserError, match="do not fit"):
        short.build()
    shutil.rmtree(short.path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("files", None),
        ("files", []),
        ("results", 3),
        ("classes", ["a", "a", "b"]),
        ("classes", [1, 2, 3]),
        ("recipe", ""),
    ],
)
def test_fields_of_a_wrong_kind_are_one_clear_line(made: Bundle, field: str, value: object) -> None:
    file = made.path / "bundle.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), field: value}))
    with pytest.raises(UserError, match=r"damaged|altered"):
        Bundle.open(made.path)


def test_weights_of_another_kind_and_options_that_are_none_are_refused(made: Bundle, tmp_path: Path) -> None:
    weights = made.read("model.safetensors")
    doubled = {name: value.astype(np.float64) for name, value in weights.items()}
    with pytest.raises(UserError, match="do not fit"):
        bundle.write(tmp_path / "double", CONTENTS, doubled).build()
    odd = Contents(**{**vars(CONTENTS), "options": {"num_classes": 3}})
    with pytest.raises(UserError, match="do not fit"):
        bundle.write(tmp_path / "odd", odd, weights).build()
