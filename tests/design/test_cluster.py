"""A study on Ray, on a cluster of this machine; and cores that two trials never share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from making import write_colours
from resnext.design import beginning, cluster
from resnext.design.beginning import Question
from resnext.errors import UserError


def test_trials_are_tasks_of_a_cluster(tmp_path: Path) -> None:
    data = write_colours(tmp_path / "data", 12)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('epochs = 1\nbatch_size = 8\n[data]\nimage_size = 16\nresize = 16\n[machine]\nform = "plain"\n')
    candidates = beginning.named(["cifar_resnet8", "cifar_plain8"])
    study = beginning.begin(str(data), tmp_path / "study", candidates, Question(seeds=1), recipe=str(recipe))
    told: list[str] = []
    cluster.conduct(study, lambda event: told.append(event["event"]), "local")
    assert study.due() == []
    assert told == ["trial", "trial", "finished", "finished"]


def test_a_set_of_cores_is_claimed_once() -> None:
    every = sorted(os.sched_getaffinity(0))
    with cluster.claimed(1) as first, cluster.claimed(1) as second:
        assert len(first) == 1
        assert not set(first) & set(second)
        with cluster.claimed(len(every)) as none:
            assert none == []
    with cluster.claimed(len(every)) as both:
        assert both == every
    with cluster.claimed(len(every) + 1) as more:
        assert more == []


def test_a_cluster_that_is_not_there_is_said(tmp_path: Path) -> None:
    data = write_colours(tmp_path / "data", 12)
    candidates = beginning.named(["cifar_resnet8", "cifar_plain8"])
    study = beginning.begin(str(data), tmp_path / "study", candidates, Question(seeds=1))
    with pytest.raises(UserError, match=r"There is no Ray cluster at 127\.0\.0\.1:9"):
        cluster.conduct(study, lambda event: None, "127.0.0.1:9")
