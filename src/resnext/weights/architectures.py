"""Which network of ours one of torchvision's or timm's is, and why another is none."""

from __future__ import annotations

import re

from resnext.errors import UserError, did_you_mean

_RESIDUAL = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"),
)
_VGG = ("vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn")

OURS: dict[str, dict[str, str]] = {
    "torchvision": {name: name for name in (*_RESIDUAL, *_VGG)}
    | {
        "alexnet": "alexnet_one_tower",
        "googlenet": "googlenet_torchvision",
        "inception_v3": "inception_v3_torchvision",
    },
    "timm": {name: name for name in (*_RESIDUAL, *_VGG, "resnet200", "inception_v4", "inception_resnet_v2")}
    | {name: name for name in ("resnext101_32x4d", "resnext101_32x16d", "resnext101_32x32d")}
    | {"inception_v3": "inception_v3_torchvision"},
}
"""By source and their name, the name of our network that computes the same."""

TAGS = dict.fromkeys(("resnext101_32x8d", "wide_resnet101_2", "inception_v3", *_VGG), "tv_in1k") | {
    "resnet18": "a1_in1k",
    "resnet34": "a1_in1k",
    "resnet50": "a1_in1k",
    "resnet101": "a1h_in1k",
    "resnet152": "a1h_in1k",
    "resnext50_32x4d": "a1h_in1k",
    "resnext101_32x4d": "fb_ssl_yfcc100m_ft_in1k",
    "resnext101_32x16d": "fb_wsl_ig1b_ft_in1k",
    "resnext101_32x32d": "fb_wsl_ig1b_ft_in1k",
    "resnext101_64x4d": "c1_in1k",
    "wide_resnet50_2": "racm_in1k",
    "inception_v4": "tf_in1k",
    "inception_resnet_v2": "tf_in1k",
}
"""The weights that timm 1.0 takes for a name without a tag; it has none for resnet200."""

OTHERS: dict[str, tuple[tuple[str, str], ...]] = {
    "torchvision": (("quantized|_q", "quantised to int8"),),
    "timm": (
        (r"^(ecares|ecaresne|seres|sene|gcres|skres|cecares|nf_|nf)", "attention over channels in its blocks"),
        (r"^resnetv2|^preact", "activations before its convolutions, and other normalisation"),
        (r"^resnetrs", "attention over channels and another stem"),
        (r"blur|aa\d", "anti-aliased down-sampling"),
        (r"_gn$|_evos", "another normalisation than batch norm"),
        (r"^res(net|next)\d+d(_|$)", "a stem of three 3×3 convolutions, and average pools in its shortcuts"),
        (r"^res(net|next)\d+[cst](_|$)", "a stem of three 3×3 convolutions"),
        (r"^res(net|next)\d+ts(_|$)|clip", "another stem and other activations"),
        (r"^resnet(10|14|26)", "numbers of blocks that no paper here has"),
    ),
}
"""What networks of these names have that ours do not."""


def ours(source: str, name: str) -> str:
    """Return the name of our network that torchvision's or timm's `name` is; raises UserError for another one."""
    known = OURS[source]
    if name in known:
        return known[name]
    for pattern, what in OTHERS[source]:
        if re.search(pattern, name):
            raise UserError(
                f"{source}:{name} is a network that resnext does not have: it has {what}.\n"
                f"Take one of {', '.join(known)}."
            )
    raise UserError(
        f"{source}:{name} is a network that resnext does not have.{did_you_mean(name, known)}\n"
        f"Take one of {', '.join(known)}."
    )
