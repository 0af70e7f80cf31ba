"""`resnext check` as a user runs it: a report on stdout, progress on stderr, 2 where there are errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from making import picture
from resnext.cli import run


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number, name in enumerate(("cat", "dog [bold]")):
        for i in range(20):
            place = tmp_path / "photos" / name / f"{i}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            picture(100 * number + i).save(place)
    return tmp_path / "photos"


def command(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = run(["check", *(str(argument) for argument in arguments)])
    captured = capfd.readouterr()
    return code, captured.out, captured.err


def test_a_healthy_set_gets_a_table_and_exit_code_0(photos: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = command(capfd, photos)
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert ["cat", "20"] in lines
    assert ["dog", "[bold]", "20"] in lines  # no markup
    assert ["all", "40"] in lines
    assert "width  48 to 48 pixels, median 48" in out
    assert "40 PNG RGB" in out
    assert out.endswith("Nothing is wrong.\n")


def test_errors_are_told_with_reason_and_remedy_and_exit_with_2(
    photos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for i in range(7):
        (photos / f"cat/{i}.png").write_bytes(b"")
    (photos / "cat/notes.txt").touch()
    code, out, _ = command(capfd, photos, "--examples", 3)
    assert code == 2
    assert "error  7 of 40 files cannot be read as an image (17.50%)." in out
    assert "→ Replace them" in out
    assert "cat/2.png: the file is empty" in out
    assert "cat/3.png" not in out
    assert "… 4 more with --json" in out
    assert out.index("error  ") < out.index("warning  ") < out.index("note  ")
    assert out.endswith("1 error, 1 warning, 1 note.\n")


def test_json_is_alone_on_stdout_and_has_everything(photos: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(photos, photos.parent / "sets/train")
    shutil.copytree(photos, photos.parent / "sets/test")
    code, out, _ = command(capfd, photos.parent / "sets", "--json")
    told = json.loads(out)
    assert code == 2
    assert (told["errors"], told["splits"]) == (1, {"train": 40, "test": 40})
    finding = told["findings"][0]
    assert (finding["code"], finding["severity"], finding["count"]) == ("leak-exact-test", "error", 40)
    assert sorted(map(sorted, finding["sets"])) == sorted(
        [f"test/{name}/{i}.png", f"train/{name}/{i}.png"] for name in ("cat", "dog [bold]") for i in range(20)
    )
