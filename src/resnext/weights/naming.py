"""What torchvision and timm call the modules of our networks.

The tables were written from the modules of torchvision 0.29 and timm 1.0, which have kept their names for years, as
published files hold them. Each maps our name of a module with weights to theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

Names = dict[str, str]


def _numbered(ours: str, theirs: str, count: int, *, first: int = 0) -> Names:
    """Name the layers of a tower, `ours.0` …, which are `theirs` and a number from `first` on."""
    return {f"{ours}.{number}": f"{theirs}{number + first}" for number in range(count)}


def _inside(ours: str, theirs: str, names: Names) -> Names:
    """Put names below those of a module."""
    return {f"{ours}.{mine}": f"{theirs}.{other}" for mine, other in names.items()}


def _blocks(ours: str, theirs: Iterable[str], names: Names) -> Names:
    """Put the same names below each of our blocks, `ours1` …, which are the modules `theirs`."""
    result: Names = {}
    for number, other in enumerate(theirs, 1):
        result |= _inside(f"{ours}{number}", other, names)
    return result


def _convolutions(names: Names) -> Names:
    """Turn names of convolutions with batch norm into those of their two layers."""
    result = {f"{mine}.conv": f"{other}.conv" for mine, other in names.items()}
    return result | {f"{mine}.norm": f"{other}.bn" for mine, other in names.items()}


def resnet(modules: Iterable[str]) -> Names:
    """Name the modules of ResNet, ResNeXt and Wide ResNet as torchvision and timm both do."""
    names = {"stem.conv": "conv1", "stem.norm": "bn1", "head.fc": "fc"}
    numbers = {"first": 1, "second": 2, "reduce": 1, "spatial": 2, "expand": 3}
    for module in modules:
        if module in names:
            continue
        stage, block, part, layer = module.split(".")
        place = f"layer{stage.removeprefix('stage')}.{int(block.removeprefix('block')) - 1}"
        if part == "shortcut":
            names[module] = f"{place}.downsample.{('conv', 'norm').index(layer)}"
        else:
            names[module] = f"{place}.{'bn' if layer == 'norm' else 'conv'}{numbers[part]}"
    return names


def vgg(modules: Iterable[str]) -> Names:
    """Name the modules of VGG as torchvision does, which numbers all layers, those without weights too."""
    modules = list(modules)
    layers = 3 if any(".norm" in module for module in modules) else 2  # convolution, batch norm, ReLU
    names = {"head.fc6": "classifier.0", "head.fc7": "classifier.3", "head.fc8": "classifier.6"}
    start = 0
    for stage in range(1, 6):
        convs = [module for module in modules if module.startswith(f"stage{stage}.conv")]
        for number in range(1, len(convs) + 1):
            names[f"stage{stage}.conv{number}"] = f"features.{start}"
            if layers == 3:
                names[f"stage{stage}.norm{number}"] = f"features.{start + 1}"
            start += layers
        start += 1  # the pool
    return names


def vgg_timm(modules: Iterable[str]) -> Names:
    """Name the modules of VGG as timm does; its fully connected layers are convolutions."""
    head = {"head.fc6": "pre_logits.fc1", "head.fc7": "pre_logits.fc2", "head.fc8": "head.fc"}
    return vgg(modules) | head


def alexnet(modules: Iterable[str]) -> Names:
    """Name the modules of AlexNet as torchvision does."""
    names = {"stem.conv1": "features.0", "stage1.conv2": "features.3"}
    names |= {"stage2.conv3": "features.6", "stage2.conv4": "features.8", "stage2.conv5": "features.10"}
    return names | {"head.fc6": "classifier.1", "head.fc7": "classifier.4", "head.fc8": "classifier.6"}


def googlenet(modules: Iterable[str]) -> Names:
    """Name the modules of GoogLeNet with batch norm as torchvision does."""
    branches = {"branch1x1": "branch1", "branch_pool.project": "branch4.1"}
    for ours, theirs in (("branch3x3", "branch2"), ("branch5x5", "branch3")):
        branches |= {f"{ours}.reduce": f"{theirs}.0", f"{ours}.spatial": f"{theirs}.1"}
    convolutions = {"stem.conv1": "conv1", "stem.reduce": "conv2", "stem.conv2": "conv3"}
    for stage, letters in (("3", "ab"), ("4", "abcde"), ("5", "ab")):
        for letter in letters:
            module = f"inception{stage}{letter}"
            convolutions |= _inside(f"stage{int(stage) - 2}.{module}", module, branches)
    names = {"head.fc": "fc"}
    for ours, theirs in (("auxiliary.stage2_inception4a", "aux1"), ("auxiliary.stage2_inception4d", "aux2")):
        convolutions[f"{ours}.reduce"] = f"{theirs}.conv"
        names |= {f"{ours}.hidden": f"{theirs}.fc1", f"{ours}.fc": f"{theirs}.fc2"}
    return names | _convolutions(convolutions)


def inception_v3(modules: Iterable[str]) -> Names:
    """Name the modules of Inception-v3 as torchvision and timm both do."""
    edges = {"point.0": "branch1x1", "pool.1": "branch_pool"}
    twice = _numbered("long", "branch3x3dbl_", 3, first=1)
    a = edges | _numbered("short", "branch5x5_", 2, first=1) | twice
    c = edges | _numbered("short", "branch7x7_", 3, first=1) | _numbered("long", "branch7x7dbl_", 5, first=1)
    e = edges | {"short.0": "branch3x3_1", "short.1.row": "branch3x3_2a", "short.1.column": "branch3x3_2b"}
    e |= _numbered("long", "branch3x3dbl_", 2, first=1)
    e |= {"long.2.row": "branch3x3dbl_3a", "long.2.column": "branch3x3dbl_3b"}
    to_17 = {"conv1.0": "branch3x3"} | _numbered("conv2", "branch3x3dbl_", 3, first=1)
    to_8 = _numbered("conv1", "branch3x3_", 2, first=1) | _numbered("conv2", "branch7x7x3_", 4, first=1)
    stem = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
    convolutions = {f"stem.{place}": name for place, name in zip((0, 1, 2, 4, 5), stem, strict=True)}
    convolutions |= _blocks("stage1.block", ("Mixed_5b", "Mixed_5c", "Mixed_5d"), a)
    convolutions |= _inside("stage2.reduction", "Mixed_6a", to_17)
    convolutions |= _blocks("stage2.block", ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"), c)
    convolutions |= _inside("stage3.reduction", "Mixed_7a", to_8)
    convolutions |= _blocks("stage3.block", ("Mixed_7b", "Mixed_7c"), e)
    convolutions |= {"auxiliary.stage2.reduce": "AuxLogits.conv0", "auxiliary.stage2.hidden": "AuxLogits.conv1"}
    return {"head.fc": "fc", "auxiliary.stage2.fc": "AuxLogits.fc"} | _convolutions(convolutions)


def _towers(*counts: int, within: str = "", point: bool = True, pool: bool = True) -> Names:
    """Name branches as timm does: `branch0` for a single convolution, `branch1.0` … for the towers after it.

    Ours are `point`, `short`, `long` and `pool` in a module, and `conv1` … where there is no `point`; `counts` are the
    convolutions of the towers, `within` what our names begin with.
    """
    single, *towers = ("point", "short", "long") if point else ("conv1", "conv2", "conv3")
    names = {f"{within}{single}.0": "branch0"}
    for number, (tower, count) in enumerate(zip(towers, counts, strict=False), 1):
        names |= _numbered(f"{within}{tower}", f"branch{number}.", count)
    return names | ({f"{within}pool.1": f"branch{len(counts) + 1}.1"} if pool else {})


def inception_v4(modules: Iterable[str]) -> Names:
    """Name the modules of Inception-v4 as timm does: `features.0` … and `last_linear`."""
    fans = {"short.1.row": "branch1_1a", "short.1.column": "branch1_1b"}
    fans |= {"long.3.row": "branch2_3a", "long.3.column": "branch2_3b"}
    c = {"point.0": "branch0", "short.0": "branch1_0", "pool.1": "branch3.1"} | fans
    c |= _numbered("long", "branch2_", 3)
    convolutions = _numbered("stem", "features.", 3)
    convolutions |= {"stem.3.conv.0": "features.3.conv", "stem.5.conv.0": "features.5.conv"}
    convolutions |= _numbered("stem.4.short", "features.4.branch0.", 2)
    convolutions |= _numbered("stem.4.long", "features.4.branch1.", 4)
    convolutions |= _blocks("stage1.block", map("features.{}".format, range(6, 10)), _towers(2, 3))
    convolutions |= _inside("stage2.reduction", "features.10", _towers(3, point=False, pool=False))
    convolutions |= _blocks("stage2.block", map("features.{}".format, range(11, 18)), _towers(3, 5))
    to_8 = _numbered("conv1", "branch0.", 2) | _numbered("conv2", "branch1.", 4)
    convolutions |= _inside("stage3.reduction", "features.18", to_8)
    convolutions |= _blocks("stage3.block", map("features.{}".format, range(19, 22)), c)
    return {"head.fc": "last_linear"} | _convolutions(convolutions)


def inception_resnet_v2(modules: Iterable[str]) -> Names:
    """Name the modules of Inception-ResNet-v2 as timm does."""
    stem = ("conv2d_1a", "conv2d_2a", "conv2d_2b", "conv2d_3b", "conv2d_4a")
    convolutions = {f"stem.{place}": name for place, name in zip((0, 1, 2, 4, 5), stem, strict=True)}
    convolutions |= _inside("stem.7", "mixed_5b", _towers(2, 3))
    a, b = (_towers(*counts, within="branches.", point=False, pool=False) for counts in ((2, 3), (3,)))
    third = [*(f"repeat_2.{number}" for number in range(9)), "block8"]
    names = {"head.pooled.fc": "classif"}
    for ours, theirs, inner in (
        ("stage1.block", [f"repeat.{number}" for number in range(10)], a),
        ("stage2.block", [f"repeat_1.{number}" for number in range(20)], b),
        ("stage3.block", third, b),
    ):
        convolutions |= _blocks(ours, theirs, inner)
        names |= _blocks(ours, theirs, {"expand": "conv2d"})
    convolutions |= _inside("stage2.reduction", "mixed_6a", _towers(3, point=False, pool=False))
    to_8: Names = {}
    for number, count in enumerate((2, 2, 3)):
        to_8 |= _numbered(f"conv{number + 1}", f"branch{number}.", count)
    convolutions |= _inside("stage3.reduction", "mixed_7a", to_8)
    convolutions["head.expand"] = "conv2d_7b"
    return names | _convolutions(convolutions)


Naming = Callable[[Iterable[str]], Names]
NAMINGS: dict[str, dict[str, Naming]] = {
    "resnet": {"torchvision": resnet, "timm": resnet},
    "resnext": {"torchvision": resnet, "timm": resnet},
    "wide_resnet": {"torchvision": resnet, "timm": resnet},
    "vgg": {"torchvision": vgg, "timm": vgg_timm},
    "alexnet": {"torchvision": alexnet},
    "googlenet": {"torchvision": googlenet},
    "inception_v3": {"torchvision": inception_v3, "timm": inception_v3},
    "inception_v4": {"timm": inception_v4},
    "inception_resnet": {"timm": inception_resnet_v2},
}
"""By the module in `networks/`, how torchvision and timm name its networks' modules."""
