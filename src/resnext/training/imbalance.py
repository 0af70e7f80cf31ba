"""Remedies for classes of unequal size: what an image's loss counts, and what is said of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from resnext.data.manifest import Split
from resnext.training.recipe import Recipe


def class_weights(labels: NDArray[np.integer], num_classes: int) -> NDArray[np.float64]:
    """Return what the loss of an image of each class counts: float64, `num_classes` numbers.

    n / (K · n_c) for n images of K classes, n_c of this one (G. King and L. Zeng, "Logistic Regression in Rare Events
    Data", 2001, as in scikit-learn's "balanced"), so that all classes count alike and the mean over the images is 1.
    Classes without images have weight 0 and are not among the K.
    """
    counts = np.bincount(labels, minlength=num_classes)
    there = counts > 0
    weights = np.zeros(num_classes)
    weights[there] = len(labels) / (there.sum() * counts[there])
    return weights


def said(recipe: Recipe, split: Split) -> list[str]:
    """Say what a recipe's remedy means for the rarest and the most common class of the training images, if it has one.

    The same number is the weight of an image and how often an epoch shows it: n / (K · n_c).
    """
    if "balanced" not in (recipe.class_weights, recipe.sampling):
        return []
    counts = np.bincount(split.labels, minlength=len(split.classes))
    weights = class_weights(split.labels, len(split.classes))
    rarest = int(np.where(counts > 0, counts, counts.max() + 1).argmin())
    ends = [(label, f"{split.classes[label]} (of {counts[label]:,})") for label in (rarest, int(counts.argmax()))]
    if recipe.sampling == "balanced":
        shows = " and ".join(f"one of {name} {weights[label]:.3g} times" for label, name in ends)
        return [f"Sampling is balanced: of the training images an epoch shows {shows} on average."]
    weighs = " and ".join(f"{weights[label]:.3g} for {name}" for label, name in ends)
    return [f"Classes are weighted: the loss of a training image counts {weighs}."]
