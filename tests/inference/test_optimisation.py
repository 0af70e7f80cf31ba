"""`optimize` end to end: an engine that is faster or as fast, proved, written; or refused, and the old one kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import resnext
from making import TINY, write_colours
from resnext.bundle import ENGINE, ENGINES
from resnext.data.images import read_image
from resnext.data.loader import Files
from resnext.data.preprocessing import Preprocessing
from resnext.engine import TorchEngine
from resnext.equivalence import certificate
from resnext.errors import UserError
from resnext.inference import optimisation, quantization, remembering
from resnext.inference.classifier import Prediction
from resnext.inference.engines import openvino, regrouping
from resnext.inference.engines.stored import StoredEngine
from resnext.inference.files import predict_files
from resnext.inference.optimisation import Effort, Optimised, optimize
from resnext.inference.options import Option, Workshop, torch_options
from resnext.inference.tuning import Choice
from resnext.training.run import train

QUICK = Effort(minutes=0.03)
PIXELS = np.random.default_rng(4).integers(0, 256, (10, 16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train on 750 images: enough to prove agreement with, too few for accuracy."""
    folder = tmp_path_factory.mktemp("optimise")
    write_colours(folder / "photos", 250)
    train(folder / "photos", out=folder / "run", **{**TINY, "network": "cifar_resnext11_4x4d", "epochs": 4})
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the run, which a test may change; nothing is remembered of other tests."""
    monkeypatch.setenv("RESNEXT_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(trained / "run", tmp_path / "run"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the stopwatch choose merged groups at once; returns the precisions that it was asked to tune for."""
    asked: list[str] = []

    def tune(workshop: Workshop, precision: str, **options: Any) -> Choice:
        asked.append(precision)
        if workshop.graph is None:
            option = torch_options(cast(Any, precision), "cpu")[0]
        else:
            merged = dict.fromkeys(openvino.grouped_layers(workshop.graph), 2)
            option = Option("openvino", asdict(openvino.Settings(cast(Any, precision), 4, 2, 2)), merged, "to 8")
        return Choice(option, 2.0, 1.0, ({**option.row, "images_a_second": 2.0},))

    monkeypatch.setattr(optimisation.tuning, "tune", tune)
    return asked


def files(run: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (run / "model" / ENGINES).iterdir()}


def mistake(act: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        act()
    lines = str(caught.value).splitlines()
    assert 1 <= len(lines) <= 3
    return str(caught.value)


def in_force(run: Path) -> StoredEngine:
    engine = resnext.load(run).engine
    assert isinstance(engine, StoredEngine)
    return engine


def reference(run: Path) -> np.ndarray:
    opened = resnext.Bundle.open(run / "model")
    return TorchEngine(opened.build(), opened.contents.preprocessing, device="cpu")(PIXELS)


def test_fp32_is_exact_and_in_force_from_then_on(run: Path, quick: list[str]) -> None:
    done = optimize(run, precision="fp32", effort=QUICK)
    assert isinstance(done, Optimised)
    assert done.record.merged
    assert done.certificate.relative_difference <= certificate.RELATIVE
    assert done.certificate.images >= certificate.IMAGES_FOR_AGREEMENT
    engine = in_force(run)
    np.testing.assert_allclose(engine(PIXELS), reference(run), atol=1e-3)
    assert done.certificate.summary in engine.note
    assert resnext.Bundle.open(run / "model").verify() == []
    told = json.loads(json.dumps(done.to_dict()))
    assert told["certificate"]["images"] == done.certificate.images
    assert told["tried"]


def test_in_earnest(run: Path) -> None:
    """Nothing is made quick here: it is tuned for a few seconds."""
    said: list[str] = []
    done = optimize(run, effort=Effort(minutes=0.05), say=said.append)
    assert done.choice.rate >= done.choice.plain_rate > 0
    assert any(line.endswith("img/s") for line in said)
    expected = reference(run)
    # bf16 where the processor has it: each layer rounds by up to 2^-9 of its largest numbers.
    np.testing.assert_allclose(in_force(run)(PIXELS), expected, atol=0.01 * np.abs(expected).max())


def test_int8_is_proved_on_other_images_than_it_was_calibrated_with(run: Path, quick: list[str]) -> None:
    done = optimize(run, precision="int8", effort=QUICK)
    assert done.record.name == "OpenVINO int8"
    assert not done.record.unproved
    assert done.certificate.agreement >= certificate.AGREEMENT["int8"]
    assert "fewer than" in " ".join(done.notes), "187 images calibrate, 300 are wanted"
    logits, expected = in_force(run)(PIXELS), reference(run)
    assert not np.allclose(logits, expected, atol=1e-4), "it is int8 that runs"
    assert np.corrcoef(logits.ravel(), expected.ravel())[0, 1] > 0.99


def test_a_broken_merge_is_refused_and_the_old_engine_kept(
    run: Path, quick: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The certificate's negative control: of the groups that were merged into one, the first is left out."""
    optimize(run, precision="fp32", effort=QUICK)
    before = files(run)
    regrouped = regrouping.with_merged_groups

    def broken(node: Any, factor: int, ops: Any) -> Any:
        merged = regrouped(node, factor, ops)
        weights = merged.input_value(1)
        mask = np.ones(tuple(weights.get_shape()), np.float32)
        mask[..., : mask.shape[-4] // factor, :, :, :] = 0
        merged.input(1).replace_source_output(ops.multiply(weights, mask).output(0))
        return merged

    monkeypatch.setattr(openvino, "with_merged_groups", broken)
    why = mistake(lambda: optimize(run, precision="fp32", effort=Effort(minutes=0.03, retune=True)))
    assert "of the largest logit; 0.001 is allowed" in why
    assert "The engine it had is kept" in why
    assert files(run) == before


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_another_function_is_refused(
    run: Path, precision: Any, quick: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    converted = openvino.convert

    def other(network: Any, preprocessing: Preprocessing) -> Any:
        network.get_submodule(list(dict(network.named_modules()))[-1]).weight.data.neg_()
        return converted(network, preprocessing)

    monkeypatch.setattr(openvino, "convert", other)
    why = mistake(lambda: optimize(run, precision=precision, effort=QUICK))
    assert "It gets no engine" in why
    assert not (run / "model" / ENGINES).exists()
    assert any(word in why for word in ("% is needed", "is allowed"))


def test_too_few_images_prove_nothing_unless_that_is_accepted(
    trained: Path, run: Path, tmp_path: Path, quick: list[str]
) -> None:
    few = write_colours(tmp_path / "few", 30, seed=5)
    why = mistake(lambda: optimize(run, precision="int8", calibration=few, effort=QUICK))
    assert "500 images at least" in why
    assert not quick, "no minute was spent on it"
    assert "--unproved" in why
    done = optimize(run, precision="int8", calibration=few, effort=Effort(minutes=0.03, unproved=True))
    assert done.record.unproved
    assert json.loads((run / "model" / ENGINES / ENGINE).read_text())["unproved"] is True
    assert "unproved" in in_force(run).note


def test_without_images_only_exact_rewrites_pass(trained: Path, tmp_path: Path, quick: list[str]) -> None:
    alone = Path(shutil.copytree(trained / "run" / "model", tmp_path / "alone"))
    for precision in ("bf16", "int8"):
        why = mistake(lambda precision=precision: optimize(alone, precision=precision, effort=QUICK))
        assert "must be calibrated and proved on real images" in why
        assert "--calibration" in why
    done = optimize(alone, precision="auto", effort=QUICK)
    assert done.record.precision == "fp32"


def test_images_of_other_classes_are_refused(run: Path, tmp_path: Path, quick: list[str]) -> None:
    other = write_colours(tmp_path / "other", 5)
    (other / "red").rename(other / "violet")
    why = mistake(lambda: optimize(run, precision="int8", calibration=other, effort=QUICK))
    assert "violet" in why


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write JPEG files that can be decoded at a quarter of their size: the network takes 16 pixels."""
    return write_colours(tmp_path_factory.mktemp("photos"), 205, size=128, suffix="jpg", seed=3)


def test_large_photos_are_decoded_smaller_where_that_is_proved(run: Path, photos: Path, quick: list[str]) -> None:
    said: list[str] = []
    done = optimize(run, precision="int8", calibration=photos, effort=QUICK, say=said.append)
    assert done.record.scaled
    assert "Large photos are decoded at a part of their size" in said
    classifier = resnext.load(run)
    preprocessing = classifier.preprocessing
    files = sorted(photos.rglob("*.jpg"))[:40]
    small = np.stack([preprocessing.pixels(read_image(file, enough=preprocessing.enough)) for file in files])
    whole = np.stack([preprocessing.pixels(read_image(file)) for file in files])
    assert not np.array_equal(small, whole)
    expected = [dict(one.ranked) for one in classifier.rank(classifier.engine(small), [None] * 40, None)]
    one_by_one = [dict(classifier(file).ranked) for file in files]
    in_files = [dict(one.ranked) for one in predict_files(classifier, files) if isinstance(one, Prediction)]
    for found in (one_by_one, in_files):
        for first, second in zip(found, expected, strict=True):
            assert first == pytest.approx(second, abs=1e-6)


def test_what_scaling_changes_too_much_is_decoded_whole(
    run: Path, photos: Path, quick: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A negative control: scaled photos come out as negatives."""
    read = Files.read
    monkeypatch.setattr(
        Files, "read", lambda files, index: 255 - read(files, index) if files.scaled else read(files, index)
    )
    said: list[str] = []
    done = optimize(run, precision="int8", calibration=photos, effort=QUICK, say=said.append)
    assert not done.record.scaled
    assert done.certificate.agreement >= certificate.AGREEMENT["int8"]
    assert any(line.startswith("Large photos are decoded whole") for line in said)
    assert not resnext.load(run).scaled


def test_an_exact_engine_and_small_images_are_decoded_whole(run: Path, photos: Path, quick: list[str]) -> None:
    assert not optimize(run, precision="fp32", calibration=photos, effort=QUICK).record.scaled
    assert not optimize(run, precision="int8", effort=QUICK).record.scaled


def test_torch_in_place_of_a_damaged_engine_gets_whole_photos(
    run: Path, photos: Path, quick: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    optimize(run, precision="int8", calibration=photos, effort=QUICK)
    for file in (run / "model" / ENGINES).glob("*.blob"):
        file.write_bytes(b"no engine")
    classifier = resnext.load(run)
    assert classifier.scaled
    files = sorted(photos.rglob("*.jpg"))[:5]
    read, scaled = Files.read, list[bool]()
    monkeypatch.setattr(Files, "read", lambda source, index: (scaled.append(source.scaled), read(source, index))[1])
    torch_alone = resnext.load(run, engine="torch")
    for found, expected in zip(predict_files(classifier, files), predict_files(torch_alone, files), strict=True):
        assert isinstance(found, Prediction)
        assert isinstance(expected, Prediction)
        assert dict(found.ranked) == pytest.approx(dict(expected.ranked), abs=1e-9)
    assert scaled == [False] * 10
    assert "hash mismatch" in classifier.notes[0]
    assert not classifier.scaled
    again = resnext.load(run)
    assert dict(again(files[0]).ranked) == pytest.approx(dict(torch_alone(files[0]).ranked), abs=1e-9)


def test_what_was_chosen_is_remembered_until_it_shall_be_timed_again(run: Path, quick: list[str]) -> None:
    first = optimize(run, precision="fp32", effort=QUICK)
    second = optimize(run, precision="fp32", effort=QUICK)
    assert (second.choice.remembered, quick) == (True, ["fp32"])
    assert (second.record.settings, second.record.merged) == (first.record.settings, first.record.merged)
    assert any("--retune" in note for note in second.notes)
    third = optimize(run, precision="fp32", effort=Effort(minutes=0.03, retune=True))
    assert (third.choice.remembered, quick) == (False, ["fp32", "fp32"])
    optimize(run, precision="int8", effort=QUICK)
    assert quick[-1] == "int8", "another precision has another choice"


def test_a_choice_that_no_longer_works_is_made_again(run: Path, quick: list[str]) -> None:
    optimize(run, precision="fp32", effort=QUICK)
    place = next((run.parent / "cache" / "tuning").glob("*.json"))
    told = json.loads(place.read_text())
    told["option"]["merged"] = {"a layer of another network": 2}
    place.write_text(json.dumps(told))
    done = optimize(run, precision="fp32", effort=QUICK)
    assert (done.choice.remembered, quick) == (False, ["fp32", "fp32"])


def test_auto_goes_on_with_fp32_where_bf16_is_refused(
    run: Path, quick: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = certificate.judge

    def strict(made: Any, precision: Any, **options: Any) -> Any:
        return (
            certificate.Verdict(False, "Not near enough.")
            if precision == "bf16"
            else judged(made, precision, **options)
        )

    monkeypatch.setattr(optimisation, "judge", strict)
    monkeypatch.setattr(optimisation.machine, "has_fast_bfloat16", lambda: True)
    said: list[str] = []
    assert optimize(run, effort=QUICK, say=said.append).record.precision == "fp32"
    assert any("Not near enough" in line for line in said)
    assert "Not near enough" in mistake(lambda: optimize(run, precision="bf16", effort=QUICK))


def test_bf16_is_refused_where_the_processor_has_none(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimisation.machine, "has_fast_bfloat16", lambda: False)
    monkeypatch.setattr(optimisation, "choose_device", lambda device: "cpu")
    assert "does not multiply it" in mistake(lambda: optimize(run, precision="bf16", effort=QUICK))


def test_a_bundle_that_cannot_be_written_to_is_refused_at_once(
    run: Path, quick: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimisation.os, "access", lambda path, mode: False)
    assert "cannot be written to" in mistake(lambda: optimize(run, precision="fp32", effort=QUICK))
    assert not quick


def test_another_machine_times_anew(run: Path, quick: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    optimize(run, precision="fp32", effort=QUICK)
    here = optimisation.machine.fingerprint()
    monkeypatch.setattr(optimisation.machine, "fingerprint", lambda: {**here, "flags_sha256": "another"})
    assert "tuned on" in resnext.load(run).notes[0]
    assert not optimize(run, precision="fp32", effort=QUICK).choice.remembered


@pytest.mark.parametrize(
    "content", ["", "{}", "[1]", '{"option": {"kind": "rocket", "settings": {}}}', "\0", "[" * 9999]
)
def test_a_damaged_memory_is_forgotten(tmp_path: Path, content: str) -> None:
    place = tmp_path / "choice.json"
    option = Option("openvino", {"precision": "fp32", "batch": 4}, {"stage1": 2}, "to 8")
    remembering.remember(place, Choice(option, 2.0, 1.0, ({"engine": "openvino"},)))
    assert remembering.recall(place) == Choice(option, 2.0, 1.0, ({"engine": "openvino"},), remembered=True)
    place.write_text(content)
    assert remembering.recall(place) is None


def test_without_openvino_torch_runs_it_and_says_how_to_get_it(
    run: Path, quick: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = "OpenVINO is not installed: pip install 'resnext[cpu]'"
    monkeypatch.setattr(openvino, "reason_unavailable", lambda: missing)
    done = optimize(run, precision="fp32", effort=QUICK)
    assert done.record.kind == "torch"
    assert any("resnext[cpu]" in note for note in done.notes)
    np.testing.assert_allclose(in_force(run)(PIXELS), reference(run), atol=1e-3)
    why = mistake(lambda: optimize(run, precision="int8", effort=QUICK))
    assert "resnext[cpu]" in why


def test_without_nncf_int8_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "reason_unavailable", lambda: quantization.MISSING)
    assert "resnext[cpu]" in mistake(lambda: optimize(run, precision="int8", effort=QUICK))


def test_a_full_disk_leaves_the_old_engine(run: Path, quick: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    optimize(run, precision="fp32", effort=QUICK)
    before = files(run)

    def full(model: object, place: Path) -> None:
        place.write_bytes(b"half of it")
        raise OSError(28, "No space left on device", str(place))

    monkeypatch.setattr(openvino, "save_model", full)
    with pytest.raises(OSError, match="No space left"):
        optimize(run, precision="fp32", effort=QUICK)
    assert files(run) == before
    assert in_force(run).record.precision == "fp32"


@pytest.mark.parametrize("minutes", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_times_are_refused(minutes: float) -> None:
    assert "--minutes" in mistake(lambda: Effort(minutes=minutes))


def test_an_unknown_precision_is_refused(run: Path) -> None:
    assert "fp64" in mistake(lambda: optimize(run, precision="fp64"))  # type: ignore[arg-type]
