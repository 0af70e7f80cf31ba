"""Runs that were left alone, each made once, for all tests here."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from faults import runs, setups
from faults.runs import Reference

SEED = 20_251_127


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Reference]:
    """Return a run by its setup's name, left alone from beginning to end."""
    made: dict[str, Reference] = {}
    folder = tmp_path_factory.mktemp("faults")
    runs.warm_up(folder)

    def get(name: str) -> Reference:
        if name not in made:
            setup = setups.make(name, folder)
            if setup.raw["machine"]["form"] == "auto":
                setup = setups.with_merging(setup, runs.early(setup, folder / f"{name}-early"))
            made[name] = runs.uninterrupted(setup, folder / f"{name}-whole")
        return made[name]

    return get


@pytest.fixture
def generator(request: pytest.FixtureRequest) -> random.Random:
    """Return random numbers of the test's own, the same at each run; a failure tells the seed."""
    seed = f"{SEED} {request.node.name}"
    request.node.add_report_section("setup", "seed", f"random.Random({seed!r})")
    return random.Random(seed)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "trial"
