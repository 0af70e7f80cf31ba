"""Networks as training leaves them, and a small bundle with an engine in it, as `resnext optimize` leaves it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from making import COLOURS
from resnext import bundle, catalog
from resnext.bundle import Bundle, Contents
from resnext.data.preprocessing import Preprocessing
from resnext.inference.engines import openvino, stored
from resnext.inference.engines.stored import Record

NETWORK = "cifar_resnext11_4x4d"
SETTINGS = {"precision": "fp32", "batch": 4, "streams": 1, "threads": 1}


def as_after_training(name: str, **options: Any) -> nn.Module:
    """Return a network for 7 classes whose batch norms are not the identity."""
    torch.manual_seed(3)
    network = catalog.create(name, num_classes=7, **options)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.bias, std=0.3)
    return network.eval()


def optimised_bundle(place: Path) -> Bundle:
    """Write a bundle of an untrained network for 32×32 pixels, and an OpenVINO engine, merged and stacked, into it."""
    torch.manual_seed(0)
    network = catalog.create(NETWORK, num_classes=len(COLOURS)).eval()
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    written = bundle.write(place, Contents(NETWORK, {}, tuple(COLOURS), Preprocessing(32, 36)), weights)
    merged = {"stage1.block1.spatial.conv": 2}
    graph = openvino.merge_groups(openvino.convert(network, written.contents.preprocessing), merged)
    graph = openvino.stack_maps(graph, 16)
    proof = {"summary": "as good as it was"}
    record = Record("openvino", "fp32", SETTINGS, merged=merged, stacked=16, certificate=proof)
    stored.write(written, record, graph)
    return written
