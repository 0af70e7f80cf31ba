"""The commands as a user runs them: what is on stdout, what is on stderr, and the exit code."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import resnext
from making import TINY, write_colours
from resnext.cli import run
from resnext.training.run import train

COMMANDS = ("train", "evaluate", "predict", "networks", "describe", "verify", "check")
COMMANDS += ("optimize", "benchmark", "demo", "weights", "embed")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    data = write_colours(folder / "photos", 16)
    write_colours(folder / "test", 4, seed=9)
    train(data, out=folder / "run", **{**TINY, "epochs": 2})
    return folder


def command(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = run([str(argument) for argument in arguments])
    captured = capfd.readouterr()
    return code, captured.out, captured.err


def lines_of_a_mistake(capfd: pytest.CaptureFixture[str], *arguments: object) -> str:
    code, out, err = command(capfd, *arguments)
    assert (code, out) == (2, ""), err
    assert "Traceback" not in err
    assert 1 <= len(err.strip().splitlines()) <= 3, err
    return err


def test_every_command_has_help_with_an_example(capfd: pytest.CaptureFixture[str]) -> None:
    for name in COMMANDS:
        code, out, _ = command(capfd, name, "--help")
        assert code == 0
        assert f"Example: resnext {name}" in " ".join(out.split()), name


def test_train_with_json_prints_json_only_on_stdout(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in TINY.items() if key != "resize"]
    code, out, err = command(capfd, "train", trained / "photos", "--out", tmp_path / "run", *flags, "--json")
    assert code == 0
    told = json.loads(out)
    assert told["bundle"] == str(tmp_path / "run" / "model")
    assert {"images", "top1", "top5", "top1_interval", "loss", "identity"} <= told.keys()
    assert told["top5"] is None  # three classes
    assert "Epoch" in err


def test_evaluate_and_predict_agree_on_every_file(trained: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = command(capfd, "evaluate", trained / "run", trained / "test", "--json")
    scores = json.loads(out)
    assert code == 0
    assert scores["images"] == 12
    assert sum(row["images"] for row in scores["per_class"].values()) == 12
    code, out, _ = command(capfd, "predict", trained / "run", trained / "test", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    correct = sum(row["label"] == Path(row["path"]).parent.name for row in rows)
    assert correct / len(rows) == pytest.approx(scores["top1"])
    for row in rows:
        assert row["label"] == row["ranked"][0]["label"]
        assert sum(each["probability"] for each in row["ranked"]) == pytest.approx(1)


@torch.inference_mode()
def test_evaluate_averages_over_the_views_that_were_asked_for(trained: Path, capfd: pytest.CaptureFixture[str]) -> None:
    classifier = resnext.load(trained / "run")

    def loss(sizes: tuple[int, ...]) -> float:
        """The images are 16×16, so that all of their crops are the image itself."""
        losses = []
        for file in sorted((trained / "test").rglob("*.png")):
            with Image.open(file) as image:
                whole = [np.asarray(image.resize((size, size), Image.Resampling.BILINEAR)) for size in sizes]
            views = [view for one in whole for view in (one, one[:, ::-1])]
            inputs = [torch.from_numpy(classifier.preprocessing.normalise(view[None])) for view in views]
            shares = torch.cat([classifier.network(each) for each in inputs]).softmax(1).mean(0)
            losses.append(-shares[classifier.classes.index(file.parent.name)].log().item())
        return sum(losses) / len(losses)

    plain = {"crops": 1, "scales": None}
    for flags, sizes, views in (
        (["--crops", 10], (16,), {**plain, "crops": 10}),
        (["--scales", "16,24,40"], (16, 24, 40), {"crops": None, "scales": [16, 24, 40]}),
    ):
        code, out, _ = command(capfd, "evaluate", trained / "run", trained / "test", *flags, "--json")
        scores = json.loads(out)
        assert code == 0
        assert (scores["images"], scores["views"]) == (12, views)
        assert scores["loss"] == pytest.approx(loss(sizes), rel=1e-4)
        code, out, _ = command(capfd, "evaluate", trained / "run", trained / "test", *flags)
        assert "views  " in out
    code, out, _ = command(capfd, "evaluate", trained / "run", trained / "test", "--json")
    assert json.loads(out)["views"] == plain


def test_predict_names_unreadable_files_in_their_place(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    good = trained / "test" / "red" / "0.png"
    bad = tmp_path / "bad.jpg"
    bad.write_text("no image")
    code, out, _ = command(capfd, "predict", trained / "run", bad, good, tmp_path / "none.png", "--json", "--top", 1)
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [row["path"] for row in rows] == [str(bad), str(good), str(tmp_path / "none.png")]
    assert ["error" in row for row in rows] == [True, False, True]
    assert len(rows[1]["ranked"]) == 1
    code, out, _ = command(capfd, "predict", trained / "run", bad, "--json")
    assert code == 2


def test_verify_and_describe(trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = command(capfd, "verify", trained / "run", "--json")
    assert (code, json.loads(out)["problems"]) == (0, [])
    code, out, _ = command(capfd, "describe", trained / "run", "--json")
    told = json.loads(out)
    assert code == 0
    assert told["bundle"]["classes"] == ["blue", "green", "red"]
    assert told["image_size"] == 16
    code, out, _ = command(capfd, "describe", "resnext50_32x4d", "--json")
    assert json.loads(out)["parameters"] == 25_028_904
    code, out, _ = command(capfd, "networks", "resnet5*", "--json")
    assert [row["name"] for row in json.loads(out)] == ["resnet50", "resnet50_no_shortcut", "resnet50_v1"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "{}/nowhere"], "No such file"),
        (["train", "{}/photos", "--epoch", "3"], "--epochs"),
        (["train", "{}/photos", "--epochs", "many"], "epochs"),
        (["train", "{}/photos", "--network", "resnext50_32x4"], "resnext50_32x4d"),
        (["train", "{}/photos", "--recipe", "{}/none.toml"], "no recipe"),
        (["train", "{}/photos", "--recipe", "{}/typed.toml"], "epochs"),
        (["train", "{}/photos", "--recipe", "{}/misspelt.toml"], "Did you mean 'label_smoothing'"),
        (["train", "{}/photos", "--out", "{}/run/recipe.toml"], "is a file"),
        (["train", "{}/photos", "--out", "{}/run/recipe.toml/run"], "Choose another path"),
        (["train", "{}/photos", "--out", "{}/run"], "finished run"),
        (["train", "{}/photos", "--out", "{}/empty", "--resume"], "no run to resume"),
        (["train"], "DATA"),
        (["evaluate", "{}/nowhere", "{}/test"], "There is no"),
        (["evaluate", "{}/run", "{}/empty"], "no images"),
        (["predict", "{}/test", "{}/test"], "holds no bundle"),
        (["predict", "{}/run", "{}/empty"], "no images"),
        (["predict", "{}/run", "{}/test", "--top", "0"], "--top"),
        (["predict", "{}/run", ""], "empty path"),
        (["evaluate", "{}/run", "{}/test", "--max-unreadable", "-1"], "0 to 1"),
        (["evaluate", "{}/run", "{}/test", "--crops", "5"], "or 10"),
        (["evaluate", "{}/run", "{}/test", "--crops", "10", "--scales", "16"], "one of them"),
        (["evaluate", "{}/run", "{}/test", "--scales", "15,16"], "from 16 to 64"),
        (["evaluate", "{}/run", "{}/test", "--scales", "16,"], "like 224,256,384"),
        (["evaluate", "{}/run", "{}/test", "--scales", ""], "like 224,256,384"),
        (["describe", "cifar_resnet99999998"], "cannot be built"),
        (["describe", "resnext49_32x4d"], "50, 101 or 152 layers"),
        (["describe", "resnet49"], "Did you mean"),
        (["describe", "resnet50", "--image-size", "8"], "32"),
        (["verify", "{}/test"], "holds no bundle"),
        (["check", "{}/nowhere"], "No such file"),
        (["check", "{}/empty"], "no images"),
        (["check", "{}/test/red/0.png"], "neither a folder nor"),
        (["check", "cifar11"], "Did you mean 'cifar10'"),
        (["optimize", "{}/test"], "holds no bundle"),
        (["optimize", "{}/run", "--precision", "int4"], "int8"),
        (["optimize", "{}/run", "--precision", "int8"], "500 images at least"),
        (["optimize", "{}/run", "--minutes", "0"], "--minutes"),
        (["optimize", "{}/run", "--calibration", "{}/nowhere"], "no such file"),
        (["optimize", "{}/run", "--calibration", "{}/empty"], "no images"),
        (["benchmark", "{}/test"], "holds no bundle"),
        (["benchmark", "resnext50_32x4"], "resnext50_32x4d"),
        (["benchmark", "{}/run", "--against", "eager,openvin"], "openvino"),
        (["benchmark", "{}/run", "--against", ""], "names nothing"),
        (["benchmark", "{}/run", "--batch", "1;2"], "like 1,16"),
        (["benchmark", "{}/run", "--batch", "0"], "1 to 1024"),
        (["benchmark", "{}/run", "--precision", "fp8"], "fp32"),
        (["benchmark", "{}/run", "--image-size", "32"], "--image-size"),
        (["benchmark", "{}/run", "--rounds", "0"], "--rounds"),
        (["benchmark", "{}/run", "--threads", "4096"], "--threads"),
        (["evaluat"], "evaluate"),
        (["networks", "--jsn"], "--json"),
    ],
)
def test_mistakes_get_one_to_three_lines_and_exit_code_2(
    trained: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    (trained / "empty").mkdir(exist_ok=True)
    (trained / "typed.toml").write_text('epochs = "many"\n')
    (trained / "misspelt.toml").write_text("label_smooting = 0.1\n")
    assert says in lines_of_a_mistake(capfd, *(each.format(trained) for each in arguments))


def test_a_class_that_the_bundle_does_not_know_is_refused(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = write_colours(tmp_path / "test", 2)
    (data / "red").rename(data / "crimson")
    assert "crimson" in lines_of_a_mistake(capfd, "evaluate", trained / "run", data)


def test_a_fault_of_ours_has_a_traceback_and_exit_code_1(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(self: Any) -> None:
        raise ValueError("shapes do not match")

    monkeypatch.setattr("resnext.bundle.Bundle.verify", broken)
    code, _, err = command(capfd, "verify", trained / "run")
    assert code == 1
    assert "Traceback" in err


def test_the_demo_does_what_it_says_and_leaves_other_files_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine" / "digits").mkdir(parents=True)
    (tmp_path / "mine" / "digits" / "zero.png").write_bytes(b"mine")
    assert "left as it is" in lines_of_a_mistake(capfd, "demo", "--out", tmp_path / "mine")
    assert (tmp_path / "mine" / "digits" / "zero.png").read_bytes() == b"mine"
    code, out, err = command(capfd, "demo", "--out", tmp_path / "demo")
    assert code == 0
    top1 = float(out.split("top-1", 1)[1].split()[0])
    assert top1 >= 0.97
    assert out.count(".png  ") == 5  # five predictions
    assert str(tmp_path / "demo" / "run" / "model") in err
    assert "resnext train photos/" in err


def test_a_run_of_folds_can_be_stopped_and_gone_on_with(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in {**TINY, "epochs": 1}.items() if key != "resize"]
    arguments = ["train", trained / "photos", "--folds", 2, "--out", tmp_path / "cv", *flags]
    code, out, _ = command(capfd, *arguments, "--json")
    whole = json.loads(out)
    assert code == 0
    shutil.rmtree(tmp_path / "cv" / "fold-2")
    assert "--resume" in lines_of_a_mistake(capfd, *arguments)
    code, out, _ = command(capfd, *arguments, "--resume", "--json")
    assert code == 0
    assert json.loads(out)["folds"] == whole["folds"]


def test_optimize_and_what_comes_of_it(trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = shutil.copytree(trained / "run", tmp_path / "run")
    code, before, _ = command(capfd, "evaluate", run, trained / "test", "--json")
    code, out, err = command(capfd, "optimize", run, "--precision", "fp32", "--minutes", 0.02, "--json")
    told = json.loads(out)
    assert code == 0
    assert told["engine"] == "OpenVINO fp32"
    assert told["images_a_second"] >= told["plain_images_a_second"] > 0
    assert "Comparing" in err
    code, after, err = command(capfd, "evaluate", run, trained / "test", "--json")
    assert "Optimised engine: OpenVINO fp32" in err
    assert json.loads(after)["top1"] == json.loads(before)["top1"]
    assert json.loads(after)["loss"] == pytest.approx(json.loads(before)["loss"], rel=1e-4)
    code, _, err = command(capfd, "evaluate", run, trained / "test", "--engine", "torch", "--json")
    assert code == 0
    assert "Optimised" not in err
    code, out, err = command(capfd, "optimize", run, "--precision", "fp32")
    assert code == 0
    assert "img/s" in out
    assert "× the plain engine" in err
    code, out, _ = command(capfd, "verify", run, "--json")
    assert (code, json.loads(out)["problems"]) == (0, [])


def test_int8_without_proof_is_accepted_and_stdout_is_json_alone(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """In a process of its own: what NNCF prints must not get in between either."""
    run = shutil.copytree(trained / "run", tmp_path / "run")
    words = ["optimize", run, "--precision", "int8", "--unproved", "--minutes", "0.02", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "resnext", *map(str, words)], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["unproved"] is True
    code, out, err = command(capfd, "predict", run, trained / "test" / "red" / "0.png", "--json")
    assert (code, json.loads(out)["label"]) == (0, "red")
    assert "unproved" in err


def test_benchmark_writes_what_it_prints(trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    flags = ["--against", "eager,openvino", "--precision", "fp32", "--batch", 2, "--rounds", 2]
    short = ["--seconds", 0.05, "--minutes", 0.02, "--out", tmp_path / "out"]
    code, out, _ = command(capfd, "benchmark", trained / "run", *flags, *short, "--json")
    told = json.loads(out)
    assert code == 0
    assert told == json.loads((tmp_path / "out" / "benchmark.json").read_text())
    rows = {row["name"]: row for row in told["contenders"]}
    assert set(rows) == {
        "resnext fp32",
        "torch eager fp32 NCHW",
        "torch eager fp32 channels_last",
        "OpenVINO fp32",
    }
    assert all(row["failure"] is None and row["same_function"] and row["agreement"] == 1 for row in rows.values())
    for row in rows.values():
        speeds = row["images_a_second"]
        assert len(speeds["rounds"]) == 2
        assert 0 < speeds["min"] <= speeds["median"] <= speeds["max"]
        assert row["peak_memory_mib"] > 20
        assert row["milliseconds"]["p50"] <= row["milliseconds"]["p95"]
    ours, peer = rows["resnext fp32"], rows["OpenVINO fp32"]
    assert peer["ours_is"] == pytest.approx(ours["images_a_second"]["median"] / peer["images_a_second"]["median"])
    with Image.open(tmp_path / "out" / "benchmark.png") as chart:
        assert min(chart.size) > 200


def test_class_names_are_not_markup(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = write_colours(tmp_path / "photos", 8)
    (data / "red").rename(data / "red [bold]")
    train(data, out=tmp_path / "run", **{**TINY, "epochs": 1})
    code, out, _ = command(capfd, "evaluate", tmp_path / "run", data)
    assert code == 0
    assert "red [bold]" in out


def test_a_bundle_is_found_from_inside(
    trained: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained / "run" / "model")
    code, out, _ = command(capfd, "predict", ".", trained / "test" / "red" / "0.png", "--json")
    assert code == 0
    assert json.loads(out)["label"] in ("blue", "green", "red")


def test_output_into_a_closed_pipe_is_no_error(trained: Path) -> None:
    code = f"{sys.executable} -m resnext networks | true"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.returncode in (0, 128 + 13)


def test_a_closed_stdout_is_no_fault(trained: Path) -> None:
    code = f"{sys.executable} -m resnext networks >&-"
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
