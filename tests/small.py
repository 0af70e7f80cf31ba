"""One network of each kind that a module of `networks/` can build, small enough to run in a test.

Every module of networks must be here (tests/test_catalog.py), and every entry is held to what a network promises.
"""

from __future__ import annotations

SMALL: dict[str, list[tuple[str, dict[str, object]]]] = {
    "resnet": [
        ("cifar_resnet8", {}),
        ("cifar_plain8", {}),
        ("cifar_resnet8", {"shortcut": "C"}),
        ("cifar_resnet8", {"final_survival": 0.5}),
        ("resnet18", {"blocks": (1, 1), "width": 8}),
        ("resnet50", {"blocks": (2, 1), "width": 8, "shortcut": "A"}),
        ("resnet50_v1", {"blocks": (1, 1), "width": 8}),
    ],
    "resnext": [
        ("cifar_resnext11_4x4d", {}),
        ("cifar_resnext11_4x4d", {"shortcut": "A"}),
        ("resnext50_32x4d", {"blocks": (1, 1), "cardinality": 2}),
    ],
}
ALL = [pair for pairs in SMALL.values() for pair in pairs]
