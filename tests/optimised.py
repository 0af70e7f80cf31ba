"""A small bundle with an engine in it, as `resnext optimize` leaves it behind."""

from __future__ import annotations

from pathlib import Path

import torch

from making import COLOURS
from resnext import bundle, catalog
from resnext.bundle import Bundle, Contents
from resnext.data.preprocessing import Preprocessing
from resnext.inference.engines import openvino, stored
from resnext.inference.engines.stored import Record

NETWORK = "cifar_resnext11_4x4d"
SETTINGS = {"precision": "fp32", "batch": 4, "streams": 1, "threads": 1}


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
