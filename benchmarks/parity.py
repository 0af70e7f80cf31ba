"""Do weights of torchvision and timm give their logits here?

    python benchmarks/parity.py [--only NAME …]

For every network that torchvision or timm also has: theirs is built by them, with random weights and the statistics
that these have on photos, and saved in their own file format. They classify photos (scikit-learn's and scikit-image's)
behind their own preprocessing; ours gets the file and the photos' paths, and nothing else. Prints the largest
difference of a logit, as a share of the largest logit. Not a timing. tests/weights/test_parity.py holds these to 1e-5.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import sklearn.datasets
import timm
import timm.data
import torch
import torchvision
from environment import print_environment
from PIL import Image
from torch import nn
from torchvision.models import get_model_weights

import resnext
from resnext.bundle import Bundle
from resnext.data.images import read_image
from resnext.weights import architectures, elsewhere


def write_photos(folder: Path) -> list[Path]:
    """Write photos of several shapes, as PNG so that every decoder gives the same pixels, and return their paths."""
    images = list(sklearn.datasets.load_sample_images().images)
    images += [skimage.data.chelsea(), skimage.data.coffee()[:, 13:], skimage.data.astronaut()]
    paths = []
    for number, image in enumerate(images):
        paths.append(folder / f"{number}.png")
        Image.fromarray(image).save(paths[-1])
    return paths


def made(build: Callable[[], nn.Module], inputs: torch.Tensor) -> nn.Module:
    """Return a network with random weights whose batch norms have the statistics that these have on some inputs."""
    with torch.device("meta"):
        network = build()
    network.to_empty(device="cpu")
    torch.manual_seed(5)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            module.reset_running_stats()
            module.momentum = 1.0
        elif isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.normal_(module.bias, 0, 0.1)
    with torch.inference_mode():
        network.train()(inputs)
        # Every layer would blow up the last bit of what it reads, a thousandfold in all, as no trained network does.
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_var.mul_(1 + 0.3 * torch.rand_like(module.running_var)).add_(0.03)
    return network.eval()


def torchvisions(name: str, photos: list[Path], hub: Path) -> tuple[str, np.ndarray]:
    """Put weights of torchvision's network in the cache of torch.hub at `hub`; return their word and their logits."""
    weights = get_model_weights(name).DEFAULT
    inputs = torch.stack([weights.transforms()(Image.open(photo)) for photo in photos])
    # With weights, these two come with auxiliary classifiers and turn the inputs into TensorFlow's.
    special = {"init_weights": False, "aux_logits": True, "transform_input": True}
    options = special if name in ("googlenet", "inception_v3") else {}
    network = made(lambda: getattr(torchvision.models, name)(weights=None, **options), inputs)
    (hub / "checkpoints").mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), hub / "checkpoints" / Path(weights.url).name)
    with torch.inference_mode():
        return f"torchvision:{name}", network(inputs).numpy()


def timms(name: str, photos: list[Path], folder: Path) -> tuple[str, np.ndarray]:
    """Write timm's network as a repository of the hub in `folder`; return its path and timm's logits."""
    tag = architectures.TAGS.get(name)

    def build() -> nn.Module:
        network: nn.Module = timm.create_model(f"{name}.{tag}" if tag else name, pretrained=False)
        return network

    with torch.device("meta"):
        config: dict[str, Any] = timm.data.resolve_model_data_config(build())
    transform = timm.data.create_transform(**config, is_training=False)
    inputs = torch.stack([transform(Image.open(photo)) for photo in photos])
    network = made(build, inputs)
    timm.models.save_for_hf(network, folder, safe_serialization=True)
    with torch.inference_mode():
        return str(folder), network(inputs).numpy()


def difference(word: str, out: Path, photos: list[Path], expected: np.ndarray) -> tuple[float, Bundle]:
    """Make a bundle of weights and classify photos with it; return the difference from the expected logits."""
    bundle = elsewhere.write(elsewhere.find(word), out)
    classifier = resnext.load(bundle.path, engine="torch")
    pixels = np.stack([classifier.preprocessing.pixels(read_image(photo, channels=3)) for photo in photos])
    largest = np.abs(expected).max()
    assert np.ptp(expected, axis=0).max() > 0.05 * largest, "photos must not look alike to the network"
    return float(np.abs(classifier.engine(pixels) - expected).max() / largest), bundle


MAKERS = {"torchvision": torchvisions, "timm": timms}


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="names of torchvision's or timm's networks")
    options = parser.parse_args()
    print_environment()
    print("\n| theirs | ours | largest difference of a logit |")
    print("|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        photos = write_photos(Path(place))
        for source, make in MAKERS.items():
            for name, ours in architectures.OURS[source].items():
                if options.only and name not in options.only:
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    torch.hub.set_dir(folder)
                    word, expected = make(name, photos, Path(folder))
                    share, _ = difference(word, Path(folder) / "bundle", photos, expected)
                print(f"| {source}:{name} | {ours} | {share:.1e} |", flush=True)


if __name__ == "__main__":
    main()
