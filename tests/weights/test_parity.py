"""Networks that torchvision or timm also has: their weights, read from their files, give their logits on photos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import resnext
from resnext.weights import architectures

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TOLERANCE = 1e-5
"""Of the largest logit."""

# One of each kind of names; the others, large files all, are slow: `python benchmarks/parity.py` has them, too.
QUICK = {
    "torchvision": {
        "resnet18",
        "resnext50_32x4d",
        "wide_resnet50_2",
        "alexnet",
        "googlenet",
        "inception_v3",
        "vgg11_bn",
    },
    "timm": {"resnet50", "vgg11", "inception_v4", "inception_resnet_v2", "inception_v3"},
}
CASES = [
    pytest.param(source, name, marks=[] if name in QUICK[source] else [pytest.mark.slow])
    for source, names in architectures.OURS.items()
    for name in names
]


@pytest.fixture
def parity(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark's module, importable as the benchmark itself imports it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import parity

    return parity


@pytest.mark.parametrize(("source", "name"), CASES)
def test_their_weights_give_their_logits(
    source: str, name: str, parity: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "theirs"))
    photos = parity.write_photos(tmp_path)
    word, expected = parity.MAKERS[source](name, photos, tmp_path / "theirs")
    difference, bundle = parity.difference(word, tmp_path / "bundle", photos, expected)
    assert difference <= TOLERANCE
    assert bundle.contents.network == architectures.OURS[source][name]
    assert len(bundle.contents.classes) == 1000
    assert bundle.contents.classes[0] == "tench"
    assert ("bsd-3-clause" if source == "torchvision" else "licence") in bundle.contents.licence


def test_the_tags_are_timms_defaults() -> None:
    defaults = {name: timm.get_pretrained_cfg(name) for name in architectures.OURS["timm"]}
    assert {name: cfg.tag for name, cfg in defaults.items() if cfg.has_weights} == architectures.TAGS


def test_other_networks_of_timm_are_refused_with_what_they_have() -> None:
    ours = set(architectures.OURS["timm"])
    others = [name for name in timm.list_models(module="resnet") if name not in ours]
    assert len(others) > 50
    unexplained = []
    for name in others:
        with pytest.raises(resnext.UserError, match=rf"timm:{name} is a network that resnext does not have") as raised:
            architectures.ours("timm", name)
        unexplained += [] if "it has " in str(raised.value) else [name]
    assert set(unexplained) <= {"test_resnet"}
