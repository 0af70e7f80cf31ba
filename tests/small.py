"""One network of each kind that a module of `networks/` can build, small enough to run in a test.

Every module of networks must be here (tests/test_catalog.py), and every entry is held to what a network promises.
"""

from __future__ import annotations

SMALL: dict[str, list[tuple[str, dict[str, object]]]] = {
    "alexnet": [
        ("alexnet", {"channels": (8, 16, 16, 16, 16), "hidden": 32}),
        ("alexnet_one_tower", {"channels": (8, 12, 16, 16, 12), "hidden": 32}),
    ],
    "vgg": [
        ("vgg11_lrn", {"width": 8, "hidden": 32}),
        ("vgg16_c", {"width": 8, "hidden": 32}),
        ("vgg13_bn", {"width": 4, "hidden": 32}),
    ],
    "googlenet": [("googlenet", {}), ("googlenet_torchvision", {})],
    "bn_inception": [("bn_inception", {}), ("bn_inception_slim", {})],
    "inception_v2": [("inception_v2", {})],
    "inception_v3": [("inception_v3", {})],
    "inception_v4": [("inception_v4", {"blocks": (1, 1, 1)})],
    "inception_resnet": [
        ("inception_resnet_v1", {"blocks": (1, 2, 1), "final_survival": 0.5}),
        ("inception_resnet_v2", {"blocks": (1, 1, 1)}),
    ],
    "resnet": [
        ("cifar_resnet8", {}),
        ("cifar_plain8", {}),
        ("cifar_resnet8", {"shortcut": "C"}),
        ("cifar_resnet8", {"final_survival": 0.5}),
        ("resnet18", {"blocks": (1, 1), "width": 8}),
        ("resnet50", {"blocks": (2, 1), "width": 8, "shortcut": "A"}),
        ("resnet50_v1", {"blocks": (1, 1), "width": 8}),
    ],
    "preact_resnet": [
        ("cifar_preact_resnet14", {}),
        ("cifar_preact_resnet164", {"blocks": (2, 1)}),
        ("preact_resnet200", {"blocks": (2, 1), "width": 8, "final_survival": 0.5}),
    ],
    "stochastic_depth": [("cifar_resnet8_stochastic_depth_authors", {})],
    "wide_resnet": [
        ("wrn_16_1", {}),
        ("wrn_10_2_b131", {"final_survival": 0.5}),
        ("wide_resnet18_1.5", {"blocks": (1, 1)}),
        ("wide_resnet50_2", {"blocks": (1, 1)}),
    ],
    "resnext": [
        ("cifar_resnext11_4x4d", {}),
        ("cifar_resnext11_4x4d", {"shortcut": "A"}),
        ("cifar_resnext11_4x4d", {"form": "a"}),
        ("resnext50_32x4d", {"blocks": (1, 1), "cardinality": 2}),
    ],
}
ALL = [pair for pairs in SMALL.values() for pair in pairs]
