"""The data doctor on small sets with planted faults: each is named, and nothing else is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from making import picture
from resnext.data import fingerprints
from resnext.data.check import Report, brief, check
from resnext.data.manifest import scan
from resnext.errors import ImageError, UserError


def write(path: Path, seed: int, size: tuple[int, int] = (48, 40), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed, size).convert(mode).save(path)
    return path


def healthy(root: Path, *splits: str, count: int = 20) -> Path:
    """Images that all differ, of two classes in each split."""
    seed = 0
    for split in splits or ("",):
        for name in ("cat", "dog"):
            for number in range(count):
                seed += 1
                write(root / split / name / f"{number}.png", seed)
    return root


def codes(report: Report) -> dict[str, str]:
    return {finding.code: finding.severity for finding in report.findings}


def named(report: Report, code: str) -> list[list[str]]:
    return [sorted(paths) for finding in report.findings if finding.code == code for paths in finding.examples]


def test_nothing_is_found_in_a_healthy_set_and_everything_is_counted(tmp_path: Path) -> None:
    report = check(healthy(tmp_path, "train", "val", "test"))
    assert report.findings == ()
    assert report.splits == {"train": 40, "val": 40, "test": 40}
    assert report.classes == {name: {"train": 20, "val": 20, "test": 20} for name in ("cat", "dog")}
    assert report.sizes == {"width": (48, 48, 48), "height": (40, 40, 40)}
    assert report.kinds == {"PNG RGB": 120}


def test_unreadable_files_are_named_with_the_reason(tmp_path: Path) -> None:
    healthy(tmp_path)
    whole = (tmp_path / "cat/3.png").read_bytes()
    (tmp_path / "cat/3.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "dog/4.png").write_bytes(b"")
    (tmp_path / "dog/5.jpg").write_text("<html>not found</html>")
    finding = next(each for each in check(tmp_path).findings if each.code == "unreadable")
    reasons = dict(zip([paths[0] for paths in finding.examples], finding.reasons, strict=True))
    assert finding.severity == "error"
    assert reasons.keys() == {"cat/3.png", "dog/4.png", "dog/5.jpg"}
    assert "truncated" in reasons["cat/3.png"]
    assert "empty" in reasons["dog/4.png"]
    assert "no image" in reasons["dog/5.jpg"]
    assert finding.count == 3


def test_a_file_that_may_not_be_read_is_looked_at_again_once_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    healthy(tmp_path)

    def refuse(path: str) -> bytes:
        if path.endswith("cat/1.png"):
            raise ImageError(path, "permission denied")
        return Path(path).read_bytes()

    with monkeypatch.context() as patch:  # root may read everything, so a mode would not do
        patch.setattr(fingerprints, "contents", refuse)
        assert named(check(tmp_path), "unreadable") == [["cat/1.png"]]
    assert check(tmp_path).findings == ()


def test_one_per_cent_of_corrupt_files_are_all_found_and_no_other(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for number in range(200):
            write(tmp_path / name / f"{number}.jpg", number + 1000 * (name == "dog"))
    generator = np.random.default_rng(0)
    broken = [f"{name}/{number}.jpg" for name, number in (("cat", 7), ("cat", 150), ("dog", 0), ("dog", 99))]
    for path in broken:
        data = (tmp_path / path).read_bytes()
        (tmp_path / path).write_bytes(data[: generator.integers(20, len(data) - 60)])
    report = check(tmp_path)
    assert sorted(path for [path] in named(report, "unreadable")) == sorted(broken)
    assert codes(report) == {"unreadable": "error"}


def test_all_files_unreadable_is_a_report_not_a_failure(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(25):
            (tmp_path / name / f"{number}.png").write_text(f"{name} {number}")
    report = check(tmp_path)
    assert codes(report) == {"unreadable": "error"}
    assert len(named(report, "unreadable")) == 50
    assert (report.sizes, report.kinds) == ({}, {})


def test_exact_copies_are_leaks_across_splits_and_repetitions_within(tmp_path: Path) -> None:
    healthy(tmp_path, "train", "val", "test")
    shutil.copy(tmp_path / "train/cat/0.png", tmp_path / "test/cat/copy.png")
    shutil.copy(tmp_path / "train/dog/1.png", tmp_path / "val/dog/copy.png")
    shutil.copy(tmp_path / "train/dog/2.png", tmp_path / "train/dog/copy.png")
    shutil.copy(tmp_path / "train/dog/2.png", tmp_path / "train/dog/again.png")
    shutil.copy(tmp_path / "test/dog/3.png", tmp_path / "test/dog/copy.png")
    report = check(tmp_path)
    assert codes(report) == {
        "leak-exact-test": "error",
        "leak-exact-val": "error",
        "duplicates-exact-train": "warning",
        "duplicates-exact-test": "warning",
    }
    assert named(report, "duplicates-exact-test") == [["test/dog/3.png", "test/dog/copy.png"]]
    assert named(report, "leak-exact-test") == [["test/cat/copy.png", "train/cat/0.png"]]
    assert named(report, "leak-exact-val") == [["train/dog/1.png", "val/dog/copy.png"]]
    assert named(report, "duplicates-exact-train") == [["train/dog/2.png", "train/dog/again.png", "train/dog/copy.png"]]
    counts = {finding.code: finding.count for finding in report.findings}
    assert counts == {
        "leak-exact-test": 1,
        "leak-exact-val": 1,
        "duplicates-exact-train": 2,
        "duplicates-exact-test": 1,
    }
    assert "1 of 42 images of test (2.38%)" in next(f.what for f in report.findings if f.code == "leak-exact-test")


def test_one_image_under_two_labels_is_a_conflict(tmp_path: Path) -> None:
    healthy(tmp_path)
    shutil.copy(tmp_path / "cat/0.png", tmp_path / "dog/copy.png")
    report = check(tmp_path)
    assert codes(report)["conflict-exact"] == "error"
    assert named(report, "conflict-exact") == [["cat/0.png", "dog/copy.png"]]


def test_near_copies_are_leaks_and_conflicts_for_a_look(tmp_path: Path) -> None:
    healthy(tmp_path, "train", "test")
    with Image.open(tmp_path / "train/cat/0.png") as image:
        image.save(tmp_path / "test/cat/copy.jpg", quality=60)
        image.crop((1, 1, 48, 40)).resize((96, 80)).save(tmp_path / "train/dog/copy.png")
    report = check(tmp_path)
    every = ["test/cat/copy.jpg", "train/cat/0.png", "train/dog/copy.png"]
    assert codes(report) == {"leak-near-test": "warning", "conflict-near": "warning"}
    assert named(report, "leak-near-test") == named(report, "conflict-near") == [every]


@pytest.mark.parametrize(
    ("counts", "expected", "remedy"),
    [
        ((60, 21), {}, ""),
        ((66, 22), {"imbalance": "note"}, "--class-weights balanced"),
        ((200, 20), {"imbalance": "warning"}, "--sampling balanced"),
        ((200, 19), {"imbalance": "warning", "tiny-classes": "warning"}, "--sampling balanced"),
    ],
)
def test_uneven_and_tiny_classes_get_a_remedy(
    tmp_path: Path, counts: tuple[int, int], expected: dict[str, str], remedy: str
) -> None:
    for name, count in zip(("cat", "dog"), counts, strict=True):
        for number in range(count):
            write(tmp_path / name / f"{number}.png", number + 500 * (name == "dog"))
    report = check(tmp_path)
    assert codes(report) == expected
    assert all(remedy in finding.remedy for finding in report.findings if finding.code == "imbalance")


def test_classes_that_splits_do_not_share_are_told(tmp_path: Path) -> None:
    healthy(tmp_path, "train", "test")
    write(tmp_path / "test/eel/0.png", 999)
    shutil.rmtree(tmp_path / "test/dog")
    report = check(tmp_path)
    assert codes(report) == {"unknown-classes-test": "error", "few-test": "note"}
    assert named(report, "unknown-classes-test") == [["eel"]]
    assert named(report, "few-test") == [["dog"]]


def test_one_class_alone_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "cat/0.png", 1)
    assert codes(check(tmp_path)) == {"one-class": "error", "tiny-classes": "warning"}


def test_sizes_kinds_and_suffixes_that_are_out_of_the_ordinary(tmp_path: Path) -> None:
    for number in range(30):
        for name in ("cat", "dog"):
            write(tmp_path / name / f"{number}.png", number + 100 * (name == "dog"), (160, 120))
    write(tmp_path / "cat/icon.png", 301, (16, 16))
    write(tmp_path / "cat/strip.png", 302, (400, 100))
    write(tmp_path / "cat/grey.png", 303, (160, 120), "L")
    write(tmp_path / "cat/layered.png", 304, (160, 120), "RGBA")
    deep = np.asarray(picture(305, (160, 120)).convert("L")).astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "cat/deep.png")
    write(tmp_path / "dog/print.jpg", 306, (160, 120), "CMYK")
    write(tmp_path / "dog/photo.png", 307, (160, 120)).rename(tmp_path / "dog/photo.jpg")
    report = check(tmp_path)
    assert codes(report) == {
        "16-bit": "warning",
        "small": "warning",
        "aspect": "note",
        "transparent": "note",
        "cmyk": "note",
        "mixed-channels": "note",
        "suffix": "note",
    }
    assert named(report, "small") == [["cat/icon.png"]]
    assert named(report, "aspect") == [["cat/strip.png"]]
    assert named(report, "16-bit") == [["cat/deep.png"]]
    assert named(report, "transparent") == [["cat/layered.png"]]
    assert named(report, "cmyk") == [["dog/print.jpg"]]
    assert named(report, "mixed-channels") == [["cat/deep.png"], ["cat/grey.png"]]
    assert named(report, "suffix") == [["dog/photo.jpg"]]
    assert report.sizes == {"width": (16, 160, 400), "height": (16, 120, 120)}


def test_classes_that_a_kind_of_file_or_a_size_gives_away_are_named(tmp_path: Path) -> None:
    for number in range(30):
        write(tmp_path / "cat" / f"{number}.png", number, (60, 40))
        write(tmp_path / "dog" / f"{number}.png", number + 100, (60, 40) if number else (40, 40))
        write(tmp_path / "eel" / f"{number}.{'jpg' if number else 'png'}", number + 200, (40 + number, 40))
    report = check(tmp_path)
    assert codes(report) == {"shortcut-kind": "warning"}
    [finding] = report.findings
    assert (list(finding.examples), list(finding.reasons)) == ([["eel"]], ["JPEG RGB"])
    shutil.rmtree(tmp_path / "dog")
    [kind, size] = check(tmp_path).findings
    assert sorted(zip([name for [name] in kind.examples], kind.reasons, strict=True)) == [
        ("cat", "PNG RGB"),
        ("eel", "JPEG RGB"),
    ]
    assert (size.code, list(size.examples), list(size.reasons)) == ("shortcut-size", [["cat"]], ["60 × 40"])


def test_what_is_passed_over_is_named(tmp_path: Path) -> None:
    healthy(tmp_path)
    (tmp_path / "cat/notes.txt").touch()
    (tmp_path / ".cache").mkdir()
    (tmp_path / "empty").mkdir()
    write(tmp_path / "lost.png", 500)
    os.mkfifo(tmp_path / "cat/pipe.jpg")
    (tmp_path / "dog/nowhere.png").symlink_to(tmp_path / "gone.png")
    report = check(tmp_path)
    assert named(report, "ignored-not-an-image") == [["cat/notes.txt"]]
    assert named(report, "ignored-hidden") == [[".cache"]]
    assert named(report, "ignored-outside-a-class-folder") == [["lost.png"]]
    assert sorted(named(report, "ignored-not-a-file")) == [["cat/pipe.jpg"], ["dog/nowhere.png"]]
    assert any("'empty' holds no images" in finding.what for finding in report.findings)
    assert codes(report)["ignored-not-a-file"] == "warning"


def test_a_csv_with_splits_is_checked_with_its_groups(tmp_path: Path) -> None:
    healthy(tmp_path / "images")
    rows = ["path,label,split,group"]
    for name in ("cat", "dog"):
        rows += [
            f"images/{name}/{i}.png,{name},{'test' if i < 5 else 'train'},{name}{i if i > 5 else 4}" for i in range(20)
        ]
    (tmp_path / "list.csv").write_text("\n".join(rows))
    report = check(tmp_path / "list.csv")
    assert report.splits == {"train": 30, "test": 10}
    assert codes(report) == {"leak-group-test": "error", "tiny-classes": "warning", "few-test": "note"}
    assert len(named(report, "leak-group-test")) == 2
    assert all(len(paths) == 6 for paths in named(report, "leak-group-test"))


def test_data_that_cannot_be_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="it is empty"):
        check(tmp_path / "empty")
    with pytest.raises(UserError, match="No such file"):
        check(tmp_path / "nowhere")
    image = write(tmp_path / "one.png", 1)
    with pytest.raises(UserError, match="neither a folder nor"):
        check(image)
    healthy(tmp_path / "data")
    scandir = os.scandir

    def refuse(path: str | os.PathLike[str]) -> object:
        if os.fspath(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match="dog cannot be read: Permission denied"):
        check(tmp_path / "data")


def test_json_has_every_path(tmp_path: Path) -> None:
    healthy(tmp_path, "train", "test")
    for number in range(12):
        shutil.copy(tmp_path / f"train/cat/{number}.png", tmp_path / f"test/cat/copy{number}.png")
        (tmp_path / f"train/dog/{number}.png").write_bytes(b"")
    told = check(tmp_path).to_dict()
    assert (told["images"], told["errors"]) == (92, 2)
    by_code = {finding["code"]: finding for finding in told["findings"]}
    assert len(by_code["leak-exact-test"]["sets"]) == 12
    assert [file["path"] for file in by_code["unreadable"]["files"]] == [f"train/dog/{n}.png" for n in range(12)]


def test_progress_counts_every_file_once(tmp_path: Path) -> None:
    healthy(tmp_path, count=100)
    told: list[tuple[str, int, int]] = []
    check(tmp_path, progress=lambda *each: told.append(each))
    reading = [(done, total) for name, done, total in told if name == "reading images"]
    assert reading[-1] == (200, 200)
    assert [done for done, _ in reading] == sorted(done for done, _ in reading)
    assert fingerprints._TOGETHER < 200  # so that there was more than one step


# In short, before a run


def test_in_short_nothing_is_said_of_a_healthy_set(tmp_path: Path) -> None:
    assert brief(scan(healthy(tmp_path / "whole", count=24))) == []
    assert brief(scan(healthy(tmp_path / "split", "train", "val"))) == []


def test_in_short_uneven_and_tiny_classes_come_with_their_remedy(tmp_path: Path) -> None:
    healthy(tmp_path, count=30)
    for number in range(4):
        write(tmp_path / "eel" / f"{number}.png", 900 + number)
    manifest = scan(tmp_path)
    uneven, tiny = brief(manifest)
    assert "'cat', has 9.0 times the images of the smallest, 'eel' (27 and 3)" in uneven
    assert "--class-weights balanced" in uneven
    assert "1 of 3 classes have fewer than 20 training images (the smallest, 'eel', has 3)" in tiny
    assert brief(manifest, balanced=True) == [tiny]


def test_in_short_leaks_into_validation_are_told_once_the_files_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    healthy(tmp_path, "train", "val", "test")
    shutil.copy(tmp_path / "train/cat/0.png", tmp_path / "val/cat/copy.png")
    with Image.open(tmp_path / "train/dog/0.png") as image:
        image.save(tmp_path / "val/dog/copy.jpg", quality=60)
    shutil.copy(tmp_path / "train/cat/1.png", tmp_path / "test/cat/copy.png")  # no matter to training
    manifest = scan(tmp_path)
    assert brief(manifest) == []
    check(tmp_path)
    monkeypatch.setattr(fingerprints, "contents", lambda path: pytest.fail("nothing is to be read"))
    [leak] = brief(manifest)
    assert "2 of 42 validation images have a copy in train" in leak
