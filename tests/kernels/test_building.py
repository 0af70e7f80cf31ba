"""A library is compiled once, found again, built anew where it is damaged, and refused with a reason."""

from __future__ import annotations

import ctypes
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from resnext.kernels import building

CODE = 'extern "C" int answer() { return 42; }\n'


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RESNEXT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    path = tmp_path / "answer.cpp"
    path.write_text(CODE)
    try:
        building.find_compiler()
    except building.BuildError as error:
        pytest.skip(str(error))
    return path


def libraries(source: Path) -> list[Path]:
    return sorted((source.parent / "cache" / "kernels").glob("*.so"))


def compiler(folder: Path, body: str) -> str:
    """Write a program that stands in for a compiler, and return its name."""
    path = folder / "compiler"
    path.write_text(f"#!{sys.executable}\nimport pathlib, subprocess, sys\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def counting(folder: Path) -> tuple[str, Callable[[], int]]:
    """Return a compiler that passes everything on, and what tells how often it compiled."""
    real, log = building.find_compiler()[0], folder / "log"
    log.touch()
    body = (
        f"if '--version' not in sys.argv:\n    open({str(log)!r}, 'a').write('x')\n"
        f"sys.exit(subprocess.run([{real!r}, *sys.argv[1:]]).returncode)"
    )
    return compiler(folder, body), lambda: len(log.read_text())


def test_compiled_once(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, count = counting(tmp_path)
    monkeypatch.setenv("CXX", program)
    assert building.load(source).answer() == 42
    assert building.load(source).answer() == 42
    assert count() == 1
    assert [path.name for path in (tmp_path / "cache" / "kernels").iterdir()] == [libraries(source)[0].name]


def test_another_source_compiler_or_processor_is_another_library(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    building.load(source)
    source.write_text(CODE.replace("42", "43"))
    assert building.load(source).answer() == 43
    assert len(libraries(source)) == 2
    real = building.find_compiler()[0]
    newer = f"if '--version' in sys.argv:\n    print('newer')\nelse:\n    subprocess.run([{real!r}, *sys.argv[1:]])"
    monkeypatch.setenv("CXX", compiler(tmp_path, newer))
    building.load(source)
    monkeypatch.setattr(building.machine, "processor_flags", lambda: frozenset({"sse2"}))
    building.load(source)
    assert len({path.name.split("-")[0] for path in libraries(source)}) == 4


@pytest.mark.parametrize("damage", ["cut", "changed", "emptied"])
def test_a_damaged_library_is_built_anew(source: Path, damage: str) -> None:
    building.load(source)
    (path,) = libraries(source)
    content = path.read_bytes()
    # Not in place: the library is loaded here, and its pages are the file's.
    path.unlink()
    path.write_bytes({"cut": content[:1000], "changed": content[:-1] + b"?", "emptied": b""}[damage])
    assert building.load(source).answer() == 42
    (path,) = libraries(source)
    assert path.stem.split("-")[1] == building.durable.sha256(path)


def test_processes_that_build_at_once(source: Path) -> None:
    code = (
        "import pathlib, sys; from resnext.kernels import building\n"
        "print(building.load(pathlib.Path(sys.argv[1])).answer())"
    )
    command = [sys.executable, "-c", code, str(source)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate(timeout=60)[0] for process in processes] == ["42\n"] * 3
    assert libraries(source)
    assert building.load(source).answer() == 42


def reason(source: Path) -> str:
    with pytest.raises(building.BuildError) as caught:
        building.load(source)
    return str(caught.value)


def test_no_compiler(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert reason(source) == "there is no C++ compiler: none of c++, g++, clang++, and CXX names none"


def test_a_compiler_that_does_not_run(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/c++")
    assert reason(source).startswith("the compiler /nowhere/c++ does not run")
    monkeypatch.setenv("CXX", "false")
    assert reason(source) == "the compiler false fails: it does not say why"


def test_a_source_that_does_not_compile(source: Path) -> None:
    source.write_text("int answer() { return forty_two; }")
    assert "forty_two" in reason(source)
    assert not libraries(source)


def test_a_compiler_that_writes_nothing_and_one_that_writes_rubbish(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", compiler(tmp_path, ""))
    assert reason(source).endswith("wrote no library")
    body = "'-o' in sys.argv and pathlib.Path(sys.argv[sys.argv.index('-o') + 1]).write_text('rubbish')"
    monkeypatch.setenv("CXX", compiler(tmp_path, body))
    monkeypatch.setattr(building.machine, "processor_flags", lambda: frozenset({"another"}))
    assert "loaded" in reason(source)


def test_a_cache_that_cannot_be_written(source: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file stands in its place")
    assert str(tmp_path / "cache" / "kernels") in reason(source)


def test_flags_that_change_results_are_not_used() -> None:
    assert not [flag for flag in building.FLAGS if "fast-math" in flag or "unsafe" in flag or "finite" in flag]


def test_a_library_is_a_ctypes_library(source: Path) -> None:
    assert isinstance(building.load(source), ctypes.CDLL)
