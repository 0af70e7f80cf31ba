"""A study: what is due, killed and gone on with, edited, refused; and its report."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from browser import PHONE, browsing, visit
from making import write_colours
from resnext.bundle import Bundle
from resnext.cli import run
from resnext.design import beginning, outcomes, report, words
from resnext.design.beginning import Question
from resnext.design.outcomes import Result
from resnext.design.study import OUTCOME, TUNING_SEED, Candidate, Plan, Study, Trial, write_plan
from resnext.errors import UserError
from resnext.training import owner

RECIPE = """
epochs = 2
batch_size = 8
[data]
image_size = 16
resize = 16
cache_gib = 0.1
[optimizer]
learning_rate = 0.05
[machine]
workers = 1
form = "plain"
"""
NETWORKS = "cifar_resnet8,cifar_plain8"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_colours(folder / "train", 20)
    write_colours(folder / "test", 10, seed=1)
    return folder


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    file.write_text(RECIPE)
    return file


def begun(data: Path, recipe: Path, place: Path, **asked: Any) -> Study:
    candidates = beginning.named(NETWORKS.split(","))
    return beginning.begin(str(data), place, candidates, Question(**{"seeds": 2, **asked}), recipe=str(recipe))


def command(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "resnext", "compare", *arguments]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(line, **pipes, **options)


@pytest.fixture(scope="module")
def whole(data: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that ran to its end undisturbed."""
    place = tmp_path_factory.mktemp("whole") / "study"
    process = command(
        *(str(data), "--networks", NETWORKS, "--seeds", "2", "--recipe", str(recipe), "--out", str(place)),
        "--training-error",
    )
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 0, out
    return place


def facts(place: Path) -> list[dict[str, Any]]:
    """What trials came to, without times and memory."""
    rows = pq.read_table(place / "results.parquet").to_pylist()
    study = Study.open(place)
    identities = {trial.name: Bundle.open(study.place_of(trial)).identity for trial in study.counted()}
    timed = ("step_seconds", "seconds", "peak_memory_mib")
    return [{"identities": identities}, *({key: row[key] for key in row if key not in timed} for row in rows)]


def test_a_study_answers(whole: Path) -> None:
    told = facts(whole)
    assert [(row["candidate"], row["seed"]) for row in told[1:]] == [
        ("cifar_resnet8", 0),
        ("cifar_plain8", 0),
        ("cifar_resnet8", 1),
        ("cifar_plain8", 1),
    ]
    assert len({tuple(row["losses"]) for row in told[1:]}) == 4
    assert all(0 <= row["training_error"] <= 1 and len(row["losses"]) == 2 for row in told[1:])
    page = (whole / "index.html").read_text()
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", page)
    assert page.count("<svg") == 3
    assert "4 of 4 trials done" in page
    assert "too few for a test" in page or "the same with every seed" in page
    assert "| cifar_resnet8 (reference) |" in (whole / "results.md").read_text()


def test_the_page_can_be_read_anywhere_and_asks_for_nothing(whole: Path) -> None:
    with browsing() as browser:
        for width in (1200, PHONE):
            seen = visit(browser, whole / "index.html", width=width)
            assert (seen.errors, seen.overflow) == ([], 0)
            assert seen.requests == [(whole / "index.html").resolve().as_uri()]


def test_all_trials_share_one_cut_and_one_recipe(whole: Path) -> None:
    study = Study.open(whole)
    cuts, recipes = set(), set()
    for trial in study.counted():
        cuts.add((study.place_of(trial) / "manifest.parquet").read_bytes())
        text = (study.place_of(trial) / "recipe.toml").read_text()
        recipes.add(re.sub(r'(?m)^(network = ".*"|seed = \d+)$', "", text))
    assert len(cuts) == len(recipes) == 1


def test_a_study_that_is_killed_goes_on_to_the_same_results(
    whole: Path, data: Path, recipe: Path, tmp_path: Path
) -> None:
    place = tmp_path / "study"
    study = begun(data, recipe, place, training_error=True)
    moments, kills = random.Random(5), 0
    for _ in range(10):
        process = command("--resume", "--out", str(place))
        try:
            process.communicate(timeout=moments.uniform(0.5, 9))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
        else:
            break
    assert kills >= 3
    process = command("--resume", "--out", str(place))
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 0, out
    assert study.due() == []
    assert facts(place) == facts(whole)


def test_a_study_that_is_asked_to_stop_saves_and_says_how_it_goes_on(data: Path, recipe: Path, tmp_path: Path) -> None:
    place = tmp_path / "study"
    study = begun(data, recipe, place)
    process = command("--resume", "--out", str(place), start_new_session=True)
    first = study.place_of(study.due()[0])
    deadline = time.monotonic() + 60
    while not (first / "journal.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130, out
    assert "go on with --resume" in out
    owner.refuse_owned(place)
    owner.refuse_owned(first)  # raises while a process still trains there


def test_a_plan_says_what_it_was_made_of(data: Path, recipe: Path, tmp_path: Path) -> None:
    study = begun(data, recipe, tmp_path / "study", measure=None, rates=(0.1, 0.2), halving=True)
    assert Study.open(study.place) == study
    assert study.plan.measure == "test"
    assert study.plan.recipe["optimizer"]["learning_rate"] == 0.05
    assert not {"network", "seed", "options"} & study.plan.recipe.keys()


def test_a_plan_may_be_edited(data: Path, recipe: Path, tmp_path: Path) -> None:
    study = begun(data, recipe, tmp_path / "study")
    file = study.place / "study.toml"
    file.write_text(
        file.read_text() + '\n[candidates.wide]\nnetwork = "cifar_resnet8"\nseeds = [5]\noptions.width = 8\n'
    )
    edited = Study.open(study.place)
    assert [trial.name for trial in edited.due()][:3] == [
        "cifar_resnet8-seed0",
        "cifar_plain8-seed0",
        "wide-seed5",
    ]
    assert edited.recipe_of(Trial("wide", 5, 2, 0.05))["options"] == {"width": 8}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("reference = ", 'reference = "x" #'), "The reference 'x' is no candidate"),
        (("seeds = [0, 1]", "seeds = [1, 1]"), "different whole numbers"),
        (("seeds = [0, 1]", f"seeds = [{TUNING_SEED}]"), "different whole numbers"),
        (("measure = ", 'measure = "x" #'), "test or validation"),
        (("halving = ", "halfing = "), "unknown key 'halfing'. Did you mean 'halving'"),
        (("data = ", "data = ["), "is no plan of a study"),
        (('"cifar_plain8"', '"cifar_plain9"'), "There is no 'cifar_plain9'"),
    ],
)
def test_a_plan_that_means_nothing_is_refused(
    data: Path, recipe: Path, tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    study = begun(data, recipe, tmp_path / "study")
    file = study.place / "study.toml"
    text = file.read_text()
    assert change[0] in text
    file.write_text(text.replace(*change, 1))
    with pytest.raises(UserError, match=re.escape(message)) as refused:
        Study.open(study.place)
    assert len(str(refused.value).splitlines()) <= 3


def test_what_no_candidate_can_do_is_refused_before_anything_is_written(
    data: Path, recipe: Path, tmp_path: Path
) -> None:
    candidates = beginning.named(["cifar_resnet8", "resnet50"])
    candidates["resnet50"] = Candidate("resnet50", {"nothing": 1})
    with pytest.raises(UserError, match=r"resnet50: .*no option 'nothing'"):
        beginning.begin(str(data), tmp_path / "study", candidates, Question(), recipe=str(recipe))
    assert not (tmp_path / "study").exists()
    begun(data, recipe, tmp_path / "study")
    with pytest.raises(UserError, match="holds a study: go on with --resume"):
        begun(data, recipe, tmp_path / "study")


def pretend(study: Study, trial: Trial, validation: float) -> None:
    study.place_of(trial).mkdir(parents=True)
    (study.place_of(trial) / OUTCOME).write_text(json.dumps({"validation": validation}))


def test_rates_are_chosen_on_validation_before_seeds_are_trained(data: Path, recipe: Path, tmp_path: Path) -> None:
    study = begun(data, recipe, tmp_path / "study", rates=(0.1, 0.4))
    assert {trial.seed for trial in study.due()} == {TUNING_SEED}
    assert study.counted() == []
    best = {"cifar_resnet8": 0.4, "cifar_plain8": 0.1}
    for trial in study.due():
        pretend(study, trial, 0.9 if trial.learning_rate == best[trial.candidate] else 0.8)
    assert {(trial.candidate, trial.learning_rate) for trial in study.due()} == set(best.items())
    assert {trial.seed for trial in study.counted()} == {0, 1}


def test_halving_leaves_the_worse_half_out_and_keeps_the_reference(tmp_path: Path) -> None:
    names = ["cifar_resnet8", "cifar_plain8", "cifar_resnet14", "cifar_resnet20"]
    plan = Plan(
        data="nowhere",
        reference="cifar_resnet8",
        candidates={name: Candidate(name) for name in names},
        seeds=(0,),
        recipe={"epochs": 8, "optimizer": {"learning_rate": 0.1}},
        halving=True,
    )
    write_plan(tmp_path, plan)
    study = Study.open(tmp_path)
    scores = dict(zip(names, (0.1, 0.4, 0.3, 0.2), strict=True))
    assert [(trial.candidate, trial.epochs) for trial in study.due()] == [(name, 2) for name in names]
    for trial in study.due():
        pretend(study, trial, scores[trial.candidate])
    assert [(trial.candidate, trial.epochs) for trial in study.due()] == [
        ("cifar_resnet8", 4),
        ("cifar_plain8", 4),
        ("cifar_resnet14", 4),
    ]
    for trial in study.due():
        pretend(study, trial, scores[trial.candidate])
    assert [(trial.candidate, trial.epochs, trial.kind) for trial in study.due()] == [
        ("cifar_resnet8", 8, "seed"),
        ("cifar_plain8", 8, "seed"),
        ("cifar_resnet14", 8, "seed"),
    ]
    assert any("halving" in line for line in words.question(plan))


def result(candidate: str, seed: int, top1: float) -> Result:
    return Result(candidate, seed, 0.1, top1, top1, None, 1.0, 0.001, 60.0, 500.0, (2.0, 1.0), (0.5, top1))


def said(study: Study, reference: list[float], other: list[float]) -> str:
    found = [result("cifar_resnet8", seed, top1) for seed, top1 in enumerate(reference)]
    found += [result("cifar_plain8", seed, top1) for seed, top1 in enumerate(other)]
    return " ".join(words.verdicts(study.plan, outcomes.summaries(study, found)))


def test_words_say_what_the_data_support_and_no_more(data: Path, recipe: Path, tmp_path: Path) -> None:
    study = begun(data, recipe, tmp_path / "study", seeds=6)
    base = [0.80, 0.81, 0.79, 0.80, 0.82, 0.80]
    better = [each + gap for each, gap in zip(base, (0.02, 0.03, 0.025, 0.02, 0.03, 0.022), strict=True)]
    alike = [each + gap for each, gap in zip(base, (0.02, -0.02, 0.01, -0.01, 0.005, -0.004), strict=True)]
    assert "the data support that it is better here (p < 0.001 by the paired t-test, = 0.031 by sign flips)" in said(
        study, base, better
    )
    assert "the data support that it is worse here" in said(study, better, base)
    assert "the data do not tell the two apart" in said(study, base, alike)
    few = said(study, base[:3], better[:3])
    assert "too few for a test" in few
    assert "support" not in few
    assert "2/2ⁿ at the least, here 0.25" in few
    assert "with one seed: nothing follows" in said(study, base[:1], better[:1])
    assert "the same with every seed" in said(study, base[:2], base[:2])


def test_a_page_escapes_what_users_name(data: Path, recipe: Path, tmp_path: Path) -> None:
    study = begun(data, recipe, tmp_path / "study")
    named = Study(study.place, Plan(**{**vars(study.plan), "data": "<script>alert(1)</script>"}))
    found = [result(name, seed, 0.8) for name in ("cifar_resnet8", "cifar_plain8") for seed in (0, 1)]
    page = report.page(named, found, outcomes.summaries(named, found))
    assert "<script>" not in page


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--networks", "cifar_resnet8,cifar_plain8"], "There is no DATA"),
        (["DATA"], "Who is compared?"),
        (["DATA", "--networks", "cifar_resnet8", "--like", "resnet50"], "Not both"),
        (["DATA", "--networks", "cifar_resnet8"], "One candidate is no comparison"),
        (["DATA", "--networks", NETWORKS, "--learning-rates", "a"], "is no list of numbers"),
        (["--resume", "--out", "nowhere"], "holds no study"),
        (["DATA", "--resume", "--out", "nowhere"], "--resume follows the plan"),
    ],
)
def test_mistakes_are_told(
    line: list[str], message: str, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["compare", *(str(data) if word == "DATA" else word for word in line)]) == 2
    err = capfd.readouterr().err
    assert message in err
    assert len(err.strip().splitlines()) <= 3


def test_a_trial_that_fails_is_named_with_what_it_said(
    data: Path, recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    study = begun(data, recipe, tmp_path / "study")
    file = study.place / "study.toml"
    file.write_text(file.read_text().replace("image_size = 16", "image_size = 1"))
    assert run(["compare", "--resume", "--out", str(study.place)]) == 2
    err = capfd.readouterr().err
    assert "cifar_resnet8-seed0" in err
    assert "Traceback" not in err
