"""Ten crops and dense evaluation against plain loops over the network, torchvision's crops and sliding windows."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from scipy.special import log_softmax, logsumexp, softmax
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as V

from resnext import catalog
from resnext.data.loader import Files, Loader
from resnext.data.manifest import Split
from resnext.data.preprocessing import Preprocessing
from resnext.engine import Engine, TorchEngine
from resnext.errors import UserError
from resnext.evaluation import metrics
from resnext.evaluation.views import CENTRE, DenseEngine, Views, log_mean_softmax, outputs
from resnext.layers import Network, PooledHead

PREPROCESSING = Preprocessing(image_size=16, resize=20)
SIZES = [(24, 20), (20, 24), (24, 20), (30, 20), (48, 32), (24, 20), (40, 40), (20, 24), (32, 48)]
BROKEN = (2, 6)
CLASSES = tuple("abcdefg")


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    built = catalog.create("cifar_resnet8", num_classes=len(CLASSES)).eval()
    with torch.no_grad():
        for module in built.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
    return built


def write_split(folder: Path, sizes: list[tuple[int, int]], mode: str = "RGB") -> Split:
    generator, names = np.random.default_rng(0), [f"{number}.png" for number in range(len(sizes))]
    for name, (width, height) in zip(names, sizes, strict=True):
        pixels = generator.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).convert(mode).save(folder / name)
    nothing = np.zeros(len(sizes), np.int64)
    return Split(folder, CLASSES, pa.array(names), np.arange(len(sizes), dtype=np.int32) % 7, nothing, nothing)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """Nine images of which those in rows 2 and 6 cannot be read."""
    written = write_split(tmp_path_factory.mktemp("views"), SIZES)
    for row in BROKEN:
        written.path(row).write_bytes(b"no image")
    return written


def loader(split: Split, preprocessing: Preprocessing = PREPROCESSING, batch_size: int = 4, workers: int = 0) -> Loader:
    return Loader(Files(split, preprocessing), split, preprocessing, batch_size=batch_size, workers=workers)


def shares(engine: Engine, split: Split, views: Views, **options: int) -> np.ndarray:
    rows, scores = zip(*outputs(engine, loader(split, **options), views), strict=True)
    assert np.concatenate(rows).tolist() == [row for row in range(len(split)) if row not in BROKEN]
    return np.exp(np.concatenate(scores))


def resized(path: Path, scale: int) -> np.ndarray:
    with Image.open(path) as image:
        width, height = image.size
        size = [int(Fraction(side * scale, min(width, height)) + Fraction(1, 2)) for side in (width, height)]
        return np.array(image.resize(tuple(size), Image.Resampling.BILINEAR))


def inputs(pixels: np.ndarray) -> Tensor:
    normalised = (pixels / 255 - np.array(PREPROCESSING.mean)) / np.array(PREPROCESSING.std)
    return torch.from_numpy(normalised).float().permute(2, 0, 1)[None]


def readable(split: Split) -> list[Path]:
    return [split.path(row) for row in range(len(split)) if row not in BROKEN]


@torch.inference_mode()
def test_ten_crops_are_torchvisions_and_their_softmax_is_averaged(network: Network, split: Split) -> None:
    expected = []
    for path in readable(split):
        pixels = resized(path, 20)
        crops = [crop.permute(1, 2, 0).numpy() for crop in V.ten_crop(torch.from_numpy(pixels).permute(2, 0, 1), 16)]
        with Image.open(path) as image:
            ours = Views(crops=10).of(image, PREPROCESSING)
        assert sorted(crop.tobytes() for crop in ours) == sorted(crop.tobytes() for crop in crops)
        expected.append(np.mean([softmax(network(inputs(crop)).double().numpy()[0]) for crop in crops], axis=0))
    found = shares(TorchEngine(network, PREPROCESSING), split, Views(crops=10))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-12)


@torch.inference_mode()
def test_dense_averages_the_softmax_of_whole_images_over_scales_and_mirrors(network: Network, split: Split) -> None:
    expected = []
    for path in readable(split):
        views = [inputs(resized(path, scale)) for scale in (16, 20, 40)]
        views += [view.flip(3) for view in views]
        # The pooled head is linear: over all places it gives the mean of its logits.
        expected.append(np.mean([softmax(network(view).double().numpy()[0]) for view in views], axis=0))
    found = shares(DenseEngine(network, PREPROCESSING), split, Views(scales=(16, 20, 40)))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-12)


@torch.inference_mode()
def test_a_fully_connected_head_slides_over_the_map(tmp_path: Path) -> None:
    torch.manual_seed(1)
    vgg = catalog.create("vgg11_bn", width=2, hidden=12, num_classes=len(CLASSES)).eval()
    nn.init.normal_(vgg.head.fc8.bias)
    preprocessing = Preprocessing(image_size=224, resize=224)
    split, expected = write_split(tmp_path, [(64, 64), (60, 44)]), []
    for path in (split.path(0), split.path(1)):
        softmaxes = []
        for scale in (224, 288):
            image = inputs(resized(path, scale))
            for view in (image, image.flip(3)):
                maps = vgg.features(view)["stage5"]
                rows, columns = maps.shape[2] - 6, maps.shape[3] - 6
                windows = [maps[:, :, y : y + 7, x : x + 7] for y in range(rows) for x in range(columns)]
                softmaxes.append(softmax(torch.cat([vgg.head(window) for window in windows]).mean(0).numpy()))
        expected.append(np.mean(softmaxes, axis=0))
    assert (rows, columns) == (3, 6)
    both = outputs(DenseEngine(vgg, preprocessing), loader(split, preprocessing), Views(scales=(224, 288)))
    np.testing.assert_allclose(np.exp(next(both)[1]), expected, rtol=1e-3)


def test_the_centre_crop_is_the_plain_line_to_the_bit(network: Network, split: Split) -> None:
    engine, pixels = TorchEngine(network, PREPROCESSING), []
    for path in readable(split):
        with Image.open(path) as image:
            pixels.append(PREPROCESSING.pixels(image))
    logits = np.concatenate([logits for _, logits in outputs(engine, loader(split, batch_size=9), CENTRE)])
    assert np.array_equal(logits, engine(np.stack(pixels)))
    assert metrics.evaluate(engine, loader(split)).views == CENTRE


@pytest.mark.parametrize("views", [Views(10), Views(scales=(16, 24))])
def test_neither_batch_mates_nor_workers_matter(network: Network, split: Split, views: Views) -> None:
    engine = DenseEngine(network, PREPROCESSING) if views.scales else TorchEngine(network, PREPROCESSING)
    first = shares(engine, split, views, batch_size=1)
    for batch_size, workers in ((3, 0), (3, 2), (32, 2)):
        others = shares(engine, split, views, batch_size=batch_size, workers=workers)
        np.testing.assert_allclose(others, first, atol=1e-5)


@pytest.mark.parametrize("views", [Views(10), Views(scales=(16, 24))])
def test_scores_count_each_image_once_and_name_the_unreadable(network: Network, split: Split, views: Views) -> None:
    engine = DenseEngine(network, PREPROCESSING) if views.scales else TorchEngine(network, PREPROCESSING)
    told: list[tuple[int, int]] = []
    scores = metrics.evaluate(engine, loader(split), lambda *done: told.append(done), views=views)
    found = shares(engine, split, views)
    assert [Path(path).name for path, _ in scores.skipped] == ["2.png", "6.png"]
    assert scores.labels.tolist() == [row % 7 for row in range(9) if row not in BROKEN]
    assert scores.predicted.tolist() == found.argmax(1).tolist()
    np.testing.assert_allclose(scores.probability, found.max(1))
    np.testing.assert_allclose(scores.losses, -np.log(found[np.arange(7), scores.labels]))
    assert told == [(4, 9), (8, 9), (9, 9)]
    assert scores.to_dict()["views"] == views.to_dict()


def test_where_nothing_can_be_read_the_error_says_so(network: Network, tmp_path: Path) -> None:
    split = write_split(tmp_path, [(20, 20)])
    split.path(0).write_bytes(b"")
    with pytest.raises(UserError, match="Not one of 1 images"):
        metrics.evaluate(TorchEngine(network, PREPROCESSING), loader(split), views=Views(10))


def test_odd_sizes_and_panoramas() -> None:
    for size in ((27, 20), (33, 47), (900, 20), (3, 400)):
        image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*size[::-1], 3), np.uint8))
        crops = Views(10).of(image, PREPROCESSING)
        assert np.array_equal(crops[4], PREPROCESSING.pixels(image))
        assert np.array_equal(crops[9], PREPROCESSING.pixels(image)[:, ::-1])
        assert {crop.shape for crop in crops} == {(16, 16, 3)}
        whole = Views(scales=(16, 50)).of(image, PREPROCESSING)
        assert [min(view.shape[:2]) for view in whole] == [16, 50, 16, 50]
        assert max(view.size for view in whole) <= 3 * 50 * 50 * 3


def test_grey_images(tmp_path: Path) -> None:
    torch.manual_seed(2)
    grey = Preprocessing(16, 20, 1, (0.5,), (0.25,))
    built = catalog.create("cifar_resnet8", num_classes=len(CLASSES), in_channels=1)
    split = write_split(tmp_path, [(20, 30), (40, 20)], mode="L")
    for engine, views in ((TorchEngine(built, grey), Views(10)), (DenseEngine(built, grey), Views(scales=(24,)))):
        (_, scores), *_ = outputs(engine, loader(split, grey), views)
        np.testing.assert_allclose(np.exp(scores).sum(1), 1)


@torch.inference_mode()
def test_a_mean_image_centres_what_has_its_size_and_its_mean_colour_the_rest(network: Network, tmp_path: Path) -> None:
    mean_image = np.random.default_rng(3).random((16, 16, 3), np.float32)
    with_image = PREPROCESSING.with_mean_image(mean_image)
    colour, std = mean_image.mean((0, 1)), np.array(PREPROCESSING.std)
    split = write_split(tmp_path, [(40, 40)])

    def expected(views: list[np.ndarray]) -> np.ndarray:
        means = [mean_image if view.shape[0] == 16 else colour for view in views]
        centred = [((view / 255 - mean) / std).transpose(2, 0, 1) for view, mean in zip(views, means, strict=True)]
        logits = [network(torch.from_numpy(one[None]).float()).numpy()[0] for one in centred]
        return softmax(logits, axis=1).mean(0)

    corners = [resized(split.path(0), 20)[y : y + 16, x : x + 16] for y in (0, 4) for x in (0, 4)]
    crops = [*corners, resized(split.path(0), 20)[2:18, 2:18]]
    whole = [resized(split.path(0), scale) for scale in (16, 24)]
    for views, engine, seen in (
        (Views(10), TorchEngine(network, with_image), crops),
        (Views(scales=(16, 24)), DenseEngine(network, with_image), whole),
    ):
        (_, scores), *_ = outputs(engine, loader(split, with_image), views)
        np.testing.assert_allclose(np.exp(scores[0]), expected([*seen, *(one[:, ::-1] for one in seen)]), rtol=1e-4)


class Recording(Network):
    """Notes the shapes of its batches."""

    stride = 1

    def __init__(self) -> None:
        super().__init__()
        self.head = PooledHead(3, 2)
        self.shapes: list[tuple[int, ...]] = []

    def dense(self, images: Tensor) -> Tensor:
        self.shapes.append(tuple(images.shape))
        return super().dense(images)


def test_a_dense_batch_has_no_more_pixels_than_a_plain_one() -> None:
    recording = Recording()
    engine = DenseEngine(recording, PREPROCESSING)
    for height, width in ((16, 16), (20, 33), (64, 64), (64, 192), (192, 64)):
        recording.shapes.clear()
        batch = np.random.default_rng(4).integers(0, 256, (21, height, width, 3), np.uint8)
        logits = engine(batch)
        assert all(n == 1 or n * h * w <= 32 * 16 * 16 for n, _, h, w in recording.shapes)
        assert len(recording.shapes) <= 21
        one_by_one = np.concatenate([TorchEngine(recording, PREPROCESSING)(image[None]) for image in batch])
        np.testing.assert_allclose(logits, one_by_one, atol=1e-5)


def test_the_mean_is_taken_among_logarithms() -> None:
    logits = np.random.default_rng(5).normal(0, 5, (4, 3, 6)).astype(np.float32)
    expected = logsumexp(log_softmax(logits.astype(np.float64), axis=2), axis=1) - np.log(3)
    np.testing.assert_allclose(log_mean_softmax(logits), expected)
    # A sure and wrong network has a large loss, not an infinite one, which JSON could not hold.
    extreme = np.array([[[5e3, 0.0], [4e3, 0.0]]], np.float32)
    np.testing.assert_allclose(log_mean_softmax(extreme), [[0, -4e3 - np.log(2)]])


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"crops": 5}, "1 .* or 10"),
        ({"crops": 0}, "1 .* or 10"),
        ({"crops": 10, "scales": (224,)}, "one of them"),
        ({"scales": (224, 256, 224)}, "a scale twice"),
        ({"scales": (223,)}, "from 224 to 896"),
        ({"scales": (224, 897)}, "from 224 to 896"),
        ({"scales": (-1,)}, "from 224 to 896"),
    ],
)
def test_views_that_make_no_sense_are_refused(fields: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Views(**fields).check_scales(224)  # type: ignore[arg-type]


def test_what_is_told_of_views() -> None:
    assert CENTRE.to_dict() == {"crops": 1, "scales": None}
    assert Views(10).to_dict() == {"crops": 10, "scales": None}
    assert Views(scales=(224, 256)).to_dict() == {"crops": None, "scales": [224, 256]}
    assert "224,256" in str(Views(scales=(224, 256)))
