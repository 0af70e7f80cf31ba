"""A network by its name, with weights made elsewhere, for other classes and channels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision

import resnext


@pytest.fixture(scope="module")
def theirs() -> torch.nn.Module:
    torch.manual_seed(6)
    network = torchvision.models.resnet18(weights=None)
    with torch.inference_mode():
        network.train()(torch.randn(8, 3, 64, 64))
    return network.eval()


@pytest.fixture(scope="module")
def file(theirs: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(theirs.state_dict(), path)
    return str(path)


def test_the_network_computes_what_its_weights_did(theirs: torch.nn.Module, file: str) -> None:
    network = resnext.create("resnet18", weights=file)
    assert network.training
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(network.eval()(images), theirs(images), rtol=1e-4, atol=1e-5)


def test_for_other_classes_the_classifier_alone_is_fresh(theirs: torch.nn.Module, file: str) -> None:
    network = resnext.create("resnet18", weights=file, num_classes=5)
    fresh, given = network.state_dict(), resnext.create("resnet18", weights=file).state_dict()
    assert fresh["head.fc.weight"].shape == (5, 512)
    assert [name for name in fresh if not torch.equal(fresh[name], given[name])] == ["head.fc.weight", "head.fc.bias"]


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_grey_images_give_the_same_in_any_number_of_channels(theirs: torch.nn.Module, file: str, channels: int) -> None:
    network = resnext.create("resnet18", weights=file, in_channels=channels).eval()
    grey = torch.randn(2, 1, 64, 64)
    with torch.inference_mode():
        made, expected = network(grey.expand(-1, channels, -1, -1)), theirs(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)


def test_weights_of_another_network_are_refused(file: str) -> None:
    with pytest.raises(resnext.UserError, match="does not fit"):
        resnext.create("resnet34", weights=file)
    with pytest.raises(resnext.UserError, match="There is no network 'resnet19'"):
        resnext.create("resnet19", weights=file)


def test_weights_that_may_not_be_sold_say_so(file: str, tmp_path: Path) -> None:
    forbidden = tmp_path / "semi_supervised_resnet18-d92f0530.pth"
    forbidden.write_bytes(Path(file).read_bytes())
    with pytest.warns(UserWarning, match="may not be used commercially"):
        resnext.create("resnet18", weights=str(forbidden))
