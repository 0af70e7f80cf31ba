"""The word that names weights, and what is known of them without fetching any."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from resnext.errors import UserError
from resnext.weights import licences, published
from resnext.weights.channels import adapted
from resnext.weights.spec import Spec


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("torchvision:resnet50", Spec("torchvision", "resnet50")),
        ("torchvision:resnet50.IMAGENET1K_V1", Spec("torchvision", "resnet50", "IMAGENET1K_V1")),
        ("timm:resnext50_32x4d.a1_in1k", Spec("timm", "resnext50_32x4d", "a1_in1k")),
        ("hub:me/flowers", Spec("hub", "me/flowers")),
        ("hub:me/flowers@v1.0", Spec("hub", "me/flowers", "v1.0")),
        ("models/weights.pth", Spec("path", "models/weights.pth")),
        ("weights.safetensors", Spec("path", "weights.safetensors")),
    ],
)
def test_a_word_means_a_place_and_a_place_is_told_as_its_word(text: str, expected: Spec) -> None:
    assert Spec.parse(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tim:resnet50", r"names no weights\. Did you mean 'timm'"),
        ("resnet50", r"names no weights"),
        ("hub:flowers", r"names no repository"),
        ("hub:../etc/passwd", r"names no repository"),
        ("timm:../x", r"names no weights"),
        ("torchvision:", r"names no weights"),
    ],
)
def test_other_words_are_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        Spec.parse(text)
    assert len(str(raised.value).splitlines()) <= 3


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("torchvision:resnet5", r"Did you mean 'resnet50'"),
        ("torchvision:convnext_tiny", r"a network that resnext does not have"),
        ("torchvision:resnet50.IMAGENET1K_V3", r"There are IMAGENET1K_V1, IMAGENET1K_V2"),
        ("timm:resnet50d.a1_in1k", r"it has a stem of three 3×3 convolutions, and average pools in its shortcuts"),
        ("timm:resnet200", r"timm has no weights for resnet200"),
        ("nothing/weights.pth", r"There is no file"),
    ],
)
def test_weights_that_there_are_not_are_refused(spec: str, message: str) -> None:
    from resnext.weights import elsewhere

    with pytest.raises(UserError, match=message) as raised:
        elsewhere.find(spec, "resnet50" if "/" in spec else None)
    assert len(str(raised.value).splitlines()) <= 3


def test_classes_are_imagenets_and_those_of_one_name_are_told_apart_by_their_index() -> None:
    names = published.imagenet()
    assert len(set(names)) == 1000
    assert (names[0], names[281], names[999]) == ("tench", "tabby", "toilet tissue")
    assert published.distinct(["crane", "heron", "crane"]) == ("crane (0)", "heron", "crane (2)")


@pytest.mark.parametrize(
    ("name", "licence"),
    [
        ("ig_resnext101_32x8-c38310e5.pth", "cc-by-nc-4.0"),
        ("semi_weakly_supervised_resnext50_32x4-72679e44.pth", "cc-by-nc-4.0"),
        ("timm:resnet50.fb_swsl_ig1b_ft_in1k", "cc-by-nc-4.0"),
        ("resnet50-0676ba61.pth", licences.UNKNOWN),
    ],
)
def test_weights_that_may_not_be_sold_are_known_by_their_names(name: str, licence: str) -> None:
    assert licences.of_file(name) == licence
    assert bool(licences.warning(licence, name)) == (licence != licences.UNKNOWN)
    assert ("may not be used commercially" in licences.text(licence, name)) == (licence != licences.UNKNOWN)


@pytest.mark.parametrize("channels", [1, 3, 4, 6, 7])
def test_a_grey_image_gives_the_same_in_any_number_of_channels(channels: int) -> None:
    torch.manual_seed(0)
    weight, grey = torch.randn(8, 3, 7, 7, dtype=torch.float64), torch.randn(2, 1, 20, 20, dtype=torch.float64)
    expected = torch.conv2d(grey.expand(-1, 3, -1, -1), weight)
    made = torch.conv2d(grey.expand(-1, channels, -1, -1), adapted(weight, channels))
    torch.testing.assert_close(made, expected)


def test_a_bundle_keeps_what_its_weights_forbid(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import torchvision

    from resnext.bundle import Bundle
    from resnext.cli import run

    file = tmp_path / "semi_supervised_resnet18-d92f0530.pth"
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), file)
    code = run(["weights", str(file), "--network", "resnet18", "--out", str(tmp_path / "bundle")])
    out, err = capfd.readouterr()
    assert code == 0
    assert "may not be used commercially (licence cc-by-nc-4.0)" in err
    assert "may not be used commercially" in Bundle.open(tmp_path / "bundle").contents.licence
    assert "cc-by-nc-4.0" in (tmp_path / "bundle" / "README.md").read_text()
    assert "is resnet18, 1000 classes, 224 pixels" in out
