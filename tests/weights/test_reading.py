"""Files of weights from strangers: what is read from them, and that nothing in them is ever run."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from resnext import catalog
from resnext.errors import UserError
from resnext.weights import elsewhere, reading


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"conv.weight": torch.randn(4, 3, 3, 3), "conv.bias": torch.randn(4), "count": torch.tensor(7)}


def assert_read(path: Path) -> None:
    found = reading.read(path)
    expected = tensors()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor)
        assert found[name].dtype == tensor.dtype


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"epoch": 3, "state_dict": state, "best": 0.9},
        lambda state: {"model": {f"module.{name}": tensor for name, tensor in state.items()}, "arch": "resnet50"},
        lambda state: {name: torch.nn.Parameter(t) if t.is_floating_point() else t for name, t in state.items()},
    ],
)
@pytest.mark.parametrize("old_format", [False, True])
def test_a_state_dict_is_found_wherever_scripts_put_it(wrap: Any, old_format: bool, tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save(wrap(tensors()), file, _use_new_zipfile_serialization=not old_format)
    assert_read(file)


def test_views_and_shared_memory_come_apart(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    torch.save({"a": whole, "b": whole, "c": whole[1:], "d": whole.T}, tmp_path / "weights.pt")
    found = reading.read(tmp_path / "weights.pt")
    assert torch.equal(found["b"], whole)
    assert torch.equal(found["c"], whole[1:])
    assert torch.equal(found["d"], whole.T)


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "weights.safetensors")
    assert_read(tmp_path / "weights.safetensors")


class Hostile:
    """What runs a command where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("old_format", [False, True])
def test_code_in_a_pickle_is_not_run(old_format: bool, tmp_path: Path) -> None:
    trace, file = tmp_path / "trace", tmp_path / "weights.pth"
    torch.save({**tensors(), "evil": Hostile(trace)}, file, _use_new_zipfile_serialization=not old_format)
    with pytest.raises(UserError, match=r"holds more than tensors \(posix.system\), which is never run") as raised:
        reading.read(file)
    assert len(str(raised.value).splitlines()) <= 3
    assert not trace.exists()
    torch.load(file, weights_only=False)  # the file does what it says to those who trust it
    assert trace.exists()


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


def bent_header(file: Path) -> None:
    file.write_bytes((2**40).to_bytes(8, "little") + file.read_bytes()[8:])


def emptied(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncated, bent_header, emptied])
@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
def test_damaged_files_are_refused(damage: Any, name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    save_file(tensors(), file) if name.endswith(".safetensors") else torch.save(tensors(), file)
    damage(file)
    with pytest.raises(UserError, match=r"damaged|not read") as raised:
        reading.read(file)
    assert len(str(raised.value).splitlines()) <= 3


def test_an_archive_that_leaves_its_folder_writes_nothing(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    file = inner / "weights.pth"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("../escaped.txt", "x")
        archive.writestr("/tmp/escaped.txt", "x")
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
    with pytest.raises(UserError, match="not read"):
        reading.read(file)
    assert [path.name for path in tmp_path.rglob("*")] == ["inner", "weights.pth"]


def test_a_small_file_of_an_endless_tensor_is_stopped(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1).expand(10**11)}, tmp_path / "weights.pth")  # 400 GB in a few bytes
    with pytest.raises(UserError, match=r"memory|allocate"):
        reading.read(tmp_path / "weights.pth")


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, torch.zeros(3), {1: torch.zeros(3)}])
def test_a_file_without_named_tensors_is_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="holds no tensors by name"):
        reading.read(tmp_path / "weights.pth")


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.h5").write_bytes(b"x")
    with pytest.raises(UserError, match=r"neither a .safetensors nor a .pth"):
        reading.read(tmp_path / "weights.h5")
    with pytest.raises(UserError, match="There is no file"):
        reading.read(tmp_path / "nothing.pth")


def resnet18() -> dict[str, torch.Tensor]:
    import torchvision

    return dict(torchvision.models.resnet18(weights=None).state_dict())


def without(state: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "layer1.0.conv1.weight"), "it lacks layer1.0.conv1.weight"),
        (lambda s: {**s, "layer9.weight": torch.zeros(1)}, "it has layer9.weight, which has no place"),
        (lambda s: {**s, "conv1.weight": torch.zeros(64, 3, 5, 5)}, "conv1.weight.*64×3×5×5 and 64×3×7×7"),
        (lambda s: {**s, "bn1.bias": torch.full((64,), float("nan"))}, "bn1.bias holds values that are no numbers"),
        (lambda s: {**s, "bn1.running_var": torch.full((64,), float("inf"))}, "running_var holds values"),
        (lambda s: {**s, "bn1.bias": torch.zeros(64, dtype=torch.int64)}, "bn1.bias"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_nothing_is_written(change: Any, message: str, tmp_path: Path) -> None:
    save_file(change(resnet18()), tmp_path / "weights.safetensors")
    found = elsewhere.find(str(tmp_path / "weights.safetensors"), "resnet18")
    with pytest.raises(UserError, match=message) as raised:
        elsewhere.write(found, tmp_path / "bundle")
    assert len(str(raised.value).splitlines()) <= 3
    assert not (tmp_path / "bundle").exists()


def test_many_misfits_are_counted(tmp_path: Path) -> None:
    save_file(resnet18(), tmp_path / "weights.safetensors")
    found = elsewhere.find(str(tmp_path / "weights.safetensors"), "resnet34")
    with pytest.raises(UserError, match=r"it lacks .* and \d+ more"):
        elsewhere.build(found)


def test_counters_of_batches_may_be_missing(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in resnet18().items() if not name.endswith("num_batches_tracked")}
    save_file(state, tmp_path / "weights.safetensors")
    network, _ = elsewhere.build(elsewhere.find(str(tmp_path / "weights.safetensors"), "resnet18"))
    assert network.state_dict()["stem.norm.num_batches_tracked"] == 0


def test_our_own_names_are_read_too(tmp_path: Path) -> None:
    network = catalog.create("cifar_resnet8", num_classes=4)
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    built, contents = elsewhere.build(elsewhere.find(str(tmp_path / "weights.safetensors"), "cifar_resnet8"))
    assert all(
        torch.equal(mine, other)
        for mine, other in zip(built.state_dict().values(), network.state_dict().values(), strict=True)
    )
    assert contents.classes == ("0", "1", "2", "3")
