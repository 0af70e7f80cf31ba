"""Statistics of pixels against numpy's and scikit-learn's."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.decomposition import PCA

from resnext.data.statistics import colour_axes, mean_image
from resnext.errors import UserError


def photos(count: int = 12, channels: int = 3) -> npt.NDArray[np.uint8]:
    """Images whose colours lie along an inclined cigar."""
    generator = np.random.default_rng(0)
    along = generator.normal(0, [[60], [20], [5]], (3, count * 81)).T @ np.array(
        [[0.6, 0.6, 0.5], [0.7, -0.7, 0.1], [0.4, 0.3, -0.9]]
    )
    return np.clip(120 + along, 0, 255).astype(np.uint8).reshape(count, 9, 9, 3)[..., :channels]


def test_the_mean_image_is_numpys_mean_whatever_the_batches() -> None:
    images = photos()
    result = mean_image([images[:5], images[5:5], images[5:6], images[6:]])
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, images.mean(axis=0) / 255, rtol=1e-6)
    assert np.array_equal(mean_image([images[::-1]]), result)


@pytest.mark.parametrize("channels", [1, 3])
def test_colour_axes_are_eigenvectors_times_eigenvalues_of_numpys_covariance(channels: int) -> None:
    images = photos(channels=channels)
    colours = images.reshape(-1, channels) / 255
    covariance = np.atleast_2d(np.cov(colours.T, bias=True))
    axes = np.array(colour_axes(images)).reshape(channels, channels)
    values = np.linalg.norm(axes, axis=1)
    assert (np.diff(values) <= 0).all()
    for axis, value in zip(axes, values, strict=True):
        np.testing.assert_allclose(covariance @ axis, value * axis, atol=1e-12)
    np.testing.assert_allclose(values.sum(), np.trace(covariance), rtol=1e-9)
    np.testing.assert_allclose(axes @ axes.T, np.diag(values**2), atol=1e-12)
    peer = PCA().fit(colours)
    np.testing.assert_allclose(values, peer.explained_variance_ * (1 - 1 / len(colours)), rtol=1e-6)
    np.testing.assert_allclose(np.abs(axes / values[:, None]), np.abs(peer.components_), atol=1e-6)
    assert (axes[np.arange(channels), np.abs(axes).argmax(axis=1)] > 0).all()


def test_images_may_differ_in_size_and_come_in_any_order() -> None:
    images = list(photos())
    images[0] = images[0][:4]
    assert colour_axes(images) == colour_axes(reversed(images))
    grey = np.repeat(photos(channels=1), 3, axis=3)
    axes = np.array(colour_axes(grey)).reshape(3, 3)
    np.testing.assert_allclose(axes[0], axes[0, 0])
    np.testing.assert_allclose(axes[1:], 0, atol=1e-12)


def test_no_image_is_said() -> None:
    for measure in (mean_image, colour_axes):
        with pytest.raises(UserError, match="Not one training image"):
            measure([])  # type: ignore[operator]
