"""The proof notices what it is for: each planted bug is seen, by the check that is meant to see it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from faults import plants, provoking
from faults.runs import Reference


@pytest.mark.parametrize("name", plants.PLANTED)
def test_a_planted_bug_is_noticed(name: str, reference: Callable[[str], Reference], place: Path) -> None:
    found = provoking.provoke(name, reference("warm-up"), place)
    assert any(plants.PLANTED[name].seen_by in each for each in found), found


@pytest.mark.parametrize("name", ["skip fsync", "rotate before verifying", "hash not checked"])
def test_without_the_bug_nothing_is_noticed(name: str, reference: Callable[[str], Reference], place: Path) -> None:
    assert provoking.provoke(name, reference("warm-up"), place, planted=False) == []
