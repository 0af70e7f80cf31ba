"""A race: everybody prepares, is checked against the reference, and takes turns; who fails is out, with the reason."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resnext.benchmarking import race
from resnext.benchmarking.children import Child, Failed
from resnext.benchmarking.contenders import Contender
from resnext.benchmarking.place import REFERENCE, Place
from resnext.benchmarking.race import Plan

REFERENCE_LOGITS = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)


class Stage:
    """Stands in for the contenders' processes, and writes down who was asked what, in order."""

    def __init__(self, failing: dict[str, str], wrong: str) -> None:
        self.failing, self.wrong = failing, wrong
        self.asked: list[tuple[str, str]] = []
        self.running: list[str] = []

    def child(self, log: Path, threads: int) -> StagedChild:
        return StagedChild(self, log)


class StagedChild:
    patience = 1.0

    def __init__(self, stage: Stage, log: Path) -> None:
        self.stage, self.log, self.name = stage, log, log.stem.removesuffix("-preparing")

    def __enter__(self) -> StagedChild:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def end(self) -> None:
        if self.name in self.stage.running:
            self.stage.running.remove(self.name)

    def ask(self, do: str, **given: Any) -> Any:
        self.stage.asked.append((do, self.name))
        if self.stage.failing.get(self.name) == do:
            raise Failed(f"{do} went wrong")
        if do == "subject":
            np.save(Path(given["folder"]) / REFERENCE, REFERENCE_LOGITS)
            return {"bundle": given["folder"], "network": "toy", "image_size": 8, "notes": ["from the subject"]}
        if do == "start":
            self.stage.running.append(self.name)
            np.save(given["logits"], REFERENCE_LOGITS[::-1] if self.name == self.stage.wrong else REFERENCE_LOGITS)
        answers = {"prepare": {"settings": {"batch": 1}, "tried": []}, "stream": 10.0, "single": [1.0], "memory": 5.0}
        return answers.get(do)


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Any:
    def build(failing: dict[str, str] | None = None, wrong: str = "") -> Stage:
        made = Stage(failing or {}, wrong)
        monkeypatch.setattr(race, "Child", made.child)
        monkeypatch.setattr(race, "PAUSE", 0.0)
        return made

    return build


PLAN = Plan("toy", against=("eager", "openvino"), precisions=("fp32",), rounds=3)
NAMES = ["ours-fp32", "eager-fp32-NCHW", "eager-fp32-channels_last", "openvino-fp32"]


def test_everybody_takes_turns_and_every_other_round_is_turned_round(stage: Any) -> None:
    made = stage()
    done = race.run(PLAN)
    assert [one.contender.key for one in done.figures] == NAMES
    streams = [name for do, name in made.asked if do == "stream"]
    assert streams == NAMES + NAMES[::-1] + NAMES
    first_timed = next(place for place, (do, _) in enumerate(made.asked) if do == "stream")
    assert all(do not in ("prepare", "start") for do, _ in made.asked[first_timed:]), "nobody prepares meanwhile"
    assert all(one.rates == (10.0, 10.0, 10.0) and one.latencies == (1.0,) * 3 for one in done.figures)
    assert all(one.same_function and one.memory_mib == 5.0 for one in done.figures)
    assert not made.running, "all processes are ended"


@pytest.mark.parametrize("moment", ["prepare", "start", "stream", "single", "memory"])
def test_who_fails_is_out_and_the_others_go_on(stage: Any, moment: str) -> None:
    made = stage({"eager-fp32-NCHW": moment})
    done = race.run(PLAN)
    failed = {one.contender.key: one.failure for one in done.figures if one.failure}
    assert failed == {"eager-fp32-NCHW": f"{moment} went wrong"}
    assert all(len(one.rates) == 3 for one in done.figures if not one.failure)
    assert not made.running


def test_who_computes_something_else_is_found_out(stage: Any) -> None:
    stage(wrong="openvino-fp32")
    wrong = [one.contender.key for one in race.run(PLAN).figures if not one.same_function]
    assert wrong == ["openvino-fp32"]


def test_bfloat16_is_left_out_where_there_is_none(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race.stored, "read", lambda bundle: None)
    monkeypatch.setattr(Place, "open", lambda place: None)
    for has in (True, False):
        stage()
        monkeypatch.setattr(race.machine, "has_fast_bfloat16", lambda has=has: has)
        done = race.run(Plan("toy", against=("openvino",), rounds=1))
        assert ("bf16" in {one.contender.precision for one in done.figures}) is has
        assert (race.WITHOUT_BFLOAT16 in done.notes) is not has
        assert done.notes[0] == "from the subject"


def test_a_process_that_dies_says_how(tmp_path: Path) -> None:
    with Child(tmp_path / "log", 1) as child:
        child.process.kill()
        child.process.wait()
        with pytest.raises(Failed, match="SIGKILL"):
            child.ask("memory")
    with Child(tmp_path / "log", 1) as child:
        assert child.ask("memory") > 10
        with pytest.raises(Failed, match="nothing"):
            child.ask(
                "subject", what="nothing", folder=str(tmp_path), image_size=None, calibration=None, images=8, seed=0
            )
        assert child.ask("memory") > 10, "one mistake does not end it"
    assert child.process.poll() is not None


def test_a_process_whose_leader_is_gone_ends_in_the_middle_of_its_work() -> None:
    """A benchmark may be killed while a contender is tuned for minutes."""
    program = "import time\nfrom resnext.benchmarking import worker\nnext(worker.asked())\nprint()\ntime.sleep(60)"
    with subprocess.Popen([sys.executable, "-uc", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"{}\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"\n", "it is at work"
        assert process.poll() is None
        process.stdin.close()
        try:
            assert process.wait(timeout=20) == 0
        finally:
            process.kill()


def test_contenders_go_there_and_back_as_json() -> None:
    one = Contender("eager", "bf16", "channels_last")
    assert Contender(**one.to_dict()) == one
    place = Place("a", "b", (1, 4), 2, 0.5, 1.0)
    assert Place.from_dict(place.to_dict()) == place
