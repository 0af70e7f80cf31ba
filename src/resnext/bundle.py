"""The bundle: a directory that holds a trained classifier and everything needed to use it. No pickle.

`bundle.json` names the network, its classes in order, the preprocessing, recipe, results, software, machine and
the SHA-256 of every other file; `model.safetensors` holds the weights; `golden.safetensors` a few validation
images with their logits, so that another machine can check itself; `mean_image.safetensors` the mean image where
the preprocessing has one; `README.md` is the model card. `engines/` is what `resnext optimize` made of it, and has a
manifest of its own, `engine.json`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resnext import card, catalog, durable, hub, machine
from resnext.data.preprocessing import Preprocessing
from resnext.errors import UserError

if TYPE_CHECKING:
    import torch

SCHEMA = 1
DESCRIPTION = "bundle.json"
WEIGHTS = "model.safetensors"
GOLDEN = "golden.safetensors"
MEAN_IMAGE = "mean_image.safetensors"
CARD = "README.md"
OWN_HASH = "description_sha256"
KEYS = ("schema", "identity", "network", "classes", "channels", "preprocessing", "recipe", "results", "licence",
        "software", "machine", "files", "calibration")  # fmt: skip
ENGINES = "engines"
ENGINE = "engine.json"


@dataclass(frozen=True)
class Contents:
    """What a classifier is, apart from its weights."""

    network: str
    options: dict[str, Any]
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    recipe: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    licence: str = "The weights are yours: they were trained here from random initial values."
    calibration: dict[str, Any] = field(default_factory=dict)
    """`temperature`, by which logits are divided for probabilities, `thresholds` by wanted precision, and on what
    `data` both were fitted; empty where they were not."""

    @property
    def temperature(self) -> float:
        """What logits are divided by for probabilities."""
        return float(self.calibration.get("temperature", 1.0))


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose description was read and found consistent.

    `identity` is the hash of what decides the answers: weights, network, classes and preprocessing.
    """

    path: Path
    contents: Contents
    identity: str
    files: dict[str, str]
    software: dict[str, str]
    machine: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Open a bundle, or the bundle of a run.

        Raises UserError where there is none, its description is damaged, or it or the mean image was altered.
        """
        place = find(Path(path))
        try:
            raw = json.loads((place / DESCRIPTION).read_text(encoding="utf-8"))
            schema = raw["schema"]
            if schema != SCHEMA:
                raise UserError(
                    f"{place} has bundle schema {schema}; this resnext reads schema {SCHEMA}. Update resnext."
                )
            contents = Contents(
                network=raw["network"]["name"],
                options=raw["network"]["options"],
                classes=tuple(raw["classes"]),
                preprocessing=_preprocessing(place, raw),
                recipe=raw["recipe"],
                results=raw["results"],
                licence=raw["licence"],
                calibration=raw.get("calibration", {}),
            )
            opened = cls(place, contents, raw["identity"], raw["files"], raw["software"], raw["machine"])
            _check_types(opened)
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{place / DESCRIPTION} is damaged ({error!r}). Restore the bundle from where it was made."
            ) from error
        identified = opened.identity == identity_of(contents, opened.files.get(WEIGHTS, ""))
        if not identified or not _is_as_written(raw):
            what = "hash" if identified else "identity"
            raise UserError(
                f"{place / DESCRIPTION} was altered: its {what} does not match its contents. "
                "Restore the bundle from where it was made."
            )
        return opened

    def read(self, name: str) -> dict[str, np.ndarray]:
        """Read a safetensors file of the bundle; raises UserError where its hash does not match."""
        return _read(self.path / name, self.files.get(name))

    def build(self) -> torch.nn.Module:
        """Build the network with its trained weights, in evaluation mode on the CPU."""
        import torch

        contents = self.contents
        weights = {name: torch.from_numpy(value) for name, value in self.read(WEIGHTS).items()}
        try:
            with torch.device("meta"):
                network = catalog.create(
                    contents.network,
                    num_classes=len(contents.classes),
                    in_channels=contents.preprocessing.channels,
                    **contents.options,
                )
            expected = {name: value.dtype for name, value in network.state_dict().items()}
            if expected != {name: value.dtype for name, value in weights.items()}:
                raise TypeError("names or kinds of tensors differ")
            network.load_state_dict(weights, strict=True, assign=True)
        except (RuntimeError, TypeError) as error:
            raise UserError(
                f"The weights in {self.path} do not fit {contents.network}. Restore the bundle from where it was made."
            ) from error
        return network.eval()

    def verify(self) -> list[str]:
        """Hash every file and return one line for each that is missing, damaged or not listed."""
        engines = self.path / ENGINES
        problems = _differences(self.path, DESCRIPTION, self.files)
        if engines.is_dir():
            problems += [f"{ENGINES}/{problem}" for problem in _differences(engines, ENGINE, _engine_files(engines))]
        return problems

    def push_to_hub(
        self, repository: str, *, private: bool = False, message: str = "Upload a bundle of resnext"
    ) -> str:
        """Put the bundle, without its engines, in a repository OWNER/REPO of the Hugging Face hub; return the commit's
        URL.

        The repository is made where it is not there. `config.json` is added, as the hub's own pages read it. Raises
        UserError where the bundle is damaged, or the hub refuses.
        """
        problems = [problem for problem in self.verify() if not problem.startswith(f"{ENGINES}/")]
        if problems:
            raise UserError(
                f"{self.path} is damaged and was not pushed: {problems[0]}. Restore it from where it was made."
            )
        classes = self.contents.classes
        config = {
            "library_name": "resnext",
            "architecture": self.contents.network,
            "options": self.contents.options,
            "num_classes": len(classes),
            "id2label": {str(index): name for index, name in enumerate(classes)},
            "label2id": {name: index for index, name in enumerate(classes)},
            "image_size": self.contents.preprocessing.image_size,
            "identity": self.identity,
        }
        files: dict[str, Path | bytes] = {name: self.path / name for name in (DESCRIPTION, *self.files)}
        files["config.json"] = json.dumps(config, indent=2, ensure_ascii=False).encode()
        return hub.push(files, repository, private=private, message=message)


def _engine_files(engines: Path) -> dict[str, str]:
    """Return the files that engine.json lists with their hashes; where it is damaged it is listed itself, unhashed."""
    try:
        return dict(json.loads((engines / ENGINE).read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {ENGINE: "damaged"}


def _differences(place: Path, manifest: str, files: dict[str, str]) -> list[str]:
    """Return one line for each file that is not as `manifest` lists it; engines/ and what a crash left of it aside."""
    problems = []
    for name, expected in files.items():
        file = place / name
        if not file.is_file():
            problems.append(f"{name}: missing")
        elif durable.sha256(file) != expected:
            problems.append(f"{name}: does not match its hash")
    present = {file.relative_to(place) for file in place.rglob("*") if file.is_file()}
    others = {ENGINES, f"{ENGINES}.new", f"{ENGINES}.old"}
    unlisted = {file.as_posix() for file in present if file.parts[0] not in others} - {manifest, *files}
    return problems + [f"{name}: not listed in {manifest}" for name in sorted(unlisted)]


def _preprocessing(place: Path, raw: dict[str, Any]) -> Preprocessing:
    """Return the preprocessing that the description `raw` of the bundle at `place` tells of."""
    if "mean_image" not in raw["preprocessing"]:
        return Preprocessing.from_dict(raw["preprocessing"])
    image = _read(place / MEAN_IMAGE, raw["files"].get(MEAN_IMAGE))["mean_image"]
    return Preprocessing.from_dict(raw["preprocessing"], image)


def _read(file: Path, expected: str | None) -> dict[str, np.ndarray]:
    """Read a safetensors file whose SHA-256 is `expected`; raises UserError for any other."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        data = file.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{file} is missing. Restore the bundle from where it was made.") from error
    if hashlib.sha256(data).hexdigest() != expected:
        raise UserError(
            f"{file} does not match the hash in {DESCRIPTION}: it is damaged or was replaced. "
            "Restore the bundle from where it was made."
        )
    try:
        tensors: dict[str, np.ndarray] = load(data)
    except SafetensorError as error:
        raise UserError(
            f"{file} is no safetensors file ({error}). Restore the bundle from where it was made."
        ) from error
    return tensors


def _check_types(opened: Bundle) -> None:
    """Raise TypeError where a field of the description is of another kind than it must be."""
    contents = opened.contents
    texts = [contents.network, contents.licence, opened.identity, *contents.classes, *opened.files.values()]
    tables = [contents.options, contents.recipe, contents.results, opened.files, opened.software, opened.machine]
    if not all(isinstance(text, str) for text in texts) or not all(isinstance(table, dict) for table in tables):
        raise TypeError("a field is of the wrong kind")
    if not isinstance(contents.calibration, dict) or not contents.temperature > 0:
        raise TypeError("the temperature is none")
    if not contents.classes or len(set(contents.classes)) < len(contents.classes):
        raise TypeError("classes must be distinct")


def located(path: Path) -> Path | None:
    """Return the directory of a bundle as `find` does, or None where there is none."""
    places = (path, path / "model", Path(f"{path.absolute()}.old"), path / "model.old")
    return next((place for place in places if (place / DESCRIPTION).is_file()), None)


def find(path: Path) -> Path:
    """Return the directory of a bundle, given itself or its run; raises UserError where there is none.

    Where a crash left only `model.old` of a run, that one is meant.
    """
    if (place := located(path)) is not None:
        return place
    if not path.exists():
        raise UserError(f"There is no {path}. Give the directory of a run or of a bundle, as train printed it.")
    raise UserError(
        f"{path} holds no bundle (no {DESCRIPTION}, no model/{DESCRIPTION}). "
        "Give the directory of a run or of a bundle, as train printed it."
    )


def write(
    path: Path,
    contents: Contents,
    weights: dict[str, np.ndarray],
    golden: tuple[np.ndarray, np.ndarray] | None = None,
) -> Bundle:
    """Write a bundle to `path`, in place of one that is there, so that a crash leaves the old or the new one.

    `weights` maps state-dict names to arrays; `golden` holds images uint8 N×S×S×C and their float32 logits N×K.
    """
    from safetensors.numpy import save as serialise

    with durable.new_directory(path) as beside:
        # Written by us: safetensors' own writer tells a full disk by an error that is no OSError.
        (beside / WEIGHTS).write_bytes(serialise(weights))
        if golden is not None:
            (beside / GOLDEN).write_bytes(serialise({"pixels": golden[0], "logits": golden[1]}))
        if contents.preprocessing.mean_image is not None:
            (beside / MEAN_IMAGE).write_bytes(serialise({"mean_image": contents.preprocessing.mean_image}))
        files = {WEIGHTS: durable.sha256(beside / WEIGHTS)}
        identity = identity_of(contents, files[WEIGHTS])
        told = card.text(
            contents.network, contents.classes, contents.preprocessing, contents.results, contents.licence, identity
        )
        (beside / CARD).write_text(told, encoding="utf-8")
        files |= {
            name: durable.sha256(beside / name) for name in (GOLDEN, MEAN_IMAGE, CARD) if (beside / name).exists()
        }
        description = {
            "schema": SCHEMA,
            "identity": identity,
            "network": {"name": contents.network, "options": contents.options},
            "classes": list(contents.classes),
            "channels": contents.preprocessing.channels,
            "preprocessing": contents.preprocessing.to_dict(),
            "recipe": contents.recipe,
            "results": contents.results,
            "licence": contents.licence,
            "software": machine.software(),
            "machine": machine.description(),
            "files": files,
        }
        if contents.calibration:
            description["calibration"] = contents.calibration
        description[OWN_HASH] = _description_hash(description)
        (beside / DESCRIPTION).write_text(
            json.dumps(description, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    return Bundle.open(path)


def _description_hash(description: dict[str, Any]) -> str:
    """Return the hash of a description, apart from this hash itself."""
    rest = {key: value for key, value in description.items() if key != OWN_HASH}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _is_as_written(raw: dict[str, Any]) -> bool:
    """Whether a description is what `write` wrote, down to the results; older versions gave it no hash."""
    known = raw.keys() <= {*KEYS, OWN_HASH}  # else the hash's own name may be what was damaged
    told = _description_hash(raw)
    return known and raw.get(OWN_HASH, told) == told


def identity_of(contents: Contents, weights_hash: str) -> str:
    """Return the hash of what decides the answers: weights, network, classes in order, preprocessing."""
    deciding = [
        weights_hash,
        contents.network,
        contents.options,
        list(contents.classes),
        contents.preprocessing.to_dict(),
    ]
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()
