"""Listing DATA and cutting it, on small trees of files; bad DATA gets one clear message."""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from making import picture
from resnext import durable
from resnext.data import fingerprints, named
from resnext.data.listing import natural_key
from resnext.data.manifest import Manifest, folds, scan
from resnext.errors import UserError


def fill(folder: Path, count: int, start: int = 0) -> None:
    """Put `count` files into a folder that are images by name and all differ."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(start, start + count):
        (folder / f"{number}.jpg").write_bytes(f"{folder.name} {number:06}".encode())


def tree(root: Path, **classes: int) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for name, count in classes.items():
        fill(root / name, count)
    return root


def members(manifest: Manifest, split: str) -> list[tuple[str, str]]:
    """The (path, class) pairs of a split, in order."""
    rows = manifest.split(split)
    return [(str(rows.paths[i]), manifest.classes[label]) for i, label in enumerate(rows.labels)]


def counts(manifest: Manifest, split: str) -> Counter[str]:
    return Counter(name for _, name in members(manifest, split))


# Folders


def test_class_folders_become_classes_in_natural_order(tmp_path: Path) -> None:
    for name in ("class 10", "class 2", "Class 1", "zebra"):
        fill(tmp_path / name, 4)
    manifest = scan(tmp_path)
    assert manifest.classes == ("Class 1", "class 2", "class 10", "zebra")
    assert manifest.root == tmp_path.resolve()
    everything = members(manifest, "train") + members(manifest, "val")
    assert sorted(everything) == sorted((f"{c}/{i}.jpg", c) for c in manifest.classes for i in range(4))
    assert manifest.ignored == {}
    assert len(manifest.notes) == 1


def test_images_are_listed_in_natural_order_folder_by_folder(tmp_path: Path) -> None:
    for number in (10, 9, 1, 100, 2):
        fill(tmp_path / "cat", 1, start=number)
        fill(tmp_path / "cat/below 2", 1, start=number)
    fill(tmp_path / "cat/below 10", 1)
    listed = members(scan(tmp_path, purpose="evaluate"), "test")
    numbers = ("1", "2", "9", "10", "100")
    expected = [f"cat/{n}.jpg" for n in numbers] + [f"cat/below 2/{n}.jpg" for n in numbers]
    assert [path for path, _ in listed] == [*expected, "cat/below 10/0.jpg"]


def test_each_file_is_looked_at_once(tmp_path: Path) -> None:
    tree(tmp_path / "warm", cat=3, dog=3)
    scan(tmp_path / "warm")  # what is imported for the first time is looked for as well
    tree(tmp_path / "data", cat=30, dog=30)
    looks: Counter[str] = Counter()

    def count(frame: object, event: str, called: object) -> None:
        if event == "c_call" and getattr(called, "__name__", "") in ("stat", "lstat"):
            entry = getattr(called, "__self__", None)
            looks[entry.path if isinstance(entry, os.DirEntry) else "elsewhere"] += 1

    sys.setprofile(count)
    try:
        scan(tmp_path / "data")
    finally:
        sys.setprofile(None)
    assert looks.pop("elsewhere") < 40  # of DATA, its folders and the caches
    assert len(looks) == 62
    assert set(looks.values()) == {1}


def test_natural_order_compares_numbers_as_numbers_of_any_length() -> None:
    names = ["a10", "a9", "a010", "b", "A1", "a" + "9" * 5000, "", "10", "9", "a9b10", "a9b9", "é2", "é11"]
    expected = ["", "9", "10", "A1", "a9", "a9b9", "a9b10", "a010", "a10", "a" + "9" * 5000, "b", "é2", "é11"]
    assert sorted(names, key=natural_key) == expected


def test_columns_are_what_the_file_system_says(tmp_path: Path) -> None:
    tree(tmp_path / "train", cat=3, dog=2)
    tree(tmp_path / "val", cat=1, dog=1)
    (tmp_path / "train/dog/1.jpg").write_bytes(b"x" * 777)
    os.utime(tmp_path / "train/dog/1.jpg", ns=(5, 123_456_789_012_345_678))
    manifest = scan(tmp_path)
    assert manifest.table.schema.names == ["path", "label", "split", "size", "mtime_ns", "group"]
    rows = manifest.split("train")
    assert len(rows) == 5
    for index in range(5):
        status = rows.path(index).stat()
        assert (rows.sizes[index], rows.mtimes_ns[index]) == (status.st_size, status.st_mtime_ns)
    assert 123_456_789_012_345_678 in rows.mtimes_ns
    assert (rows.labels.dtype, rows.sizes.dtype, rows.mtimes_ns.dtype) == (np.int32, np.int64, np.int64)
    assert rows.classes == ("cat", "dog")


def test_an_image_costs_few_bytes(tmp_path: Path) -> None:
    rows = scan(tree(tmp_path, a=300, b=300)).split("train")
    size = sum(column.nbytes for column in (rows.paths, rows.labels, rows.sizes, rows.mtimes_ns))
    assert size <= 200 * len(rows)


def test_given_splits_are_kept_and_test_is_not_looked_at_in_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree(tmp_path / "train", cat=3, dog=2)
    tree(tmp_path / "val", dog=1, cat=2)
    tree(tmp_path / "test", cat=1, unheard_of=1)
    looked_at = []

    def record(path: str | os.PathLike[str]) -> object:
        looked_at.append(os.fspath(path))
        return scandir(path)

    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", record)
    manifest = scan(tmp_path)
    assert counts(manifest, "train") == {"cat": 3, "dog": 2}
    assert counts(manifest, "val") == {"cat": 2, "dog": 1}
    assert len(manifest.split("test")) == 0
    assert manifest.notes == ()
    assert looked_at
    assert not any(path.startswith(str(tmp_path / "test")) for path in looked_at)


def test_what_is_passed_over_is_counted(tmp_path: Path) -> None:
    tree(tmp_path, cat=3, dog=3)
    (tmp_path / "cat/.hidden.jpg").touch()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git/a.jpg").touch()
    (tmp_path / "cat/notes.txt").touch()
    (tmp_path / "readme.md").touch()
    (tmp_path / "lost.jpg").touch()
    (tmp_path / "dog/nowhere.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "empty").mkdir()
    manifest = scan(tmp_path)
    expected = {"hidden": 2, "not an image": 2, "outside a class folder": 1, "not a file": 1}
    assert manifest.ignored == expected
    assert manifest.classes == ("cat", "dog")
    assert any("'empty' holds no images" in note for note in manifest.notes)


def test_folders_beside_the_splits_are_counted(tmp_path: Path) -> None:
    tree(tmp_path / "train", cat=3, dog=3)
    tree(tmp_path / "valid", cat=3, dog=3)
    (tmp_path / ".DS_Store").touch()
    manifest = scan(tmp_path)
    assert manifest.ignored == {"beside the splits": 1, "hidden": 1}
    assert counts(manifest, "val") == {"cat": 1, "dog": 1}


def test_nested_folders_and_links_are_walked_without_going_round(tmp_path: Path) -> None:
    tree(tmp_path / "data", cat=2, dog=2)
    fill(tmp_path / "data/cat/tabby/small", 2, start=10)
    fill(tmp_path / "elsewhere/puppies", 3, start=50)
    (tmp_path / "data/dog/puppies").symlink_to(tmp_path / "elsewhere/puppies")
    (tmp_path / "data/dog/again").symlink_to(tmp_path / "data/dog")
    (tmp_path / "elsewhere/puppies/back").symlink_to(tmp_path / "data/dog")
    manifest = scan(tmp_path / "data")
    assert counts(manifest, "train") + counts(manifest, "val") == {"cat": 4, "dog": 5}
    assert manifest.ignored == {"a link to a folder above it": 2}
    assert ("cat/tabby/small/10.jpg", "cat") in members(manifest, "train") + members(manifest, "val")


# Evaluation


def test_evaluation_takes_the_test_split_and_aligns_classes_by_name(tmp_path: Path) -> None:
    tree(tmp_path / "train", ant=2, bee=2, cat=2)
    tree(tmp_path / "test", cat=2, bee=1)
    manifest = scan(tmp_path, purpose="evaluate", classes=["zoo", "cat", "ant", "bee"])
    assert members(manifest, "test") == [
        ("test/bee/0.jpg", "bee"),
        ("test/cat/0.jpg", "cat"),
        ("test/cat/1.jpg", "cat"),
    ]
    assert manifest.split("test").labels.tolist() == [3, 1, 1]
    assert any("test has no image of 'zoo', 'ant'" in note for note in manifest.notes)
    assert len(manifest.table) == 3


def test_evaluation_of_a_plain_folder_takes_everything(tmp_path: Path) -> None:
    manifest = scan(tree(tmp_path, dog=1), purpose="evaluate", classes=("cat", "dog"))
    assert manifest.split("test").labels.tolist() == [1]
    assert scan(tmp_path, purpose="evaluate").classes == ("dog",)


def test_evaluation_without_a_test_split_takes_val_and_says_so(tmp_path: Path) -> None:
    tree(tmp_path / "train", cat=2, dog=2)
    with pytest.raises(UserError, match="training images alone"):
        scan(tmp_path, purpose="evaluate")
    tree(tmp_path / "val", cat=2, dog=1)
    manifest = scan(tmp_path, purpose="evaluate", classes=("cat", "dog"))
    assert counts(manifest, "test") == {"cat": 2, "dog": 1}
    assert any("there is no test split" in note for note in manifest.notes)


def test_evaluation_refuses_a_class_that_the_bundle_does_not_know(tmp_path: Path) -> None:
    tree(tmp_path, cats=1, dog=1)
    with pytest.raises(UserError, match=r"images of 'cats'.*Did you mean 'cat'"):
        scan(tmp_path, purpose="evaluate", classes=("cat", "dog"))


# Bad DATA


def message(data: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        scan(data)
    lines = str(caught.value).splitlines()
    assert 1 <= len(lines) <= 3
    return str(caught.value)


def test_data_that_cannot_be_trained_on(tmp_path: Path) -> None:
    assert "No such file" in message(tmp_path / "none")
    assert "Did you mean 'cifar10'" in message("cifar-10")
    assert "not a possible path" in message("a\0b")
    (tmp_path / "a.txt").touch()
    assert "neither a folder nor a .csv file" in message(tmp_path / "a.txt")
    assert "it is empty" in message(tree(tmp_path / "empty"))
    (tmp_path / "empty/x.jpg").touch()
    assert "1 image(s), but in no class folder" in message(tmp_path / "empty")
    (tmp_path / "text/notes").mkdir(parents=True)
    (tmp_path / "text/notes/a.txt").touch()
    assert "1 not an image" in message(tmp_path / "text")
    assert "one class only, 'cat'" in message(tree(tmp_path / "one", cat=5))
    assert "one image a class" in message(tree(tmp_path / "single", cat=1, dog=1, cow=1))
    assert "no training images" in message(tree(tmp_path / "untrained", val=3, test=3))
    tree(tmp_path / "hollow/val", cat=3, dog=3)
    (tmp_path / "hollow/train").mkdir()
    assert "no training images" in message(tmp_path / "hollow")


def test_a_folder_too_high_up_is_explained(tmp_path: Path) -> None:
    tree(tmp_path / "photos", cat=3, dog=3)
    assert f"then DATA is {tmp_path}/photos" in message(tmp_path)
    assert "then DATA" not in message(tree(tmp_path / "flat", photos=3))


def test_classes_whose_images_are_all_copies_cannot_be_validated(tmp_path: Path) -> None:
    for path in ("cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "dog/2.jpg"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(path[:3].encode())
    assert "no class has two different images" in message(tmp_path)


def test_a_validation_folder_without_images_is_as_none(tmp_path: Path) -> None:
    tree(tmp_path / "train", cat=5, dog=5)
    (tmp_path / "val/cat").mkdir(parents=True)
    manifest = scan(tmp_path)
    assert counts(manifest, "val") == {"cat": 1, "dog": 1}
    assert "val/ holds no images: it is passed over" in manifest.notes


def test_a_class_of_val_that_train_has_not_and_the_reverse(tmp_path: Path) -> None:
    tree(tmp_path / "train", cat=2, dog=2, eel=1)
    tree(tmp_path / "val", cat=1)
    manifest = scan(tmp_path)
    assert any("val has no image of 'dog', 'eel'" in note for note in manifest.notes)
    assert manifest.split("val").labels.tolist() == [0]
    tree(tmp_path / "val", fox=1)
    assert "images of 'fox': the training images have no such class" in message(tmp_path)


def test_a_file_that_this_install_cannot_read_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, cat=2, dog=2)
    (tmp_path / "dog/phone.HEIC").write_bytes(b"anything")
    assert len(scan(tmp_path).table) == 5
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    text = message(tmp_path)
    assert "dog/phone.HEIC" in text
    assert "pip install 'resnext[heif]'" in text


def test_a_folder_that_may_not_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, cat=2, dog=2)

    def refuse(path: str | os.PathLike[str]) -> object:
        raise PermissionError(13, "Permission denied", os.fspath(path))

    monkeypatch.setattr(os, "scandir", refuse)
    assert f"{tmp_path} cannot be read: Permission denied" in message(tmp_path)


@pytest.mark.skipif(sys.platform == "darwin", reason="its file names are always UTF-8")
def test_a_file_name_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    tree(tmp_path, cat=2, dog=2)
    (tmp_path / os.fsdecode(b"dog/\xff.jpg")).touch()
    assert "is not in UTF-8" in message(tmp_path)


@pytest.mark.parametrize("validation", [0, 1, -0.1, float("nan")])
def test_a_validation_share_that_cannot_be(tmp_path: Path, validation: float) -> None:
    with pytest.raises(UserError, match="must lie between 0 and 1"):
        scan(tree(tmp_path, cat=2, dog=2), validation=validation)


# CSV


def table(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines), encoding="utf-8-sig")
    return path


def test_csv_paths_start_at_its_folder_or_are_absolute(tmp_path: Path) -> None:
    tree(tmp_path / "set/images", cat=4, dog=3)
    tree(tmp_path / "outside", dog=1)
    lines = [f'"images/{name}/{i}.jpg",{name}' for name in ("cat", "dog") for i in range(3)]
    lines += ["../outside/dog/0.jpg, dog", f"{tmp_path}/set/./images/cat/3.jpg,another"]
    manifest = scan(table(tmp_path / "set/list.csv", "path, label", *lines))
    everything = dict(members(manifest, "train") + members(manifest, "val"))
    assert everything[f"{tmp_path}/outside/dog/0.jpg"] == "dog"
    assert set(everything) >= {"images/cat/0.jpg", "images/dog/2.jpg"}
    assert manifest.classes == ("another", "cat", "dog")
    assert len(manifest.table) == 8
    for split in ("train", "val"):
        rows = manifest.split(split)
        assert all(rows.path(index).is_file() for index in range(len(rows)))


def test_csv_splits_are_kept_and_test_rows_are_not_looked_at(tmp_path: Path) -> None:
    tree(tmp_path, cat=3, dog=3)
    rows = [f"{name}/{i}.jpg,{name},{split}" for name in ("cat", "dog") for i, split in enumerate(("train", "val"))]
    path = table(tmp_path / "a.csv", "path,label,split", *rows, "gone.jpg,eel,test")
    manifest = scan(path)
    assert members(manifest, "val") == [("cat/1.jpg", "cat"), ("dog/1.jpg", "dog")]
    assert len(manifest.table) == 4
    table(path, "path,label,split", *rows, "cat/2.jpg,cat,test")
    assert members(scan(path, purpose="evaluate"), "test") == [("cat/2.jpg", "cat")]
    table(path, "path,label,split", *rows)
    evaluated = scan(path, purpose="evaluate", classes=("dog", "cat"))
    assert members(evaluated, "test") == [("cat/1.jpg", "cat"), ("dog/1.jpg", "dog")]
    assert any("no test split" in note for note in evaluated.notes)


def test_csv_without_splits_is_all_evaluated(tmp_path: Path) -> None:
    tree(tmp_path, cat=3)
    path = table(tmp_path / "a.csv", "label,path,site", "cat,cat/0.jpg,x", "cat,cat/1.jpg,y")
    assert counts(scan(path, purpose="evaluate"), "test") == {"cat": 2}


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (("file,label", "cat/0.jpg,cat"), "no column 'path'"),
        (("path;label", "cat/0.jpg;cat"), "no column 'path'"),
        (("",), "no column 'path'"),
        (("path,label", "cat/0.jpg,cat", "cat/7.jpg,cat"), "line 3: .*cat/7.jpg: No such file"),
        (("path,label", "cat,cat"), "line 2: .* is not a file"),
        (("path,label", "cat/0.jpg"), "line 2: not as many fields"),
        (("path,label", "cat/0.jpg,cat,dog"), "line 2: not as many fields"),
        (("path,label", "cat/0.jpg,"), "line 2: the label is empty"),
        (("path,label", ",cat"), "line 2: the path is empty"),
        (("path,label,split", "cat/0.jpg,cat,train", "cat/1.jpg,cat,valid"), "line 3: unknown split 'valid'"),
        (("path,label,split", "cat/0.jpg,cat,test"), "none is called 'train'"),
        (("path,label", '"cat/0.jpg,cat'), "line 2 is not CSV"),
        (("path,label",), "names no images"),
    ],
)
def test_bad_csv_files_name_the_line(tmp_path: Path, lines: tuple[str, ...], expected: str) -> None:
    tree(tmp_path, cat=2)
    with pytest.raises(UserError, match=expected) as caught:
        scan(table(tmp_path / "a.csv", *lines))
    assert len(str(caught.value).splitlines()) <= 3


def test_a_csv_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("path,label\né.jpg,cat\n".encode("latin-1"))
    with pytest.raises(UserError, match="not CSV in UTF-8"):
        scan(tmp_path / "a.csv")


# Named sets


def test_named_sets_are_fetched_unless_a_path_has_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path / "fetched/train", cat=4, dog=4)
    monkeypatch.setattr(named, "fetch", lambda name: tmp_path / "fetched")
    monkeypatch.chdir(tmp_path)
    assert scan("cifar10").root == tmp_path / "fetched"
    tree(tmp_path / "cifar10", cat=4, dog=4)
    assert scan("cifar10").root == tmp_path / "cifar10"


# Keeping


def test_a_manifest_is_written_and_read_back(tmp_path: Path) -> None:
    tree(tmp_path / "data", cat=5, dog=5)
    rows = [f"{name}/{i}.jpg,{name},{'A' if i < 2 else ''}" for name in ("cat", "dog") for i in range(5)]
    for data in (tmp_path / "data", table(tmp_path / "data/a.csv", "path,label,group", *rows)):
        manifest = scan(data)
        manifest.write(tmp_path / "manifest.parquet")
        again = Manifest.read(tmp_path / "manifest.parquet")
        assert again == manifest
        assert again.content_hash() == manifest.content_hash()
        assert isinstance(again.split("train").paths, pa.Array | pa.ChunkedArray)


def test_other_files_are_no_manifests(tmp_path: Path) -> None:
    path = tmp_path / "manifest.parquet"
    with pytest.raises(UserError, match="no manifest"):
        Manifest.read(path)
    path.write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match="no manifest"):
        Manifest.read(path)
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"path": ["a"]}), path)
    with pytest.raises(UserError, match="no manifest"):
        Manifest.read(path)


def test_no_other_split_exists(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No split is called 'valid'"):
        scan(tree(tmp_path, cat=2, dog=2)).split("valid")


def test_the_content_hash_is_of_names_labels_and_splits_only(tmp_path: Path) -> None:
    data = tree(tmp_path / "data", cat=20, dog=20)
    first = scan(data)
    (data / "cat/3.jpg").write_bytes(b"changed, and longer than it was")
    assert scan(data).content_hash() == first.content_hash()
    seen = {first.content_hash(), scan(data, seed=1).content_hash()}
    (data / "cat/3.jpg").rename(data / "cat/three.jpg")
    seen.add(scan(data).content_hash())
    data.rename(tmp_path / "moved")
    seen.add(scan(tmp_path / "moved").content_hash())
    assert len(seen) == 4


# Cuts, on real files; tests/data/test_splitting.py has the properties


def test_a_cut_is_repeatable_stratified_and_recorded(tmp_path: Path) -> None:
    tree(tmp_path, cat=40, dog=25, eel=3, fox=1)
    manifest = scan(tmp_path, seed=3)
    assert counts(manifest, "val") == {"cat": 4, "dog": 2, "eel": 1}
    assert members(scan(tmp_path, seed=3), "val") == members(manifest, "val")
    assert members(scan(tmp_path, seed=4), "val") != members(manifest, "val")
    assert "validation: 7 of 69 images are cut from the training images (seed 3)" in manifest.notes
    assert counts(scan(tmp_path, validation=0.5), "val") == {"cat": 20, "dog": 12, "eel": 2}


def test_copies_lie_on_one_side_even_across_classes(tmp_path: Path) -> None:
    tree(tmp_path, cat=12, dog=12)
    long = b"the same head" * 1000
    for number in range(10):
        (tmp_path / f"cat/long{number}.png").write_bytes(long + b"%02d" % number)
        (tmp_path / f"dog/copy{number}.png").write_bytes(long + b"%02d" % number)
        (tmp_path / f"dog/{number}.jpg").write_bytes((tmp_path / f"cat/{number}.jpg").read_bytes())
    for seed in range(5):
        manifest = scan(tmp_path, seed=seed, validation=0.3)
        sides = {split: {(manifest.root / path).read_bytes() for path, _ in members(manifest, split)}
                 for split in ("train", "val")}  # fmt: skip
        assert not sides["train"] & sides["val"]
        assert sides["val"]


def test_near_copies_lie_on_one_side_even_across_classes(tmp_path: Path) -> None:
    originals = [picture(number, (64, 48)) for number in range(24)]
    for number, image in enumerate(originals):
        for name in ("cat", "dog"):
            (tmp_path / name).mkdir(exist_ok=True)
        here, there = ("cat", "dog") if number % 2 else ("dog", "cat")
        image.save(tmp_path / f"{here}/{number}.png")
        if number < 12:
            image.save(tmp_path / f"{there}/copy{number}.jpg", quality=60)
            image.crop((1, 1, 64, 48)).resize((80, 60)).save(tmp_path / f"{here}/crop{number}.png")
    for seed in range(5):
        manifest = scan(tmp_path, seed=seed, validation=0.3)
        sides = {split: {Path(path).stem.strip("copyr") for path, _ in members(manifest, split)}
                 for split in ("train", "val")}  # fmt: skip
        assert not sides["train"] & sides["val"]
        assert sides["val"]
        assert "36 images are near copies of others: each set stays on one side" in manifest.notes
    for part in folds(scan(tmp_path), 3, 0):
        sides = {split: {Path(path).stem.strip("copyr") for path, _ in members(part, split)}
                 for split in ("train", "val")}  # fmt: skip
        assert not sides["train"] & sides["val"]


def test_files_are_read_once_and_again_where_they_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, cat=20, dog=20)
    opened: list[str] = []
    contents = fingerprints.contents
    monkeypatch.setattr(fingerprints, "contents", lambda path: opened.append(Path(path).name) or contents(path))
    first = scan(tmp_path)
    assert len(opened) == 40
    opened.clear()
    assert scan(tmp_path) == first
    assert opened == []
    assert members(scan(tmp_path, seed=1), "val") != members(first, "val")
    assert opened == []
    (tmp_path / "cat/3.jpg").write_bytes(b"new")
    os.utime(tmp_path / "dog/4.jpg", ns=(1, 1))
    fill(tmp_path / "dog", 1, start=77)
    scan(tmp_path)
    assert sorted(opened) == ["3.jpg", "4.jpg", "77.jpg"]


def test_a_changed_file_is_seen_by_the_cut_that_was_remembered(tmp_path: Path) -> None:
    tree(tmp_path, cat=10, dog=10)
    first = scan(tmp_path, validation=0.3)
    validated = members(first, "val")[0][0]
    trained = next(path for path, _ in members(first, "train"))
    status = (tmp_path / validated).stat()
    (tmp_path / validated).write_bytes((tmp_path / trained).read_bytes())  # of the same size; the time differs
    os.utime(tmp_path / validated, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    second = {path: split for split in ("train", "val") for path, _ in members(scan(tmp_path, validation=0.3), split)}
    assert second[validated] == second[trained]


def test_a_damaged_memory_of_a_cut_is_drawn_again(tmp_path: Path) -> None:
    first = scan(tree(tmp_path, cat=30, dog=30), seed=8)
    folder = durable.cache_directory() / "cuts"
    newest = max(folder.iterdir(), key=lambda file: file.stat().st_mtime_ns)
    for damaged in (b"", newest.read_bytes()[:-1], newest.read_bytes()[:32] + b"\xf0" * 4 + newest.read_bytes()[36:]):
        newest.write_bytes(damaged)
        assert scan(tmp_path, seed=8) == first


def test_rows_of_one_group_lie_on_one_side(tmp_path: Path) -> None:
    tree(tmp_path, cat=30, dog=30)
    rows = [f"{name}/{i}.jpg,{name},patient{i % 10}" for name in ("cat", "dog") for i in range(30)]
    path = table(tmp_path / "a.csv", "path,label,group", *rows)
    for seed in range(5):
        manifest = scan(path, seed=seed, validation=0.2)
        sides = set(zip(*manifest.table.select(["group", "split"]).to_pydict().values(), strict=True))
        assert len(sides) == 10
        assert counts(manifest, "val") == {"cat": 6, "dog": 6}


def test_a_new_file_does_not_reshuffle_the_others(tmp_path: Path) -> None:
    tree(tmp_path, cat=50, dog=50)
    before = {path for path, _ in members(scan(tmp_path), "val")}
    fill(tmp_path / "cat", 1, start=500)
    after = {path for path, _ in members(scan(tmp_path), "val")} - {"cat/500.jpg"}
    assert len(before ^ after) <= 1


def test_folds_validate_every_image_once(tmp_path: Path) -> None:
    tree(tmp_path / "train", cat=20, dog=11, eel=1)
    tree(tmp_path / "val", cat=3)
    manifest = scan(tmp_path)
    parts = folds(manifest, 4, seed=2)
    validated = Counter(path for part in parts for path, _ in members(part, "val"))
    everything = {path for part in parts for path, _ in members(part, "train")}
    assert set(validated.values()) == {1}
    assert everything - set(validated) == {"train/eel/0.jpg"}
    assert {tuple(sorted(counts(part, "val").items())) for part in parts} <= {
        (("cat", c), ("dog", d)) for c in (5, 6) for d in (2, 3)
    }
    for number, part in enumerate(parts, start=1):
        assert len(part.table) == len(manifest.table)
        assert not set(members(part, "train")) & set(members(part, "val"))
        assert [n for n in part.notes if n.startswith("validation")] == [f"validation: fold {number} of 4 (seed 2)"]
    assert members(folds(manifest, 4, seed=2)[1], "val") == members(parts[1], "val")


@pytest.mark.parametrize("k", [1, 0, 50])
def test_folds_that_cannot_be(tmp_path: Path, k: int) -> None:
    with pytest.raises(UserError, match="fold"):
        folds(scan(tree(tmp_path, cat=5, dog=5)), k, 0)


@pytest.mark.parametrize("second", ["./cat/0.jpg,dog,train", "cat/0.jpg,cat,val"])
def test_csv_that_gives_one_file_two_labels_or_splits_is_refused_by_its_lines(tmp_path: Path, second: str) -> None:
    tree(tmp_path, cat=3, dog=3)
    rows = [f"{name}/{i}.jpg,{name},train" for name in ("cat", "dog") for i in range(3)]
    path = table(tmp_path / "a.csv", "path,label,split", *rows, second)
    with pytest.raises(UserError, match="lines 2 and 8"):
        scan(path)


def test_csv_repeated_rows_count_once_and_spaces_around_labels_do_not_make_classes(tmp_path: Path) -> None:
    tree(tmp_path, cat=3, dog=3)
    rows = [f"{name}/{i}.jpg,{name} " for name in ("cat", "dog") for i in range(3)]
    manifest = scan(table(tmp_path / "a.csv", "path,label", *rows, "cat/0.jpg,cat"))
    assert manifest.classes == ("cat", "dog")
    assert len(manifest.table) == 6
    assert any("1 repeated row" in note for note in manifest.notes)
