"""The optimised engine that a bundle holds: `engines/`, written by `resnext optimize`, read by everything that infers.

`engine.json` says what the engine is, how it was proved, the machine it was timed on, and the SHA-256 of the files
beside it: the graph, and what was compiled from it for this machine, once for single images and once for many.
Whatever is wrong with it is a line of reason, and torch runs the bundle. Nothing here imports torch or OpenVINO
before an engine is opened that needs it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np

from resnext import durable, machine
from resnext.bundle import ENGINE, ENGINES, Bundle
from resnext.engine import Engine, TorchEngine
from resnext.errors import UserError
from resnext.inference.engines import openvino

SCHEMA = 2
GRAPH, WEIGHTS = "graph.xml", "graph.bin"
ONE, MANY = "one.blob", "many.blob"
AGAIN = "run resnext optimize again"
NAMES = {"openvino": "OpenVINO", "torch": "torch"}


class Unusable(Exception):
    """Why a stored engine cannot be used, in words that end a sentence."""


@dataclass(frozen=True)
class Record:
    """What engine.json says.

    `settings` are the fields of `openvino.Settings`, or the keywords of `CompiledEngine`; `merged` says how many
    groups of a layer were merged into one, and `stacked` up to which side maps are stacked; `certificate` is that of
    `equivalence/certificate.py`, as a dict, and `unproved` whether the engine was accepted without proof; `tried` holds
    a row for each thing that was timed; `scaled` says that it was proved on large photos decoded at a part of their
    size, so that they may be. The fields from `identity` on are filled in by `write`.
    """

    kind: Literal["openvino", "torch"]
    precision: str
    settings: dict[str, Any]
    merged: dict[str, int] = field(default_factory=dict)
    stacked: int = 0
    certificate: dict[str, Any] = field(default_factory=dict)
    tried: list[dict[str, Any]] = field(default_factory=list)
    unproved: bool = False
    scaled: bool = False
    identity: str = ""
    image_size: int = 0
    machine: dict[str, Any] = field(default_factory=dict)
    software: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the engine is called, such as "OpenVINO int8"."""
        return f"{NAMES[self.kind]} {self.precision}"


def write(bundle: Bundle, record: Record, graph: openvino.Graph | None = None) -> Record:
    """Write an engine into a bundle, in place of one that is there, and return what engine.json says of it.

    `graph` is that of an engine of kind openvino: as it shall run, quantised and merged. A crash leaves the old
    engine or the new one.
    """
    assert (graph is not None) == (record.kind == "openvino"), record.kind
    with durable.new_directory(bundle.path / ENGINES) as beside:
        if graph is not None:
            settings = openvino.Settings(**record.settings)
            openvino.save_model(graph, beside / GRAPH)
            for name, each in ((ONE, settings.for_one()), (MANY, settings)):
                (beside / name).write_bytes(openvino.export_model(openvino.compile_model(graph, each)))
        record = replace(
            record,
            identity=bundle.identity,
            image_size=bundle.contents.preprocessing.image_size,
            machine=machine.fingerprint(),
            software={record.kind: _version(record.kind)},
            files={file.name: durable.sha256(file) for file in sorted(beside.iterdir())},
        )
        told = json.dumps({"schema": SCHEMA, **asdict(record)}, indent=2, ensure_ascii=False)
        (beside / ENGINE).write_text(told + "\n", encoding="utf-8")
    return record


def read(bundle: Bundle) -> Record | None:
    """Return what a bundle's engine.json says; None where it has no engine. Raises Unusable for a damaged one."""
    if (place := _place(bundle)) is None:
        return None
    try:
        told = json.loads((place / ENGINE).read_text(encoding="utf-8"))
        if (schema := told.pop("schema")) != SCHEMA:
            raise Unusable(f"its {ENGINE} has schema {schema}, this resnext reads {SCHEMA}; {AGAIN}")
        record = Record(**{one.name: told[one.name] for one in fields(Record)})
        _check_types(record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Unusable(f"{place / ENGINE} is damaged ({error!r}); {AGAIN}") from error
    return record


def open(bundle: Bundle) -> tuple[StoredEngine | None, str | None]:
    """Return a bundle's optimised engine and None, or None and why it is not used here; (None, None): there is none.

    It was made from this very bundle, for this machine, with this version of its library. Its files are read, and
    their hashes compared, when they are first needed.
    """
    try:
        record = read(bundle)
        if record is None:
            return None, None
        _check_fits(record, bundle)
        place = _place(bundle)
        assert place is not None
        engine = _openvino(record, place) if record.kind == "openvino" else _torch(record, bundle)
    except Unusable as why:
        return None, _left_aside(why)
    return StoredEngine(bundle, record, engine), None


class Fallback(TorchEngine):
    """What runs where the optimised engine turned out not to."""


class StoredEngine:
    """A bundle's optimised engine; eager torch from the moment on that it turns out not to work.

    `note` says in a line which of the two runs, and why; it is final once images have gone through.
    """

    def __init__(self, bundle: Bundle, record: Record, engine: Engine) -> None:
        self.bundle = bundle
        self.record = record
        self.engine = engine
        self.batch_size = engine.batch_size
        self._lock = Lock()
        proof = record.certificate.get("summary", "no certificate")
        self.note = f"Optimised engine: {record.name}{', unproved' if record.unproved else ''} ({proof})."

    @property
    def scaled(self) -> bool:
        """Whether large photos may be decoded at a part of their size for what runs."""
        return self.record.scaled and not isinstance(self.engine, Fallback)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Map uint8 pixels N×S×S×C to float32 logits N×K."""
        engine = self.engine
        try:
            return engine(pixels)
        except (Unusable, UserError) as why:
            self._fall_back(engine, why)
            return self.engine(pixels)

    def open_for(self, count: int) -> None:
        """Open what so many images need, so that `scaled` and `note` are final for what is damaged on the disk."""
        engine = self.engine
        if isinstance(engine, openvino.OpenVINOEngine):
            try:
                engine.open_for(count)
            except (Unusable, UserError) as why:
                self._fall_back(engine, why)

    def _fall_back(self, engine: Engine, why: Unusable | UserError) -> None:
        with self._lock:
            if self.engine is engine:
                self.engine = Fallback(self.bundle.build(), self.bundle.contents.preprocessing)
                self.note = _left_aside(why)


def _left_aside(why: Unusable | UserError) -> str:
    reason = str(why).partition("\n")[0].rstrip(".")
    return f"The optimised engine is left aside, and torch runs instead: {reason}."


def _place(bundle: Bundle) -> Path | None:
    """Return where a bundle's engine is; a crash between two renames leaves it in engines.old."""
    places = (bundle.path / ENGINES, bundle.path / f"{ENGINES}.old")
    return next((place for place in places if place.is_dir()), None)


def _check_types(record: Record) -> None:
    """Raise TypeError where a field of engine.json is of another kind than it must be."""
    tables = [record.settings, record.merged, record.certificate, record.machine, record.software, record.files]
    texts = [record.precision, record.identity, *record.software.values(), *record.files.values()]
    kinds = ((dict, tables), (str, texts), (bool, [record.unproved, record.scaled]))
    if not all(isinstance(one, kind) for kind, each in kinds for one in each):
        raise TypeError("a field is of the wrong kind")
    if record.kind not in NAMES:
        raise TypeError(f"there is no kind of engine {record.kind!r}")


def _check_fits(record: Record, bundle: Bundle) -> None:
    """Raise Unusable unless an engine was made from this bundle, for this machine."""
    side = bundle.contents.preprocessing.image_size
    if (record.identity, record.image_size) != (bundle.identity, side):
        raise Unusable(f"it was made from another network; {AGAIN}")
    here, there = machine.fingerprint(), record.machine
    if any(here[key] != there.get(key) for key in ("cores", "flags_sha256")):
        raise Unusable(f"tuned on {there.get('processor')}, {there.get('cores')} cores; {AGAIN}")
    if record.kind == "openvino" and (why := openvino.reason_unavailable()) is not None:
        raise Unusable(why)
    if (version := _version(record.kind)) != record.software.get(record.kind):
        made = f"{NAMES[record.kind]} {record.software.get(record.kind)}"
        raise Unusable(f"made with {made}, here is {version}; {AGAIN}")


def _version(kind: str) -> str:
    if kind == "openvino":
        return openvino.version()
    import torch

    return str(torch.__version__)


def _openvino(record: Record, place: Path) -> openvino.OpenVINOEngine:
    try:
        settings = openvino.Settings(**record.settings)
    except (TypeError, ValueError) as error:
        raise Unusable(f"{place / ENGINE} is damaged ({error!r}); {AGAIN}") from error

    def opener(name: str, settings: openvino.Settings) -> Callable[[], openvino.CompiledModel]:
        return lambda: _compiled(record, place, name, settings)

    return openvino.OpenVINOEngine(settings, opener(ONE, settings.for_one()), opener(MANY, settings))


def _compiled(record: Record, place: Path, name: str, settings: openvino.Settings) -> openvino.CompiledModel:
    """Open what was compiled for this machine, or compile the graph where OpenVINO does not take that back."""
    try:
        return openvino.import_model(_bytes(record, place, name), settings)
    except RuntimeError:
        pass
    try:
        graph = openvino.read_model(_bytes(record, place, GRAPH), _bytes(record, place, WEIGHTS))
        return openvino.compile_model(graph, settings)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise Unusable(f"OpenVINO refuses {place / GRAPH} ({reason}); {AGAIN}") from error


def _bytes(record: Record, place: Path, name: str) -> bytes:
    """Read a file once; raises Unusable where it is not the one whose hash engine.json holds."""
    try:
        data = (place / name).read_bytes()
    except OSError as error:
        raise Unusable(f"{place / name}: {error.strerror}; {AGAIN}") from error
    if hashlib.sha256(data).hexdigest() != record.files.get(name):
        raise Unusable(f"{place / name} is damaged (hash mismatch); {AGAIN}")
    return data


def _torch(record: Record, bundle: Bundle) -> Engine:
    from resnext.inference.engines.compiled import CompiledEngine

    network, preprocessing = bundle.build(), bundle.contents.preprocessing
    try:
        return CompiledEngine(network, preprocessing, merged=record.merged, **record.settings)
    except UserError as error:
        raise Unusable(str(error)) from error
    except (TypeError, ValueError) as error:
        raise Unusable(f"{bundle.path / ENGINES / ENGINE} is damaged ({error!r}); {AGAIN}") from error
