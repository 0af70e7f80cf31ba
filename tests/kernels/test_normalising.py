"""The kernel against batch norm, sum and ReLU written out in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from resnext.kernels import normalising

EPSILON = 1e-5
# Half a unit in the last place of what is written, and what float32 loses on the way.
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2.0**-8}


@pytest.fixture(scope="module", autouse=True)
def kernel() -> None:
    if reason := normalising.reason_unavailable():
        pytest.skip(reason)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@dataclass
class Case:
    """What goes in; images are spread around `mean` with a deviation of 1."""

    shape: tuple[int, int, int, int]
    dtype: torch.dtype = torch.float32
    with_skip: bool = True
    relu: bool = True
    mean: float = 0.0
    seed: int = 0

    def tensors(self) -> dict[str, Tensor | None]:
        generator = torch.Generator().manual_seed(self.seed)

        def images(mean: float = 0.0) -> Tensor:
            values = torch.randn(self.shape, generator=generator) + mean
            return values.to(self.dtype).contiguous(memory_format=torch.channels_last)

        channels = self.shape[1]
        return {
            "images": images(self.mean),
            "skip": images() if self.with_skip else None,
            "weight": torch.rand(channels, generator=generator) + 0.5,
            "bias": torch.randn(channels, generator=generator),
            "gradient": images(),
            "second": images() if self.with_skip and self.relu else None,
            "running_mean": torch.randn(channels, generator=generator),
            "running_variance": torch.rand(channels, generator=generator) + 0.5,
        }


def kernel_results(case: Case) -> dict[str, Tensor]:
    given = case.tensors()
    running = given["running_mean"].clone(), given["running_variance"].clone()
    output, statistics = normalising.forward(
        given["images"],
        given["skip"],
        given["weight"],
        given["bias"],
        running,
        momentum=0.3,
        epsilon=EPSILON,
        relu=case.relu,
    )
    images, skip, weight, bias = normalising.backward(
        given["gradient"],
        given["second"],
        given["images"],
        output if case.with_skip and case.relu else None,
        given["weight"],
        given["bias"],
        statistics,
        relu=case.relu,
    )
    gradients = {"images gradient": images, "skip gradient": skip, "weight gradient": weight, "bias gradient": bias}
    if not case.with_skip:
        del gradients["skip gradient"]
    return {"output": output, "running_mean": running[0], "running_variance": running[1], **gradients}


def reference(case: Case) -> dict[str, Tensor]:
    """The same in float64, as the paper writes it (arXiv:1502.03167 algorithm 1), its gradients by autograd."""
    given = {name: None if value is None else value.double() for name, value in case.tensors().items()}
    leaves = [name for name in ("images", "skip", "weight", "bias") if given[name] is not None]
    for name in leaves:
        given[name].requires_grad_()
    images, count = given["images"], case.shape[0] * case.shape[2] * case.shape[3]
    mean = images.sum((0, 2, 3), keepdim=True) / count
    variance = ((images - mean) ** 2).sum((0, 2, 3), keepdim=True) / count
    places = (1, -1, 1, 1)
    output = (images - mean) / torch.sqrt(variance + EPSILON) * given["weight"].view(places) + given["bias"].view(
        places
    )
    if case.with_skip:
        output = output + given["skip"]
    if case.relu:
        output = torch.where(output > 0, output, 0.0)
    gradient = given["gradient"]
    if given["second"] is not None:  # their sum is written in the images' type, as by autograd
        gradient = (gradient + given["second"]).to(case.dtype).double()
    results = dict(zip(leaves, torch.autograd.grad(output, [given[name] for name in leaves], gradient), strict=True))
    unbiased = variance.detach().flatten() * (count / (count - 1))
    return {
        "output": output.detach(),
        "running_mean": 0.7 * given["running_mean"] + 0.3 * mean.detach().flatten(),
        "running_variance": 0.7 * given["running_variance"] + 0.3 * unbiased,
        **{f"{name} gradient": value for name, value in results.items()},
    }


def check(case: Case, found: dict[str, Tensor] | None = None, *, times: float = 1.0) -> None:
    """Every number is the reference's but for rounding.

    That is in proportion to the largest: sums over a channel are, and what is left where large numbers cancel.
    """
    found, expected = found or kernel_results(case), reference(case)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == (case.dtype if value.dim() == 4 else torch.float32)
        tolerance = ROUNDING[case.dtype] if value.dim() == 4 else 2e-6
        error, size = (found[name].double() - value).abs().max(), value.abs().max()
        assert error <= times * tolerance * max(size, 1), f"{case}: {name} is off by {error:.1e} of {size:.1e}"


@pytest.mark.parametrize("dtype", normalising.DTYPES)
@pytest.mark.parametrize("channels", [1, 3, 16, 17, 64, 255, 256, 300, 1030])
@pytest.mark.parametrize(("with_skip", "relu"), [(False, False), (False, True), (True, False), (True, True)])
def test_outputs_gradients_and_running_statistics(
    dtype: torch.dtype, channels: int, with_skip: bool, relu: bool
) -> None:
    check(Case((3, channels, 5, 7), dtype, with_skip, relu))


@pytest.mark.parametrize("dtype", normalising.DTYPES)
@pytest.mark.parametrize("shape", [(2, 5, 1, 1), (1, 64, 2, 1), (1, 3, 1, 3), (2, 300, 1, 1)])
def test_the_smallest_batches(dtype: torch.dtype, shape: tuple[int, int, int, int]) -> None:
    check(Case(shape, dtype))


@pytest.mark.parametrize("shape", [(8, 24, 60, 60), (2, 3, 300, 201), (5, 2048, 7, 7)])
@pytest.mark.parametrize("relu", [False, True])
def test_many_slices_are_merged(shape: tuple[int, int, int, int], relu: bool) -> None:
    assert torch.Size(shape).numel() > 2 * 2**17, "one slice would not show it"
    check(Case(shape, torch.bfloat16, with_skip=False, relu=relu))


@settings(deadline=None, max_examples=40)
@given(
    st.tuples(st.integers(1, 5), st.integers(1, 70), st.integers(1, 9), st.integers(1, 9)),
    st.sampled_from(normalising.DTYPES),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0.0, -3.0, 100.0]),
    st.integers(0, 2**31),
)
def test_any_shape(
    shape: tuple[int, int, int, int], dtype: torch.dtype, with_skip: bool, relu: bool, mean: float, seed: int
) -> None:
    if shape[0] * shape[2] * shape[3] < 6:
        shape = (6, *shape[1:])  # with fewer, a channel may vary by less than rounding, which tells nothing
    found, expected = (
        results(Case(shape, dtype, with_skip, relu, mean, seed)) for results in (kernel_results, reference)
    )
    for name, value in expected.items():
        # In norm: at ReLU's edge float32 may see another sign than float64.
        assert (found[name].double() - value).norm() <= 2 * ROUNDING[dtype] * (value.norm() + 1), name


@pytest.mark.parametrize("mean", [1000.0, -1000.0])
def test_a_mean_of_1000_deviations(mean: float) -> None:
    check(Case((4, 20, 40, 40), mean=mean, relu=False))
    check(Case((4, 20, 40, 40), mean=mean, relu=False, with_skip=False))


def test_a_mean_of_1000_deviations_in_bf16() -> None:
    """At 1000 bf16 counts in fours: these are other images, of several levels, and right for what they are."""
    check(Case((4, 20, 40, 40), torch.bfloat16, mean=1000.0, relu=False))


@pytest.mark.parametrize("first", [0.0, 1e6, -1e4])
def test_a_channel_whose_first_pixel_is_far_from_the_others(first: float) -> None:
    """It is the first guess at the mean. The channel's deviation is large then, too, and little is lost."""
    case = Case((2, 6, 30, 30), mean=1000.0, relu=False)
    tensors = case.tensors()
    tensors["images"][0, :, 0, 0] = first
    case.tensors = lambda: tensors  # type: ignore[method-assign]
    check(case, times=10)


def test_a_variance_that_cancels_is_caught() -> None:
    """The negative control: E[x²] − E[x]² in float32, which the tests above must not let pass."""
    case = Case((4, 20, 40, 40), mean=1000.0, relu=False, with_skip=False)
    tensors, found = case.tensors(), kernel_results(case)
    images, places = tensors["images"], (1, -1, 1, 1)
    mean = images.mean((0, 2, 3))
    variance = (images * images).mean((0, 2, 3)) - mean * mean
    scale = tensors["weight"] / torch.sqrt(variance.clamp(min=0) + EPSILON)
    found["output"] = (images - mean.view(places)) * scale.view(places) + tensors["bias"].view(places)
    with pytest.raises(AssertionError, match="output is off"):
        check(case, found)


def test_the_same_bits_twice_and_from_any_number_of_threads(threads: Callable[[int], None]) -> None:
    case = Case((6, 40, 64, 64), torch.bfloat16)
    runs = []
    for number in (1, 1, 2, 2, 3, 7):
        threads(number)
        runs.append(kernel_results(case))
    for run in runs[1:]:
        assert all(torch.equal(run[name], value) for name, value in runs[0].items())


def test_bf16_is_rounded_as_torch_does() -> None:
    """With weights of zero the output is the bias, rounded: ties, subnormals, the largest, Inf and NaN."""
    bits = torch.randint(-(2**31), 2**31, (4000,), generator=torch.Generator().manual_seed(0))
    ties = torch.arange(0x3F80, 0x3FC0).mul(2**16).add(0x8000)
    special = torch.tensor([0x7F7FFFFF, 0x7F800000, 0x7FC00000, 0x7F800001, 0x00000001, 0x00018000, 0])
    bias = torch.cat([bits, ties, special]).to(torch.int32).view(torch.float32)
    images = torch.randn(2, len(bias), 1, 1).to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    output, _ = normalising.forward(
        images, None, torch.zeros_like(bias), bias, None, momentum=0.0, epsilon=EPSILON, relu=False
    )
    expected = bias.to(torch.bfloat16)
    assert torch.equal(output[0, :, 0, 0].isnan(), expected.isnan())
    assert torch.equal(output[1, :, 0, 0].nan_to_num(nan=0.0), expected.nan_to_num(nan=0.0))


@pytest.mark.parametrize("dtype", normalising.DTYPES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["images", "skip", "gradient"])
def test_nan_and_inf_come_out_where_torch_has_them(dtype: torch.dtype, value: float, where: str) -> None:
    case = Case((2, 9, 4, 4), dtype)
    tensors = case.tensors()
    tensors["second"].zero_()
    tensors[where][1, 2, 3, 0] = value
    case.tensors = lambda: tensors  # type: ignore[method-assign]
    found = kernel_results(case)
    leaves = {name: tensors[name].clone().requires_grad_() for name in ("images", "skip", "weight", "bias")}
    normalised = functional.batch_norm(leaves["images"], None, None, leaves["weight"], leaves["bias"], training=True)
    output = functional.relu(normalised + leaves["skip"])
    output.backward(tensors["gradient"])
    expected = {"output": output.detach(), **{f"{name} gradient": leaf.grad for name, leaf in leaves.items()}}
    for name, values in expected.items():
        assert torch.equal(found[name].isfinite(), values.isfinite()), name
    assert torch.equal(found["output"].isinf(), output.isinf())
