"""The engine that a bundle holds: used where it fits, and otherwise left aside with one line that says why."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import resnext
from making import write_colours
from optimised import SETTINGS, optimised_bundle
from resnext import durable, machine
from resnext.bundle import ENGINE, ENGINES, Bundle
from resnext.engine import TorchEngine
from resnext.inference.classifier import Prediction
from resnext.inference.engines import openvino, stored
from resnext.inference.engines.compiled import CompiledEngine
from resnext.inference.engines.stored import GRAPH, MANY, ONE, WEIGHTS, Record, StoredEngine
from resnext.inference.files import load, predict_files

PIXELS = np.random.default_rng(2).integers(0, 256, (9, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return optimised_bundle(tmp_path_factory.mktemp("stored") / "model")


@pytest.fixture
def bundle(made: Bundle, tmp_path: Path) -> Bundle:
    """Return a copy that a test may damage."""
    return Bundle.open(shutil.copytree(made.path, tmp_path / "model"))


@pytest.fixture(scope="module")
def expected(made: Bundle) -> np.ndarray:
    return TorchEngine(made.build(), made.contents.preprocessing, device="cpu")(PIXELS)


def change(bundle: Bundle, **fields: Any) -> None:
    """Change fields of engine.json."""
    file = bundle.path / ENGINES / ENGINE
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def spoil(bundle: Bundle, name: str) -> None:
    """Change a byte in the middle of an engine's file."""
    file = bundle.path / ENGINES / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def replace_file(bundle: Bundle, name: str) -> None:
    """Put something else in the place of an engine's file, and its hash into engine.json."""
    file = bundle.path / ENGINES / name
    file.write_bytes(b"<no engine>")
    files = json.loads((bundle.path / ENGINES / ENGINE).read_text())["files"]
    change(bundle, files={**files, name: durable.sha256(file)})


def test_it_runs_what_was_written_and_says_so(bundle: Bundle, expected: np.ndarray) -> None:
    record = stored.read(bundle)
    assert record is not None
    assert record.identity == bundle.identity
    assert record.files.keys() == {GRAPH, WEIGHTS, ONE, MANY}
    assert record.software == {"openvino": openvino.version()}
    assert record.image_size == 32
    classifier = load(bundle.path)
    assert isinstance(classifier.engine, StoredEngine)
    np.testing.assert_allclose(classifier.engine(PIXELS), expected, atol=1e-4)
    np.testing.assert_allclose(classifier.engine(PIXELS[:1]), expected[:1], atol=1e-4)
    assert classifier.notes == ("Optimised engine: OpenVINO fp32 (as good as it was).",)
    np.testing.assert_array_equal(TorchEngine(classifier.network, classifier.preprocessing)(PIXELS), expected)
    assert "unproved" in StoredEngine(bundle, replace(record, unproved=True), classifier.engine).note


def test_the_bundle_stays_itself_and_whole(bundle: Bundle, made: Bundle) -> None:
    shutil.rmtree(bundle.path / ENGINES)
    assert Bundle.open(bundle.path).identity == made.identity
    assert made.verify() == []
    assert made.files.keys() == {"model.safetensors", "README.md"}


def test_a_bundle_without_an_engine_is_run_by_torch_without_a_word(bundle: Bundle) -> None:
    shutil.rmtree(bundle.path / ENGINES)
    classifier = load(bundle.path)
    assert isinstance(classifier.engine, TorchEngine)
    assert classifier.notes == ()


@pytest.mark.parametrize(
    "asked", [{"engine": "torch"}, {"precision": "fp32"}, {"precision": "bf16"}, {"device": "cpu"}]
)
def test_asking_for_torch_gives_torch(bundle: Bundle, asked: dict[str, str]) -> None:
    classifier = load(bundle.path, **asked)
    assert isinstance(classifier.engine, TorchEngine)
    assert classifier.engine.precision == asked.get("precision", "fp32")
    assert classifier.notes == ()


def test_there_is_no_other_engine(bundle: Bundle) -> None:
    with pytest.raises(resnext.UserError, match="no engine 'fast'"):
        load(bundle.path, engine="fast")


def other_machine(bundle: Bundle) -> None:
    change(bundle, machine={"processor": "Pentium", "cores": 2, "flags_sha256": "0" * 64})


def other_cores(bundle: Bundle) -> None:
    change(bundle, machine={**machine.fingerprint(), "cores": 999})


def other_version(bundle: Bundle) -> None:
    change(bundle, software={"openvino": "2019.1"})


def other_network(bundle: Bundle) -> None:
    change(bundle, identity="0" * 64)


def other_schema(bundle: Bundle) -> None:
    change(bundle, schema=99)


def no_json(bundle: Bundle) -> None:
    (bundle.path / ENGINES / ENGINE).write_text('{"schema": 1,')


def no_description(bundle: Bundle) -> None:
    (bundle.path / ENGINES / ENGINE).unlink()


def no_table(bundle: Bundle) -> None:
    change(bundle, files=["graph.xml"])


def no_record(bundle: Bundle) -> None:
    (bundle.path / ENGINES / ENGINE).write_text("[]")


def no_kind(bundle: Bundle) -> None:
    change(bundle, kind="abacus")


def no_batch(bundle: Bundle) -> None:
    change(bundle, settings={**SETTINGS, "batch": 0})


def no_number(bundle: Bundle) -> None:
    change(bundle, settings={**SETTINGS, "batch": "many"})


def no_such_precision(bundle: Bundle) -> None:
    change(bundle, settings={**SETTINGS, "precision": "fp64"})


def damaged_one(bundle: Bundle) -> None:
    spoil(bundle, ONE)


def missing_one(bundle: Bundle) -> None:
    (bundle.path / ENGINES / ONE).unlink()


def refused_graph(bundle: Bundle) -> None:
    replace_file(bundle, ONE)
    replace_file(bundle, GRAPH)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (other_machine, "tuned on Pentium, 2 cores; run resnext optimize again"),
        (other_cores, "999 cores; run resnext optimize again"),
        (other_version, "made with OpenVINO 2019.1, here is 20"),
        (other_network, "made from another network"),
        (other_schema, "schema 99"),
        (no_json, f"{ENGINE} is damaged"),
        (no_description, f"{ENGINE} is damaged"),
        (no_table, f"{ENGINE} is damaged"),
        (no_record, f"{ENGINE} is damaged"),
        (no_kind, "no kind of engine 'abacus'"),
        (no_batch, f"{ENGINE} is damaged"),
        (no_number, f"{ENGINE} is damaged"),
        (no_such_precision, f"{ENGINE} is damaged"),
        (damaged_one, f"{ONE} is damaged (hash mismatch)"),
        (missing_one, f"{ONE}: No such file"),
        (refused_graph, "OpenVINO refuses"),
    ],
)
def test_what_does_not_fit_is_one_line_and_torch_runs(
    bundle: Bundle, expected: np.ndarray, harm: Callable[[Bundle], None], reason: str
) -> None:
    harm(bundle)
    classifier = load(bundle.path)
    np.testing.assert_allclose(classifier.engine(PIXELS[:1]), expected[:1], atol=1e-5)
    (note,) = classifier.notes
    assert reason in note
    assert "torch runs instead" in note
    assert "\n" not in note


def test_the_files_for_many_images_are_looked_at_when_there_are_many(bundle: Bundle, expected: np.ndarray) -> None:
    spoil(bundle, MANY)
    (bundle.path / ENGINES / WEIGHTS).unlink()
    classifier = load(bundle.path)
    np.testing.assert_allclose(classifier.engine(PIXELS[:1]), expected[:1], atol=1e-4)
    assert classifier.notes[0].startswith("Optimised engine")
    np.testing.assert_array_equal(classifier.engine(PIXELS), expected)
    assert f"{MANY} is damaged (hash mismatch)" in classifier.notes[0]


def test_a_file_that_openvino_does_not_take_back_is_compiled_anew(bundle: Bundle, expected: np.ndarray) -> None:
    replace_file(bundle, ONE)
    classifier = load(bundle.path)
    np.testing.assert_allclose(classifier.engine(PIXELS[:1]), expected[:1], atol=1e-4)
    assert classifier.notes[0].startswith("Optimised engine")


def test_without_openvino_torch_runs_and_says_how_to_get_it(
    bundle: Bundle, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    openvino.library.cache_clear()
    monkeypatch.setitem(sys.modules, "openvino", None)
    classifier = load(bundle.path)
    np.testing.assert_array_equal(classifier.engine(PIXELS), expected)
    assert "pip install 'resnext[cpu]'" in classifier.notes[0]


IN_TORCH = {"compile": False, "shared": True, "device": "cpu", "precision": "fp32"}


def test_an_engine_of_torch_is_built_from_the_weights_and_the_choices(bundle: Bundle, expected: np.ndarray) -> None:
    merged = {"stage1.block1.spatial.conv": 2}
    record = stored.write(bundle, Record("torch", "fp32", IN_TORCH, merged=merged))
    assert record.files == {}
    assert bundle.verify() == []
    classifier = load(bundle.path)
    np.testing.assert_allclose(classifier.engine(PIXELS), expected, atol=1e-4)
    assert classifier.notes == ("Optimised engine: torch fp32 (no certificate).",)
    assert isinstance(classifier.engine, StoredEngine)
    assert isinstance(classifier.engine.engine, CompiledEngine)
    assert classifier.engine.engine.network.get_submodule("stage1.block1.spatial.conv").groups == 2


@pytest.mark.parametrize(
    ("settings", "merged", "reason"),
    [
        ({**IN_TORCH, "speed": 9}, {}, f"{ENGINE} is damaged"),
        (IN_TORCH, {"stage9": 2}, "stage9"),
        ({**IN_TORCH, "precision": "fp16"}, {}, "fp16 is not for CPUs"),
    ],
)
def test_settings_that_torch_does_not_take_leave_the_engine_aside(
    bundle: Bundle, expected: np.ndarray, settings: dict[str, Any], merged: dict[str, int], reason: str
) -> None:
    stored.write(bundle, Record("torch", "fp32", settings, merged=merged))
    classifier = load(bundle.path)
    np.testing.assert_array_equal(classifier.engine(PIXELS), expected)
    assert reason in classifier.notes[0]
    assert "torch runs instead" in classifier.notes[0]


def test_a_compiler_that_does_not_work_leaves_the_engine_aside(
    bundle: Bundle, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(engine: CompiledEngine, pixels: np.ndarray) -> np.ndarray:
        raise resnext.UserError("torch.compile does not work here: no g++\nInstall one.")

    stored.write(bundle, Record("torch", "fp32", IN_TORCH))
    monkeypatch.setattr(CompiledEngine, "__call__", broken)
    classifier = load(bundle.path)
    np.testing.assert_array_equal(classifier.engine(PIXELS), expected)
    assert "no g++." in classifier.notes[0]
    assert "\n" not in classifier.notes[0]


def test_verify_hashes_the_engine_by_its_own_manifest(bundle: Bundle) -> None:
    assert bundle.verify() == []
    place = bundle.path / ENGINES
    spoil(bundle, ONE)
    (place / WEIGHTS).unlink()
    (place / "more.bin").write_bytes(b"more")
    assert sorted(bundle.verify()) == [
        "engines/graph.bin: missing",
        "engines/more.bin: not listed in engine.json",
        "engines/one.blob: does not match its hash",
    ]
    no_json(bundle)
    assert "engines/engine.json: does not match its hash" in bundle.verify()
    (place / ENGINE).unlink()
    assert "engines/engine.json: missing" in bundle.verify()


def test_a_write_that_fails_leaves_the_old_engine(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(compiled: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(openvino, "export_model", full)
    graph = openvino.convert(bundle.build(), bundle.contents.preprocessing)
    with pytest.raises(OSError, match="No space"):
        stored.write(bundle, Record("openvino", "fp32", {**SETTINGS, "batch": 1}), graph)
    monkeypatch.undo()
    record = stored.read(bundle)
    assert record is not None
    assert record.settings["batch"] == 4
    assert bundle.verify() == []


def test_what_a_crash_left_of_a_write_is_used_and_is_no_problem(bundle: Bundle) -> None:
    (bundle.path / ENGINES).rename(bundle.path / f"{ENGINES}.old")
    shutil.copytree(bundle.path / f"{ENGINES}.old", bundle.path / f"{ENGINES}.new")
    assert bundle.verify() == []
    assert isinstance(load(bundle.path).engine, StoredEngine)


def test_predict_and_evaluate_walk_the_same_line_with_it(bundle: Bundle, tmp_path: Path) -> None:
    data = write_colours(tmp_path / "photos", 5, size=40)
    scores = resnext.evaluate(bundle.path, data)
    exact = resnext.evaluate(bundle.path, data, precision="fp32")
    np.testing.assert_array_equal(scores.predicted, exact.predicted)
    np.testing.assert_allclose(scores.losses, exact.losses, atol=1e-4)
    assert scores.notes == ("Optimised engine: OpenVINO fp32 (as good as it was).",)
    assert exact.notes == ()
    predicted = [each for each in predict_files(load(bundle.path), [data]) if isinstance(each, Prediction)]
    assert [each.path for each in predicted] == list(scores.paths)
    np.testing.assert_allclose([each.probability for each in predicted], scores.probability, atol=1e-5)


def test_other_views_of_an_image_run_on_the_engine_and_other_sizes_on_torch(bundle: Bundle, tmp_path: Path) -> None:
    data = write_colours(tmp_path / "photos", 2, size=40)
    crops = resnext.evaluate(bundle.path, data, crops=10)
    assert crops.notes[0].startswith("Optimised engine")
    dense = resnext.evaluate(bundle.path, data, scales=[32, 40])
    assert dense.notes == (
        "The optimised engine is left aside, and torch runs instead: it takes images of one size, no --scales.",
    )
    exact = resnext.evaluate(bundle.path, data, scales=[32, 40], precision="fp32")
    np.testing.assert_array_equal(dense.losses, exact.losses)
