"""Train image classifiers, show why they work, and run them at the speed of the machine.

The public face. Everything is loaded when it is first used, so that `import resnext` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resnext import equivalence as equivalence
    from resnext.bundle import Bundle as Bundle
    from resnext.catalog import names as list_networks
    from resnext.complexity import describe as describe
    from resnext.errors import ImageError as ImageError
    from resnext.errors import UserError as UserError
    from resnext.inference.classifier import Classifier as Classifier
    from resnext.inference.classifier import Prediction as Prediction
    from resnext.inference.evaluation import evaluate as evaluate
    from resnext.inference.files import load as load
    from resnext.inference.optimisation import optimize as optimize
    from resnext.training.run import train as train
    from resnext.weights.creation import create as create

__version__ = "0.1.0"

_PLACES: dict[str, tuple[str, str | None]] = {
    "Bundle": ("resnext.bundle", "Bundle"),
    "Classifier": ("resnext.inference.classifier", "Classifier"),
    "ImageError": ("resnext.errors", "ImageError"),
    "Prediction": ("resnext.inference.classifier", "Prediction"),
    "UserError": ("resnext.errors", "UserError"),
    "create": ("resnext.weights.creation", "create"),
    "describe": ("resnext.complexity", "describe"),
    "equivalence": ("resnext.equivalence", None),
    "evaluate": ("resnext.inference.evaluation", "evaluate"),
    "list_networks": ("resnext.catalog", "names"),
    "load": ("resnext.inference.files", "load"),
    "optimize": ("resnext.inference.optimisation", "optimize"),
    "train": ("resnext.training.run", "train"),
}

__all__ = [
    "Bundle",
    "Classifier",
    "ImageError",
    "Prediction",
    "UserError",
    "create",
    "describe",
    "equivalence",
    "evaluate",
    "list_networks",
    "load",
    "optimize",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'resnext' has no attribute {name!r}")
    place, attribute = _PLACES[name]
    module = importlib.import_module(place)
    value = module if attribute is None else getattr(module, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
