"""What was published with weights: their file, network, classes, preprocessing and licence."""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from resnext import bundle, durable, fetching, hub
from resnext.bundle import Bundle
from resnext.data.preprocessing import Preprocessing
from resnext.errors import UserError, did_you_mean
from resnext.weights import architectures, licences
from resnext.weights.spec import Spec

INCEPTION = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""Mean and deviation for weights from TensorFlow; torchvision's GoogLeNet and Inception-v3 turn its usual inputs into
inputs with these, by an option that goes with their weights."""

SILENCE = 4.0
"""Seconds that a server may say nothing: who has no network is to know it soon."""

CONFIG = "config.json"
FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Published:
    """A file of weights and what is known of it. `network` is the name of ours, or "" where nobody says.

    `bundle` is the directory where the weights are a bundle's.
    """

    file: Path
    source: str
    network: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing | None
    licence: str
    options: dict[str, Any] = field(default_factory=dict)
    bundle: Path | None = None


def find(spec: Spec) -> Published:
    """Return the weights that a place means, fetched where they are not here yet; raises UserError otherwise."""
    if spec.kind == "torchvision":
        return _torchvision(spec)
    if spec.kind == "timm":
        architectures.ours("timm", spec.name)
        tag = spec.tag or architectures.TAGS.get(spec.name)
        if tag is None:
            raise UserError(f"timm has no weights for {spec.name} that go without a tag. Give timm:{spec.name}.TAG.")
        return _on_hub(f"timm/{spec.name}.{tag}", "", f"timm:{spec.name}.{tag}")
    if spec.kind == "hub":
        return _on_hub(spec.name, spec.tag, str(spec))
    return _at_path(Path(spec.name).expanduser())


def cached(spec: Spec) -> Spec | None:
    """Return torchvision's weights of a name that are in its cache, its default ones first, or None."""
    from torchvision.models import get_model_weights

    assert (spec.kind, spec.tag) == ("torchvision", ""), spec
    listed = get_model_weights(spec.name)
    every = [listed["DEFAULT"], *listed]
    return next((Spec(spec.kind, spec.name, each.name) for each in every if _cached(each.url).exists()), None)


def _cached(url: str) -> Path:
    """Return where torchvision keeps what it fetches from a URL."""
    from torch.hub import get_dir

    return Path(get_dir()) / "checkpoints" / PurePosixPath(url).name


def _torchvision(spec: Spec) -> Published:
    """Look weights up in torchvision's own tables, and fetch them as it does, into the same cache."""
    from torchvision.models import get_model_weights

    network = architectures.ours("torchvision", spec.name)
    listed = get_model_weights(spec.name)
    tags = list(listed.__members__)
    tag = next((each for each in tags if spec.tag.upper() in (each, each.rpartition("_")[2])), "")
    if not tag and spec.tag:
        raise UserError(
            f"torchvision:{spec.name} has no weights {spec.tag!r}.{did_you_mean(spec.tag.upper(), tags)}\n"
            f"There are {', '.join(tags)}."
        )
    weights = listed[tag or "DEFAULT"]
    preset = weights.transforms()
    mean, std = INCEPTION if spec.name in ("googlenet", "inception_v3") else (tuple(preset.mean), tuple(preset.std))
    file = _cached(weights.url)
    if not file.exists():
        _download(weights.url, file)
    return Published(
        file=file,
        source=f"torchvision:{spec.name}.{weights.name}",
        network=network,
        classes=distinct(weights.meta["categories"]),
        preprocessing=Preprocessing(
            image_size=preset.crop_size[0],
            resize=preset.resize_size[0],
            mean=mean,
            std=std,
            interpolation=preset.interpolation.value,
            rounding="torchvision",
        ),
        licence="bsd-3-clause",
    )


def _download(url: str, file: Path) -> None:
    """Fetch a file of torchvision's, whose name ends in the first digits of its SHA-256."""
    mirror = os.environ.get("RESNEXT_MIRROR")
    match = re.search(r"-([0-9a-f]{8,})\.", file.name)
    assert match is not None, url
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        wanted = f"{mirror.rstrip('/')}/{file.name}" if mirror else url
        fetching.fetch(wanted, file, match[1], algorithm="sha256", silence=SILENCE)
    except UserError as error:
        raise UserError(f"{error}\nOr fetch it on another machine and place it at {file}.") from error
    durable.sync_path(file.parent)


def _on_hub(repository: str, revision: str, source: str) -> Published:
    found = hub.find(repository, CONFIG, revision)
    config = {} if found is None else _json(found)
    if found is None or config.get("library_name") == "resnext":
        return _bundle_on_hub(repository, revision, source)
    file = hub.find(repository, FILES[0], revision) or hub.fetch(repository, FILES[1], revision)
    return described(file, config, source)


def _bundle_on_hub(repository: str, revision: str, source: str) -> Published:
    description = hub.find(repository, bundle.DESCRIPTION, revision)
    if description is None:
        raise UserError(
            f"{repository} has neither a {CONFIG} nor a {bundle.DESCRIPTION}: it holds no weights for here."
        )
    for name in _json(description).get("files", ()):
        hub.fetch(repository, name, revision)
    return _of_bundle(Bundle.open(description.parent), source)


def _at_path(path: Path) -> Published:
    """Find weights in a file, a bundle or run, or a directory as a hub has it; `config.json` beside them is read."""
    if path.is_dir() and bundle.located(path) is not None:
        return _of_bundle(Bundle.open(path), str(path))
    if path.is_dir():
        found = next((path / name for name in FILES if (path / name).is_file()), None)
        if found is None:
            raise UserError(f"{path} holds neither {' nor '.join(FILES)}. Give the file with the weights.")
        path = found
    config = path.with_name(CONFIG)
    if config.is_file() and path.name in FILES:
        return described(path, _json(config), str(path))
    return Published(path, str(path), "", (), None, licences.of_file(path.name))


def _of_bundle(opened: Bundle, source: str) -> Published:
    contents = opened.contents
    return Published(
        file=opened.path / bundle.WEIGHTS,
        source=source,
        network=contents.network,
        classes=contents.classes,
        preprocessing=contents.preprocessing,
        licence=contents.licence,
        options=contents.options,
        bundle=opened.path,
    )


def described(file: Path, config: Mapping[str, Any], source: str) -> Published:
    """Return weights with what timm's `config.json` says of them; raises UserError for a network that is not ours."""
    try:
        name = str(config["architecture"])
        about = config.get("pretrained_cfg", config)
        arguments = {
            key: value for key, value in config.get("model_args", {}).items() if not _changes_nothing(key, value)
        }
        count = int(config.get("num_classes", about.get("num_classes", 1000)))
        network = architectures.ours("timm", name)
        if arguments:
            named = ", ".join(f"{key}={value}" for key, value in arguments.items())
            raise UserError(
                f"{source} was built with {named}, and so is another network than {network}. It is not read."
            )
        return Published(
            file=file,
            source=source,
            network=network,
            classes=_labels(config, about, count),
            preprocessing=_preprocessing(about),
            licence=str(about.get("license") or licences.of_file(source)),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"The {CONFIG} of {source} is not one that timm writes ({error!r}).\n"
            "Give the file with the weights itself, and --network."
        ) from error


def _changes_nothing(argument: str, value: object) -> bool:
    """Whether an argument of timm's leaves a network what it is by name, in inference and but for its classes."""
    harmless = {"in_chans": (3,), "global_pool": ("avg", "fast")}
    return (
        argument in ("num_classes", "aux_logits")
        or "drop" in argument
        or value in harmless.get(argument, (None, False))
    )


def _preprocessing(about: Mapping[str, Any]) -> Preprocessing:
    """Return what timm does to an image before a network with these weights: resize by `crop_pct`, crop, normalise."""
    _, side, _ = about.get("input_size", (3, 224, 224))
    mode = about.get("crop_mode", "center")
    if mode not in ("center", None):
        raise UserError(f"These weights want images cropped by timm's mode {mode!r}, which resnext does not have.")
    share = float(about.get("crop_pct") or 0.875)
    return Preprocessing(
        image_size=side,
        resize=max(side, math.floor(side / share)),
        mean=tuple(about.get("mean", (0.485, 0.456, 0.406))),
        std=tuple(about.get("std", (0.229, 0.224, 0.225))),
        interpolation=about.get("interpolation", "bicubic"),
        rounding="torchvision",
    )


def _labels(config: Mapping[str, Any], about: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """Return the names of the classes: those in the description, or ImageNet's where there are as many."""
    named = config.get("label_names") or about.get("label_names")
    if isinstance(named, Mapping):
        named = [named[key] for key in sorted(named, key=int)]
    if isinstance(named, Sequence) and len(named) == count:
        return distinct([str(name) for name in named])
    return imagenet() if count == 1000 else ()


def imagenet() -> tuple[str, ...]:
    """Return the names of ImageNet's 1,000 classes in their usual order, as torchvision lists them."""
    from torchvision.models import ResNet18_Weights

    return distinct(ResNet18_Weights.DEFAULT.meta["categories"])


def distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Return names of classes with the index behind those that stand for several, as "crane (134)"."""
    counts = Counter(names)
    return tuple(f"{name} ({index})" if counts[name] > 1 else name for index, name in enumerate(names))


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is damaged ({error}). Fetch it anew.") from error
    if not isinstance(found, dict):
        raise UserError(f"{file} is damaged: it is no table. Fetch it anew.")
    return found
