"""The study of time to accuracy: its clock over pieces, its plan and choice, its report, and the driver itself."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from making import write_colours

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
DRIVER = BENCHMARKS / "time_to_accuracy.py"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of the study's state, importable as the benchmark itself imports it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import accuracy_study

    return accuracy_study


def study_of(modules: Any, place: Path, seeds: int = 3, settings: tuple[str, ...] = ("10x0.1", "20x0.1")) -> Any:
    study = modules.Study(place)
    study.begin(modules.Plan("net", {"width": 32}, settings, seeds, (0.84, 0.88, 0.9), 60.0))
    study.tell({"event": "machine", "key": "here", "processor": "P", "cores": 2, "memory_gib": 8, "bf16": True})
    return study


def told(study: Any, run: Any, *events: dict[str, Any]) -> None:
    """Append to a run's own journal."""
    journal = study.place / run.name / "journal.jsonl"
    journal.parent.mkdir(parents=True, exist_ok=True)
    with journal.open("a") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)


def epoch(number: int, top1: float, at: float) -> dict[str, Any]:
    return {"event": "epoch", "epoch": number, "top1": top1, "time": at}


def ran(study: Any, run: Any, epochs: list[tuple[float, float]], why: str = "finished") -> None:
    """Record a whole run of (minutes, top-1), with a place for its weights."""
    (study.place / run.name).mkdir(parents=True, exist_ok=True)
    study.tell({"event": "piece", "run": run.name, "started": 0.0, "commit": "abc"})
    for number, (minutes, top1) in enumerate(epochs):
        study.tell({"event": "epoch", "run": run.name, "epoch": number, "seconds": 60 * minutes, "top1": top1})
    study.tell({"event": "ended", "run": run.name, "why": why})


def test_the_clock_starts_with_the_process_and_stands_still_between_pieces(modules: Any, tmp_path: Path) -> None:
    study = study_of(modules, tmp_path)
    run = modules.Run("here", "ours", modules.Setting(10, 0.1), 0)
    study.tell({"event": "piece", "run": run.name, "started": 1000.0, "commit": "abc"})
    told(
        study,
        run,
        {"event": "start", "at_step": 0, "time": 1008.0},
        {"event": "checkpoint", "at_step": 0, "time": 1009.0},
    )
    told(study, run, epoch(0, 0.5, 1070.0), {"event": "checkpoint", "at_step": 351, "time": 1071.0})
    told(study, run, epoch(1, 0.6, 1130.0))  # killed before this was saved
    for _ in range(3):
        assert not study.take_in(run)
    assert study.record(run).epochs == {0: (70.0, 0.5), 1: (130.0, 0.6)}
    assert study.seconds_kept(run) == 71.0
    study = modules.Study(tmp_path)  # the next day; it goes on from step 351
    study.tell({"event": "piece", "run": run.name, "started": 90_000.0, "commit": "abc"})
    told(study, run, {"event": "resume", "at_step": 351, "time": 90_010.0}, epoch(1, 0.6, 90_070.0))
    for _ in range(3):
        assert not study.take_in(run)
    assert study.record(run).epochs == {0: (70.0, 0.5), 1: (141.0, 0.6)}  # 71 + 70, the new start counted
    told(study, run, {"event": "checkpoint", "at_step": 702, "time": 90_071.0}, {"event": "end", "time": 90_072.0})
    assert study.take_in(run)
    assert modules.Study(tmp_path).record(run) == study.record(run)
    lines = (tmp_path / "study.jsonl").read_text().splitlines()
    assert len(lines) == len(set(lines))  # nothing was recorded twice


def test_going_on_from_an_older_checkpoint_takes_back_what_came_after_it(modules: Any, tmp_path: Path) -> None:
    study = study_of(modules, tmp_path)
    run = modules.Run("here", "ours", modules.Setting(10, 0.1), 0)
    study.tell({"event": "piece", "run": run.name, "started": 0.0, "commit": "abc"})
    told(study, run, {"event": "start", "at_step": 0, "time": 5.0}, {"event": "checkpoint", "at_step": 0, "time": 6.0})
    told(study, run, epoch(0, 0.5, 70.0), {"event": "checkpoint", "at_step": 9, "time": 71.0})
    study.take_in(run)
    study.tell({"event": "piece", "run": run.name, "started": 500.0, "commit": "abc"})
    told(
        study,
        run,
        {"event": "resume", "at_step": 0, "time": 505.0},
        {"event": "checkpoint", "at_step": 0, "time": 507.0},
    )
    for _ in range(3):
        study.take_in(run)
    assert study.record(run).epochs == {}
    assert study.record(run).saved == {0: 13.0}  # 6 + 7, however often it is read


def test_a_line_that_a_kill_cut_short_is_left_out_and_the_next_stands_alone(modules: Any, tmp_path: Path) -> None:
    study = study_of(modules, tmp_path)
    with (tmp_path / "study.jsonl").open("a") as file:
        file.write('{"event": "ended", "run": "runs/he')
    again = modules.Study(tmp_path)
    run = modules.Run("here", "timm", modules.Setting(10, 0.1), 0)
    again.tell({"event": "ended", "run": run.name, "why": "finished"})
    assert modules.Study(tmp_path).record(run).ended == "finished"
    with pytest.raises(ValueError, match="another plan"):
        again.begin(modules.Plan("net", {}, ("1x1",), 1, (0.5,), 60.0))
    assert again.plan == study.plan


def test_both_sides_of_a_setting_follow_each_other_and_machines_are_kept_apart(modules: Any, tmp_path: Path) -> None:
    study = study_of(modules, tmp_path)
    order = []
    while run := study.next_run("here"):
        order.append((run.side, str(run.setting), run.seed))
        # Ours reaches 0.88 sooner with 10 epochs, the peer only with 20, and 0.9 not in time.
        slow = run.setting.epochs == 20
        best = {"ours": 0.91 if slow else 0.89, "timm": 0.89 if slow else 0.87}[run.side]
        ran(study, run, [(run.setting.epochs, best), (61.0, 0.95)])
        assert study.next_run("elsewhere").place == "elsewhere"
    assert order == [
        ("ours", "10x0.1", 0),
        ("timm", "10x0.1", 0),
        ("timm", "20x0.1", 0),
        ("ours", "20x0.1", 0),
        ("ours", "10x0.1", 1),
        ("timm", "20x0.1", 1),
        ("timm", "20x0.1", 2),
        ("ours", "10x0.1", 2),
    ]
    chosen, threshold = study.choice("here")
    assert {side: str(setting) for side, setting in chosen.items()} == {"ours": "10x0.1", "timm": "20x0.1"}
    assert threshold == 0.88
    assert study.choice("elsewhere") is None


def test_every_run_that_ended_is_tested_once_and_only_judged_ones_are_told(modules: Any, tmp_path: Path) -> None:
    from accuracy_report import report

    study = study_of(modules, tmp_path, seeds=1)
    tests = {"10x0.1": 0.87, "20x0.1": 0.99}  # the one that is better on test is not the one that is chosen
    while run := study.next_run("here"):
        assert study.next_test("here") is None
        ran(study, run, [(run.setting.epochs, 0.88)])
        assert study.next_test("elsewhere") is None
        assert study.next_test("here") == run
        moved = (tmp_path / run.name).rename(tmp_path / "elsewhere")
        assert study.next_test("here") is None
        moved.rename(tmp_path / run.name)
        study.tell({"event": "test", "run": run.name, "top1": tests[str(run.setting)], "images": 10_000})
    assert "| ours | 0.8700 (0.8700 to 0.8700) | 1 | 10,000 |" in report(study)
    assert "0.99" not in report(study)


def test_where_the_peer_reaches_no_threshold_the_best_top_1_chooses(modules: Any, tmp_path: Path) -> None:
    study = study_of(modules, tmp_path)
    for side in ("ours", "timm"):
        for epochs, best in ((10, 0.7), (20, 0.8)):
            ran(study, modules.Run("here", side, modules.Setting(epochs, 0.1), 0), [(5.0, best)], "limit")
    chosen, threshold = study.choice("here")
    assert threshold is None
    assert {str(setting) for setting in chosen.values()} == {"20x0.1"}


def test_the_report_gives_medians_ratios_and_what_is_missing(modules: Any, tmp_path: Path) -> None:
    from accuracy_report import report

    study = study_of(modules, tmp_path, settings=("10x0.1",))
    minutes = {"ours": (10.0, 12.0, 11.0), "timm": (20.0, 30.0, 22.0)}
    setting = modules.Setting(10, 0.1)
    for side in ("ours", "timm"):
        late = [(40.0, 0.9)] if side == "timm" else []
        ran(study, modules.Run("here", side, setting, 0), [(5.0, 0.85), (minutes[side][0], 0.88), *late])
    early = report(study)
    assert "Missing: ours 10x0.1 seed 1, ours 10x0.1 seed 2, timm 10x0.1 seed 1, timm 10x0.1 seed 2, the test" in early
    for side in ("ours", "timm"):
        for seed in (1, 2):
            top1 = 0.9 if (side, seed) == ("ours", 1) else 0.89
            late = [(40.0, 0.9)] if side == "timm" else []
            ran(study, modules.Run("here", side, setting, seed), [(minutes[side][seed], top1), *late])
    lines = report(study).splitlines()
    assert "| 88% | 11.0 (10.0 to 12.0; 3 seeds) | 22.0 (20.0 to 30.0; 3 seeds) | 0.50 |" in lines
    assert "| 84% | 11.0 (5.0 to 12.0; 3 seeds) | 22.0 (5.0 to 30.0; 3 seeds) | 0.50 |" in lines
    assert "| 90% | 12.0 (12.0 to 12.0; only 1 of 3 seeds) | 40.0 (40.0 to 40.0; 3 seeds) | – |" in lines
    assert "## P, 2 cores (bf16), 8 GiB" in lines


def flags(state: Path, epochs: int) -> list[str]:
    tiny = [
        "--network=cifar_resnet8",
        "--options={}",
        "--seeds=1",
        "--thresholds",
        "0.3",
        "--settings",
        f"{epochs}x0.05",
    ]
    return [sys.executable, str(DRIVER), f"--state={state}", *tiny]


def events(state: Path) -> list[dict[str, Any]]:
    file = state / "study.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture
def colours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for split, count in (("train", 30), ("test", 4)):
        write_colours(tmp_path / "cifar" / split, count, size=32, seed=len(split), suffix="jpg")
    monkeypatch.setenv("RESNEXT_CIFAR10", str(tmp_path / "cifar"))
    return tmp_path


def test_the_driver_trains_one_side_and_tells_what_is_missing(colours: Path) -> None:
    state = colours / "state"
    done = subprocess.run([*flags(state, 1), "--only=ours"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Missing: timm 1x0.05 seed 0" in done.stdout
    told = {event["event"]: event for event in events(state)}
    assert told["ended"]["why"] == "finished"
    assert 1 < told["epoch"]["seconds"] < 120
    with (state / "split.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [sum(row["split"] == split for row in rows) for split in ("train", "val")] == [81, 9]
    for file in (state / "study.jsonl", state / "split.csv"):
        assert str(colours) not in file.read_text()  # the study can be copied elsewhere
    again = subprocess.run([*flags(state, 2), "--only=ours"], capture_output=True, text=True, timeout=120)
    assert again.returncode == 1
    assert "another plan" in again.stderr


@pytest.mark.slow
def test_both_sides_go_on_elsewhere_after_the_driver_was_killed(colours: Path) -> None:
    pytest.importorskip("timm")
    states = [colours / name for name in ("first", "second", "third")]
    for number, side in enumerate(("ours", "timm")):
        driver = subprocess.Popen(flags(states[number], 4), stdout=subprocess.DEVNULL)
        while sum(event["event"] == "epoch" and event["side"] == side for event in events(states[number])) < 2:
            assert driver.poll() is None
            time.sleep(0.2)
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        time.sleep(6)  # what the killed processes started ends by itself
        states[number].rename(states[number + 1])
    done = subprocess.run(flags(states[2], 4), capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert "Missing" not in done.stdout
    told = events(states[2])
    for side in ("ours", "timm"):
        epochs = {
            event["epoch"]: event["seconds"] for event in told if event["event"] == "epoch" and event["side"] == side
        }
        assert sorted(epochs) == [0, 1, 2, 3]
        assert sorted(epochs.values()) == [epochs[number] for number in range(4)]
        resumed = [e["at_step"] for e in told if e["event"] == "resumed" and e["side"] == side]
        assert len(resumed) == 2
        assert resumed[0] == 0 < resumed[1]
    assert sum(event["event"] == "test" for event in told) == 2
