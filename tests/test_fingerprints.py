"""Seeded logits of every listed network, recorded: a change of what a name computes cannot pass unseen.

After a change that is meant, write them anew: `python tests/test_fingerprints.py`, and say why in the commit.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from resnext import catalog
from resnext.layers import Network

GOLDEN = Path(__file__).parent / "golden" / "fingerprints.json"
CLASSES = 4


def fingerprint(name: str) -> list[float]:
    """Return the logits of one small image and float64 weights, both drawn with seed 0."""
    torch.manual_seed(0)
    network = catalog.create(name, num_classes=CLASSES).double().eval()
    assert isinstance(network, Network)
    # Inception networks end in 1×1 maps at their smallest size, which cannot tell a 1×3 from a 3×1.
    side = 139 if network.smallest == 75 else network.smallest
    images = torch.randn(1, 3, side, side, dtype=torch.float64)
    with torch.inference_mode():
        logits: list[float] = network(images)[0].tolist()
    return logits


RECORDED: dict[str, list[float]] = json.loads(GOLDEN.read_text("utf-8")) if GOLDEN.exists() else {}


def test_every_network_has_a_fingerprint() -> None:
    assert sorted(RECORDED) == sorted(catalog.names())


@pytest.mark.parametrize("name", catalog.names())
def test_seeded_logits_are_those_recorded(name: str) -> None:
    assert fingerprint(name) == pytest.approx(RECORDED[name], rel=1e-6, abs=0)


if __name__ == "__main__":
    written = {name: [float(f"{value:.10g}") for value in fingerprint(name)] for name in catalog.names()}
    lines = [f"  {json.dumps(name)}: {json.dumps(values)}" for name, values in written.items()]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
