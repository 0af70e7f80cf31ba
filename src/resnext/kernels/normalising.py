"""Batch norm, the sum with a shortcut and ReLU as one operation on tensors in memory: `normalise.cpp` from Python."""

from __future__ import annotations

import ctypes
from ctypes import c_double, c_int64, c_void_p
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from resnext.kernels import building

SOURCE = Path(__file__).with_name("normalise.cpp")
DTYPES = (torch.float32, torch.bfloat16)


class _Shape(ctypes.Structure):
    _fields_ = (
        ("rows", c_int64),
        ("channels", c_int64),
        ("bfloat16", c_int64),
        ("threads", c_int64),
        ("team", c_void_p),
    )


class _Forward(ctypes.Structure):
    _fields_ = (
        ("shape", _Shape),
        ("images", c_void_p),
        ("skip", c_void_p),
        ("output", c_void_p),
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("mean", c_void_p),
        ("scale", c_void_p),
        ("running_mean", c_void_p),
        ("running_variance", c_void_p),
        ("momentum", c_double),
        ("epsilon", c_double),
        ("relu", c_int64),
    )


class _Backward(ctypes.Structure):
    _fields_ = (
        ("shape", _Shape),
        ("gradient", c_void_p),
        ("second", c_void_p),
        ("images", c_void_p),
        ("output", c_void_p),
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("mean", c_void_p),
        ("scale", c_void_p),
        ("images_gradient", c_void_p),
        ("joined", c_void_p),
        ("weight_gradient", c_void_p),
        ("bias_gradient", c_void_p),
        ("relu", c_int64),
    )


def reason_unavailable() -> str | None:
    """Return None where the kernel is compiled and loaded, which the first call does, or else why not, in words."""
    loaded = _load()
    return loaded if isinstance(loaded, str) else None


def fits(images: Tensor) -> bool:
    """Whether the kernel computes with these images N×C×H×W: channels_last in memory on a CPU, fp32 or bf16."""
    return (
        images.dim() == 4
        and images.device.type == "cpu"
        and images.dtype in DTYPES
        and images.is_contiguous(memory_format=torch.channels_last)
    )


def forward(
    images: Tensor,
    skip: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    running: tuple[Tensor, Tensor] | None,
    *,
    momentum: float,
    epsilon: float,
    relu: bool,
) -> tuple[Tensor, Tensor]:
    """Return relu?(weight·(images − mean)/√(variance + epsilon) + bias + skip?) and the statistics for `backward`.

    Images, skip and the output are N×C×H×W, channels_last, all fp32 or all bf16; weight, bias and `running`, the
    running mean and variance, are C in fp32. These move by `momentum` towards the batch's, in place. The statistics
    are 2×C in fp64: mean and 1/√(variance + epsilon).
    """
    library, team = _loaded()
    channels = images.shape[1]
    output = torch.empty_like(images, memory_format=torch.channels_last)
    statistics = torch.empty(2, channels, dtype=torch.float64)
    call = _Forward(
        shape=_shape(images, team),
        images=_place(images),
        skip=_place(skip),
        output=_place(output),
        weight=_place(weight),
        bias=_place(bias),
        mean=_place(statistics),
        scale=_place(statistics[1]),
        running_mean=_place(running and running[0]),
        running_variance=_place(running and running[1]),
        momentum=momentum,
        epsilon=epsilon,
        relu=relu,
    )
    library.normalise_forward(ctypes.byref(call))
    return output, statistics


def backward(
    gradient: Tensor,
    second: Tensor | None,
    images: Tensor,
    output: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    statistics: Tensor,
    *,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of images, skip, weight and bias, for one of the output, or two that are added.

    Where there was a skip behind the ReLU, or there is a second gradient, the mask is the output's sign; otherwise
    `output` is None, and the mask is computed once more from the images.
    """
    assert relu or output is None, "without ReLU there is no mask"
    assert second is None or output is not None, "two gradients are added behind the mask of the output"
    library, team = _loaded()
    images_gradient = torch.empty_like(images, memory_format=torch.channels_last)
    joined = gradient if output is None else torch.empty_like(images_gradient)
    parameters = torch.empty(2, images.shape[1], dtype=torch.float32)
    call = _Backward(
        shape=_shape(images, team),
        gradient=_place(gradient),
        second=_place(second),
        images=_place(images),
        output=_place(output),
        weight=_place(weight),
        bias=_place(bias),
        mean=_place(statistics),
        scale=_place(statistics[1]),
        images_gradient=_place(images_gradient),
        joined=_place(joined),
        weight_gradient=_place(parameters),
        bias_gradient=_place(parameters[1]),
        relu=relu,
    )
    library.normalise_backward(ctypes.byref(call))
    return images_gradient, joined, parameters[0], parameters[1]


@lru_cache(maxsize=1)
def _load() -> tuple[ctypes.CDLL, int] | str:
    """Return the library and the address of torch's OpenMP team, or why there is none of them."""
    try:
        return building.load(SOURCE), _team()
    except building.BuildError as error:
        return str(error)


def _loaded() -> tuple[ctypes.CDLL, int]:
    loaded = _load()
    assert not isinstance(loaded, str), "asked for without a look at reason_unavailable()"
    return loaded


def _team() -> int:
    """Return the address of the function that runs a body on torch's own OpenMP threads.

    Threads of ours would wait for the cores on which torch's still spin after its last operation, and an OpenMP of
    the compiler's would be a second one in the process. All of GCC's, LLVM's and Intel's have this entry; the one that
    torch uses is found as the loader found it: what is global first, then what torch's library depends on.
    """
    for place in (None, torch._C.__file__):
        try:
            function = ctypes.CDLL(place).GOMP_parallel
        except AttributeError:
            continue
        address = ctypes.cast(function, c_void_p).value
        assert address is not None
        return address
    raise building.BuildError("this build of torch has no OpenMP threads to compute with")


def _shape(images: Tensor, team: int) -> _Shape:
    channels = images.shape[1]
    return _Shape(
        rows=images.numel() // channels,
        channels=channels,
        bfloat16=images.dtype == torch.bfloat16,
        threads=torch.get_num_threads(),
        team=team,
    )


def _place(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
