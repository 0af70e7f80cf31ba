"""Every published or derived size of a network, to the last digit, in what `resnext networks --json` prints.

Sources: the papers' tables, torchvision's and timm's metadata, TF-slim, and arithmetic from the layer tables.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache

import pytest
import torch
from torch import nn

from resnext import catalog
from resnext.complexity import describe

# Name: (parameters, multiply-adds; a text is rounded, in units of 10⁹; None is not published).
ROWS: dict[str, tuple[int, int | str | None]] = {
    "alexnet": (60_965_224, 724_406_816),
    "alexnet_ungrouped": (62_378_344, 1_135_256_096),
    "alexnet_one_tower": (61_100_840, 714_188_480),
    "vgg11": (132_863_336, 7_609_090_048),
    "vgg11_lrn": (132_863_336, 7_609_090_048),
    "vgg13": (133_047_848, 11_308_466_176),
    "vgg16_c": (133_638_952, 11_770_888_192),
    "vgg16": (138_357_544, 15_470_264_320),
    "vgg19": (143_667_240, 19_632_062_464),
    "vgg11_bn": (132_868_840, 7_609_090_048),
    "vgg13_bn": (133_053_736, 11_308_466_176),
    "vgg16_bn": (138_365_992, 15_470_264_320),
    "vgg19_bn": (143_678_248, 19_632_062_464),
    "googlenet": (6_998_552, 1_582_671_872),
    "googlenet_bn": (7_005_832, 1_582_671_872),
    "googlenet_torchvision": (6_624_904, 1_498_376_192),
    "bn_inception": (11_285_224, 2_032_600_064),
    "bn_inception_slim": (11_188_288, 1_934_857_216),
    "inception_v3": (23_834_568, 5_713_216_096),
    "inception_v3_torchvision": (23_834_568, 5_713_216_096),
    "inception_v4": (42_679_816, 12_253_974_624),
    "inception_resnet_v1": (22_756_328, 6_206_361_696),
    "inception_resnet_v1_facenet": (24_357_096, 6_308_597_856),
    "inception_resnet_v2": (55_843_464, 13_155_794_016),
    "inception_resnet_v2_paper": (32_433_928, 9_257_953_632),
    "resnet18": (11_689_512, 1_814_073_344),
    "resnet34": (21_797_672, 3_663_761_408),
    "resnet18_a": (11_515_688, 1_794_805_760),
    "resnet34_a": (21_623_848, 3_644_493_824),
    "plain18": (11_515_688, 1_794_805_760),
    "plain34": (21_623_848, 3_644_493_824),
    "resnet34_c": (22_716_840, 3_830_747_136),
    "resnet50": (25_557_032, 4_089_184_256),
    "resnet101": (44_549_160, 7_801_405_440),
    "resnet152": (60_192_808, 11_513_626_624),
    "resnet50_v1": (25_557_032, 3_857_973_248),
    "resnet101_v1": (44_549_160, 7_570_194_432),
    "resnet152_v1": (60_192_808, 11_282_415_616),
    "preact_resnet200": (64_666_152, 15_007_481_856),
    "resnet200": (64_673_832, 15_007_481_856),
    "resnext50_32x4d": (25_028_904, 4_230_479_872),
    "resnext50_1x64d": (25_557_032, 4_089_184_256),
    "resnext101_1x64d": (44_549_160, 7_801_405_440),
    "resnext50_2x40d": (25_425_000, "4.125"),
    "resnext50_4x24d": (25_292_968, "4.160"),
    "resnext50_8x14d": (25_603_016, "4.267"),
    "resnext101_32x4d": (44_177_704, 7_969_996_800),
    "resnext101_2x40d": (44_456_296, "7.844"),
    "resnext101_4x24d": (44_363_432, "7.886"),
    "resnext101_8x14d": (45_104_328, "8.077"),
    "resnext101_1x100d": (85_611_336, 15_272_862_720),
    "resnext101_2x64d": (84_198_184, 15_123_087_360),
    "resnext101_64x4d": (83_455_272, 15_460_270_080),
    "resnext101_32x8d": (88_791_336, 16_414_015_488),
    "resnext152_32x4d": (59_951_400, 11_709_513_728),
    "resnet50_no_shortcut": (22_780_456, "3.730"),
    "resnext50_32x4d_no_shortcut": (22_252_328, "3.871"),
    "wide_resnet50_2": (68_883_240, 11_398_021_120),
    "wide_resnet101_2": (126_886_696, 22_753_050_624),
    "wide_resnet18_1.5": (25_875_816, "3.87"),
    "wide_resnet18_2": (45_618_216, "6.70"),
    "wide_resnet18_3": (101_783_976, "14.72"),
    "wide_resnet34_1.5": (48_613_608, "8.03"),
    "wide_resnet34_2": (86_036_008, "14.09"),
    "cifar_resnet20": (269_722, "0.0406"),
    "cifar_resnet32": (464_154, "0.0689"),
    "cifar_resnet44": (658_586, "0.0972"),
    "cifar_resnet56": (853_018, "0.1255"),
    "cifar_resnet110": (1_727_962, "0.2529"),
    "cifar_resnet1202": (19_421_274, "2.8292"),
    "cifar_resnet152": (2_408_474, None),
    "cifar_resnet20_b": (272_474, None),
    "cifar_resnet56_b": (855_770, None),
    "cifar_resnet110_b": (1_730_714, None),
    "cifar_plain20": (269_722, "0.0406"),
    "cifar_plain32": (464_154, "0.0689"),
    "cifar_plain44": (658_586, "0.0972"),
    "cifar_plain56": (853_018, "0.1255"),
    "cifar_plain110": (1_727_962, "0.2529"),
    "cifar_resnet110_stochastic_depth": (1_727_962, "0.2529"),
    "cifar_resnet152_stochastic_depth": (2_408_474, None),
    "cifar_resnet1202_stochastic_depth": (19_421_274, "2.8292"),
    "resnet152_stochastic_depth": (60_192_808, 11_513_626_624),
    "cifar_resnet110_stochastic_depth_authors": (1_732_010, None),
    "cifar_preact_resnet110": (1_727_962, None),
    "cifar_preact_resnet164": (1_703_258, None),
    "cifar_preact_resnet1001": (10_327_706, "1.488"),
    "wrn_16_4": (2_748_890, None),
    "wrn_16_8": (10_961_370, "1.548"),
    "wrn_16_10": (17_116_634, None),
    "wrn_22_8": (17_158_106, None),
    "wrn_22_10": (26_797_914, None),
    "wrn_28_2": (1_467_610, None),
    "wrn_28_10": (36_479_194, 5_243_328_768),
    "wrn_28_12": (52_517_850, None),
    "wrn_40_1": (563_930, None),
    "wrn_40_2": (2_243_546, None),
    "wrn_40_4": (8_949_210, None),
    "wrn_40_8": (35_748_314, None),
    "wrn_40_10": (55_841_754, None),
    "cifar_resnext29_1x64d": (4_914_250, None),
    "cifar_resnext29_2x64d": (9_130_314, None),
    "cifar_resnext29_4x64d": (17_562_442, None),
    "cifar_resnext29_8x64d": (34_426_698, "5.387"),
    "cifar_resnext29_16x64d": (68_155_210, "10.689"),
    "cifar_resnext29_1x128d": (13_775_178, None),
    "cifar_resnext29_1x256d": (45_431_626, None),
    "cifar_resnext29_32x4d": (4_775_754, None),
    "cifar_resnext29_4x32d": (6_807_882, None),
    "cifar_resnext29_2x32d": (3_753_034, None),
}

# Listed, but no digit-exact size was published: our own counts stand in the tables.
NOT_PUBLISHED = {"inception_v2"}
NOT_PUBLISHED |= {f"wrn_40_2_{kind}" for kind in ("b13", "b31", "b131", "b311", "l1", "l3", "l4")}
NOT_PUBLISHED |= {"wrn_22_2_b313", "wrn_52_1"}

WITH_AUXILIARY_HEADS = {
    "googlenet": 13_378_280,
    "googlenet_bn": 13_385_816,
    "googlenet_torchvision": 13_004_888,
    "inception_v3": 27_161_264,
    "inception_v3_torchvision": 27_161_264,
    "inception_v4": 46_039_280,
    "inception_resnet_v2": 59_211_120,
}

# The same networks with other heads or options: (name, what differs, parameters).
DESCRIBED: list[tuple[str, dict[str, object], int]] = [
    ("cifar_resnet110", {"num_classes": 100}, 1_733_812),
    ("wrn_28_10", {"num_classes": 100}, 36_536_884),
    ("wrn_40_4", {"num_classes": 100}, 8_972_340),
    ("wrn_16_8", {"num_classes": 100}, 11_007_540),
    ("wrn_40_10", {"num_classes": 100}, 55_899_444),
    ("cifar_resnext29_8x64d", {"num_classes": 100}, 34_518_948),
    ("cifar_resnext29_16x64d", {"num_classes": 100}, 68_247_460),
    ("bn_inception", {"bias": True}, 11_295_240),
    ("resnet50", {"shortcut": "none"}, 22_780_456),
    ("resnet34", {"shortcut": "A"}, 21_623_848),
    # Bodies: what is left without a classifier f·n + n for one class.
    ("resnet18", {"num_classes": 1}, 11_176_512 + 513),
    ("resnet34", {"num_classes": 1}, 21_284_672 + 513),
    ("resnet50", {"num_classes": 1}, 23_508_032 + 2_049),
    ("resnet101", {"num_classes": 1}, 42_500_160 + 2_049),
    ("resnet152", {"num_classes": 1}, 58_143_808 + 2_049),
    ("resnext50_32x4d", {"num_classes": 1}, 22_979_904 + 2_049),
    ("resnext101_32x4d", {"num_classes": 1}, 42_128_704 + 2_049),
    ("resnext101_64x4d", {"num_classes": 1}, 81_406_272 + 2_049),
    ("resnext101_32x8d", {"num_classes": 1}, 86_742_336 + 2_049),
]

# Channels that batch norm acts on.
NORMALISED = {
    "resnet18": 4_800,
    "resnet34": 8_512,
    "resnet50": 26_560,
    "resnet101": 52_672,
    "resnet152": 75_712,
    "inception_v3": 17_216,
    "inception_v4": 31_584,
    "inception_resnet_v2": 30_272,
}


@cache
def printed() -> dict[str, dict[str, object]]:
    """Return what the command prints, by name."""
    command = [sys.executable, "-m", "resnext", "networks", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return {row["name"]: row for row in json.loads(done.stdout)}


def held(value: object, published: int | str | None) -> int:
    """Compare one number with what is published; return 1, or 0 where nothing is."""
    assert isinstance(value, int)
    if published is None:
        return 0
    if isinstance(published, str):
        digits = len(published.partition(".")[2])
        assert f"{value / 1e9:.{digits}f}" == published
    else:
        assert value == published
    return 1


def row_held(name: str) -> int:
    """Hold one printed row to what is published; return how many numbers were compared."""
    row, (parameters, macs) = printed()[name], ROWS[name]
    count = held(row["parameters"], parameters) + held(row["macs"], macs)
    return count + held(row["training_parameters"], WITH_AUXILIARY_HEADS.get(name, parameters))


@pytest.mark.parametrize("name", ROWS)
def test_the_catalogue_prints_the_published_numbers(name: str) -> None:
    assert row_held(name) >= 2


def test_every_listed_network_is_here_or_said_not_to_be_published(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(ROWS).isdisjoint(NOT_PUBLISHED)
    assert set(ROWS) | NOT_PUBLISHED == set(printed()) == set(catalog.names())
    count = sum(map(row_held, ROWS))
    assert count == 3 * len(ROWS) - sum(macs is None for _, macs in ROWS.values())
    with capsys.disabled():
        print(f"\npublished numbers met: {count}, of {len(ROWS)} networks")


@pytest.mark.parametrize(("name", "options", "parameters"), DESCRIBED)
def test_other_heads_and_options_have_the_published_numbers(
    name: str, options: dict[str, object], parameters: int
) -> None:
    assert describe(name, **options)["parameters"] == parameters  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NORMALISED)
def test_normalised_channels(name: str) -> None:
    with torch.device("meta"):
        network = catalog.create(name)
    named = [(key, part) for key, part in network.named_modules() if isinstance(part, nn.BatchNorm2d)]
    assert sum(part.num_features for key, part in named if not key.startswith("auxiliary")) == NORMALISED[name]


@pytest.mark.parametrize(
    ("name", "keras", "gamma", "biases"),
    [
        ("resnet50", 25_636_712, True, True),
        ("inception_v3", 23_851_784, False, False),
        ("inception_resnet_v2", 55_873_736, False, False),
    ],
)
def test_what_keras_counts_follows_from_ours(name: str, keras: int, gamma: bool, biases: bool) -> None:
    """Keras counts running statistics; its Inceptions have no gamma, its ResNet has biases beside batch norm."""
    parameters = printed()[name]["parameters"]
    assert isinstance(parameters, int)
    assert parameters + (2 + biases - (not gamma)) * NORMALISED[name] == keras


def test_projections_of_option_b_cost_173_824() -> None:
    sizes = {name: ROWS[name][0] for name in ("resnet18", "resnet18_a", "resnet34", "resnet34_a")}
    assert sizes["resnet18"] - sizes["resnet18_a"] == sizes["resnet34"] - sizes["resnet34_a"] == 173_824
