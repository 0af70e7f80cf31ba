"""What all tests share: a cache of their own, real images, and no silent skips on CI."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

CIFAR10 = "RESNEXT_CIFAR10"

if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    # Before torch is loaded: threads of several processes that wait for each other on the same cores cost minutes.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // int(workers))))

# Seconds of a process that the tests of a folder may take on two cores; told at the end, not asserted. `make test` runs
# two processes, and is to take at most 20 minutes: 2,400 such seconds.
BUDGETS = {
    "benchmarking": 60,
    "cli": 150,
    "data": 100,
    "design": 150,
    "equivalence": 120,
    "evaluation": 60,
    "faults": 150,
    "inference": 150,
    "kernels": 40,
    "networks": 140,
    "training": 480,
    "weights": 260,
    ".": 320,
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep tests out of the user's cache directories, and off the network."""
    monkeypatch.setenv("RESNEXT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path_factory.getbasetemp() / "torch"))
    monkeypatch.setenv("RESNEXT_MIRROR", "http://127.0.0.1:9")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """On CI a test that would skip fails: something that it needs is missing."""
    report = yield
    if os.environ.get("CI") == "true" and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, which CI does not allow: {report.longrepr}"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell how long the tests of each folder took, beside what they may take."""
    root, seconds = Path(__file__).parent, dict.fromkeys(BUDGETS, 0.0)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                parts = (terminalreporter.config.rootpath / report.location[0]).relative_to(root).parts
                seconds[parts[0] if len(parts) > 1 else "."] += report.duration
    terminalreporter.section("seconds by folder")
    for folder, budget in BUDGETS.items():
        over = "  over its budget" if seconds[folder] > budget else ""
        terminalreporter.write_line(f"tests/{folder:12s} {seconds[folder]:6.1f} of {budget}{over}")


@pytest.fixture(scope="session")
def cifar10(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return CIFAR-10 as image folders, 100 training and 20 test images a class."""
    place = os.environ.get(CIFAR10)
    if not place or not Path(place).exists():
        pytest.skip(f"{CIFAR10} does not name CIFAR-10 as image folders or a zip of them")
    target = tmp_path_factory.mktemp("cifar10")
    if Path(place).is_dir():
        for split, count in (("train", 100), ("test", 20)):
            for folder in sorted((Path(place) / split).iterdir()):
                (target / split).mkdir(exist_ok=True)
                (target / split / folder.name).mkdir()
                for file in sorted(folder.glob("*.jpg"))[:count]:
                    (target / split / folder.name / file.name).write_bytes(file.read_bytes())
        return target
    with zipfile.ZipFile(place) as archive:
        for name in archive.namelist():
            parts = Path(name).parts
            if name.endswith(".jpg") and int(Path(name).stem) < (100 if "train" in parts else 20):
                file = target / Path(*parts[-3:])
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(archive.read(name))
    return target
