"""What a certificate measures, what it lets pass, and that a broken rewrite does not."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from torch import nn

from resnext import catalog
from resnext.engine import probabilities, rank
from resnext.equivalence import certificate
from resnext.equivalence.certificate import CLOSE, LISTED, Certificate, Tally, Verdict, compare, judge, paired_interval
from resnext.equivalence.merging import merge, mergeable
from resnext.errors import UserError

Array = np.ndarray


def tallied(reference: Any, candidate: Any, labels: Any = None) -> Certificate:
    tally = Tally()
    tally.add(np.array(reference, np.float32), np.array(candidate, np.float32), None if labels is None else labels)
    return tally.certificate()


def counted(**fields: Any) -> Certificate:
    """Return a certificate with these fields, all others 0."""
    counts = {"images": 1, "broken": 0, "unusable": 0, "disagreements": 0, "close": 0, "close_calls": 0}
    return Certificate(**{"largest_difference": 0.0, "mean_difference": 0.0, "largest_logit": 1.0, **counts, **fields})


# What is measured


def test_two_images_by_hand() -> None:
    # Margins: softmax(0, ln 3) leads by 1/2; softmax(0, 0.02) by tanh(0.01) = 0.009999667, a close call.
    reference = [[0.0, math.log(3)], [0.0, 0.02]]
    candidate = [[2.0, math.log(3)], [0.5, 0.02]]
    measured = tallied(reference, candidate, np.array([1, 1]))
    assert measured.largest_difference == 2.0
    assert measured.mean_difference == 2.5 / 4
    assert measured.largest_logit == pytest.approx(math.log(3), rel=1e-7)
    assert measured.relative_difference == pytest.approx(2 / math.log(3), rel=1e-7)
    assert (measured.images, measured.disagreements, measured.close, measured.close_calls) == (2, 2, 1, 1)
    assert (measured.agreement, measured.clear_agreement) == (0.0, 0.0)
    (listed,) = measured.clear_disagreements
    assert (listed.image, listed.reference, listed.candidate) == (0, 1, 0)
    assert listed.margin == pytest.approx(0.5, rel=1e-6)
    assert (measured.labelled, measured.reference_correct, measured.candidate_correct) == (2, 2, 0)
    assert (measured.lost, measured.gained, measured.drop) == (2, 0, 100.0)


def test_the_relative_difference_is_of_the_largest_logit_of_all_images() -> None:
    measured = tallied([[0.001, 0.0], [-50.0, 3.0]], [[0.006, 0.0], [-50.0, 3.0]])
    assert measured.relative_difference == pytest.approx(0.005 / 50, rel=1e-5)
    assert tallied([[0.0, 0.0]], [[0.0, 0.0]]).relative_difference == 0
    assert not judge(tallied([[0.0, 0.0]], [[1e-20, 0.0]]), "fp32").passed  # a reference of zeros excuses nothing


def test_the_largest_of_all_batches_and_either_sign_counts() -> None:
    tally = Tally()
    for candidate in ([[1.0, 8.0]], [[4.0, 5.0]], [[4.0, 8.5]]):
        tally.add(np.array([[4.0, 8.0]]), np.array(candidate))
    measured = tally.certificate()
    assert (measured.largest_difference, measured.largest_logit) == (3.0, 8.0)
    assert measured.mean_difference == (3 + 3 + 0.5) / 6


def test_equal_logits_are_ranked_as_predictions_are() -> None:
    generator = np.random.default_rng(1)
    reference, candidate = (generator.integers(0, 3, (400, 5)).astype(np.float32) for _ in range(2))
    differ = rank(reference)[0][:, 0] != rank(candidate)[0][:, 0]
    leads = -np.diff(np.sort(probabilities(reference), axis=1)[:, -2:][:, ::-1], axis=1)[:, 0]
    measured = tallied(reference, candidate)
    assert measured.disagreements == differ.sum()
    assert measured.close == (leads < CLOSE).sum()
    assert measured.close_calls == (differ & (leads < CLOSE)).sum()
    clear = leads >= CLOSE
    assert measured.clear_agreement == pytest.approx(1 - differ[clear].mean())
    assert 0 < measured.close_calls < measured.disagreements


def test_batches_do_not_matter_and_are_taken_one_at_a_time() -> None:
    generator = np.random.default_rng(2)
    pixels = generator.integers(0, 256, (90, 2, 2, 3), np.uint8)
    labels = generator.integers(0, 12, 90)
    alive: list[int] = []

    def reference(batch: Array) -> Array:
        return batch.reshape(len(batch), 12).astype(np.float32) / 16

    def candidate(batch: Array) -> Array:
        return np.round(reference(batch) / 4) * 4

    def batches(size: int) -> Iterator[tuple[Array, Array]]:
        for start in range(0, 90, size):
            alive.append(start)
            yield pixels[start : start + size], labels[start : start + size]
            assert alive[-1] == start  # the next was not asked for before this one was done

    whole, pieces = (compare(reference, candidate, batches(size)).to_dict() for size in (90, 7))
    assert whole.pop("mean_difference") == pytest.approx(pieces.pop("mean_difference"))
    del whole["summary"], pieces["summary"]
    assert whole == pieces
    assert whole["disagreements"] > len(whole["clear_disagreements"]) == LISTED
    margins = [entry["margin"] for entry in whole["clear_disagreements"]]
    assert margins == sorted(margins, reverse=True)


def test_labels_may_be_known_for_some_batches_only() -> None:
    logits = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]] * 9
    batches = [(logits[:3], np.array([0, 1, 1])), (logits[3:], None), (logits[:0], None)]
    measured = compare(lambda x: x, lambda x: x, batches)
    assert (measured.images, measured.labelled, measured.reference_correct, measured.drop) == (4, 3, 2, 0)
    assert compare(lambda x: x, lambda x: x, batches[1:]).drop is None


def test_no_image_no_certificate() -> None:
    for batches in ([], [(np.zeros((0, 3), np.float32), None)]):
        with pytest.raises(UserError, match="no image to compare"):
            compare(lambda x: x, lambda x: x, batches)


def test_nan_and_infinity_are_counted_and_never_pass() -> None:
    good = np.tile(np.float32([0, 1, 5]), (600, 1))
    for bad in (np.nan, np.inf, -np.inf):
        broken = good.copy()
        broken[7, 0] = bad
        measured = tallied(good, broken, np.full(600, 2))
        assert (measured.broken, measured.unusable, measured.disagreements, measured.lost) == (1, 0, 1, 1)
        assert measured.largest_difference == 0  # of the images that can be compared
        for precision in ("fp32", "bf16", "int8"):
            assert not judge(measured, precision, unproved=True).passed
        assert "1 of 600" in judge(measured, "bf16").reason
        json.dumps(measured.to_dict(), allow_nan=False)
        # What the reference gives is no measure, even where the candidate gives the same.
        for other in (good, broken):
            measured = tallied(broken, other)
            assert (measured.broken, measured.unusable) == (0, 1)
            assert "reference" in judge(measured, "fp32").reason
            assert not judge(measured, "fp32").passed


def test_one_class_is_never_a_close_call() -> None:
    measured = tallied([[3.0], [0.0]], [[3.0], [0.0]])
    assert (measured.close, measured.agreement, measured.clear_agreement) == (0, 1, 1)


# What is kept


def test_a_certificate_survives_json() -> None:
    generator = np.random.default_rng(3)
    logits = generator.normal(size=(50, 4))
    measured = tallied(logits, logits + generator.normal(size=(50, 4)), generator.integers(0, 4, 50))
    told = json.loads(json.dumps(measured.to_dict(), allow_nan=False))
    assert Certificate.from_dict(told) == measured
    assert told["agreement"] == measured.agreement
    assert told["drop_interval"] == list(measured.drop_interval or ())
    assert len(measured.summary.splitlines()) == 1
    assert len(measured.clear_disagreements) > 3


@pytest.mark.parametrize(
    "damage",
    [
        {"images": 0},
        {"images": "600"},
        {"disagreements": -1},
        {"largest_difference": math.nan},
        {"largest_logit": None},
        {"clear_disagreements": [{"image": 1}]},
        {"clear_disagreements": 3},
    ],
)
def test_a_damaged_certificate_is_refused(damage: dict[str, Any]) -> None:
    told = counted(images=600).to_dict()
    with pytest.raises(UserError, match="damaged"):
        Certificate.from_dict({**told, **damage})
    with pytest.raises(UserError, match="damaged"):
        Certificate.from_dict({name: value for name, value in told.items() if name not in damage})


def test_a_stored_certificate_is_read_without_torch_and_scipy() -> None:
    code = (
        "import sys; from resnext.equivalence import certificate as c; t = c.Tally(); import numpy as np;"
        "t.add(np.eye(3), np.eye(3), np.arange(3)); d = t.certificate().to_dict(); c.Certificate.from_dict(d).summary;"
        "sys.exit(bool({'torch', 'scipy', 'pyarrow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# The paired interval


def test_published_intervals() -> None:
    # Cavo et al. 2012 (59, 6; 16, 80) and Bentur et al. 2009 (1, 1; 7, 12), as computed in Fagerland, Lydersen and
    # Laake, "Recommended tests and confidence intervals for paired binomial proportions", Stat. Med. 33 (2014).
    assert paired_interval(6, 16, 161) == pytest.approx((-0.1240, -0.0054), abs=5e-5)
    assert paired_interval(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)


def test_intervals_at_the_ends() -> None:
    z2 = 1.959963984540054**2
    for n in (1, 10, 2_000):
        assert paired_interval(0, 0, n) == pytest.approx((-z2 / (n + z2), z2 / (n + z2)))  # Wilson's, of 0 of n
        low, high = paired_interval(n, 0, n)
        assert high == 1
        assert -1 < low < 1
        assert paired_interval(0, n, n) == pytest.approx((-1, -low))


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 300), st.data())
def test_the_interval_is_what_a_score_test_does_not_reject(n: int, data: st.DataObject) -> None:
    lost = data.draw(st.integers(0, n - 1))
    gained = data.draw(st.integers(0, n - 1 - lost))
    low, high = paired_interval(lost, gained, n)
    assert low <= (lost - gained) / n <= high
    assert paired_interval(gained, lost, n) == pytest.approx((-high, -low), abs=1e-9)
    for limit in (low, high):
        assert abs(score(lost, gained, n, limit)) == pytest.approx(1.96, abs=0.01)


def score(lost: int, gained: int, n: int, difference: float) -> float:
    """Return the score statistic, the restricted likelihood maximised by search instead of by its formula."""
    lowest, highest = max(0.0, -difference), (1 - difference) / 2

    def loss(q: float) -> float:
        cells = ((lost, q + difference), (gained, q), (n - lost - gained, 1 - 2 * q - difference))
        return -sum(k * math.log(max(p, 1e-300)) for k, p in cells if k)

    q = minimize_scalar(loss, bounds=(lowest, highest), method="bounded", options={"xatol": 1e-12}).x
    deviation = math.sqrt(n * (2 * q + difference - difference**2))
    return (lost - gained - n * difference) / deviation


def test_the_interval_covers_the_truth_in_95_of_100_experiments() -> None:
    generator = np.random.default_rng(4)
    for losing, gaining in ((0.010, 0.005), (0.02, 0.02), (0.004, 0.0)):
        drawn = generator.multinomial(2_000, (losing, gaining, 1 - losing - gaining), 3_000)
        cases, repeats = np.unique(drawn[:, :2], axis=0, return_counts=True)
        limits = [paired_interval(int(a), int(b), 2_000) for a, b in cases]
        covered = sum(k for (a, b), k in zip(limits, repeats, strict=True) if a <= losing - gaining <= b)
        assert 0.935 < covered / 3_000 < 0.975, (losing, gaining, covered)


# The gates


def test_fp32_passes_up_to_a_thousandth() -> None:
    assert judge(counted(largest_difference=1e-3), "fp32").passed
    refused = judge(counted(largest_difference=1.1e-3), "fp32")
    assert not refused.passed
    assert "0.0011" in refused.reason
    assert "0.001 " in refused.reason


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_bf16_passes_from_99_percent_on(precision: certificate.Precision) -> None:
    passed = judge(counted(images=600, disagreements=6, close=9, close_calls=6), precision)
    assert passed.passed
    assert "6 differ, of these 6 close calls" in passed.reason
    assert "little proof" not in passed.reason
    refused = judge(counted(images=600, disagreements=7, close=9, close_calls=7), precision)  # close calls count
    assert not refused.passed
    assert "98.83 %" in refused.reason
    assert "99 %" in refused.reason
    assert "500" in judge(counted(images=499), precision).reason
    assert judge(counted(images=499), precision).passed


def int8(images: int, disagreements: int = 0, *, unproved: bool = False, **fields: int) -> Verdict:
    return judge(counted(images=images, disagreements=disagreements, **fields), "int8", unproved=unproved)


def test_int8_with_2000_labels_is_judged_by_accuracy_alone() -> None:
    assert int8(2_000, 900, labelled=2_000, lost=30, gained=20).passed
    refused = int8(2_000, 11, labelled=2_000, lost=11, reference_correct=2_000, candidate_correct=1_989)
    assert not refused.passed
    assert "100.00 % → 99.45 %" in refused.reason
    assert "-0.55 points" in refused.reason
    assert "0.5 is allowed" in refused.reason
    assert not int8(2_000, 11, labelled=2_000, lost=11, gained=0, unproved=True).passed


def test_int8_without_labels_is_judged_by_agreement() -> None:
    assert int8(500, 10) == Verdict(True, int8(500, 10).reason)
    assert not int8(500, 11).passed
    assert not int8(500, 11, unproved=True).passed  # enough images: measured, and failed
    assert "97.80 %" in int8(500, 11).reason
    assert int8(1_999, 30, labelled=1_999, lost=9).passed  # too few labels: by agreement
    contradicted = int8(1_999, 30, labelled=1_999, lost=30, gained=0)  # 1.5 points, of which 1.05 surely
    assert not contradicted.passed
    assert "Chance" in contradicted.reason


def test_int8_with_few_images_needs_unproved_and_numbers_that_do_not_contradict() -> None:
    refused = int8(499)
    assert not refused.passed
    assert "500" in refused.reason
    assert "2,000" in refused.reason
    accepted = int8(499, unproved=True)
    assert accepted.passed
    assert accepted.unproved
    assert int8(60, 3, unproved=True).passed  # 3 of 60 may be chance where 2 % are allowed
    assert not int8(60, 5, unproved=True).passed  # 5 may not: 3.8 − 1.2 over a standard deviation of 1.08 is 3.5
    assert not int8(60, 5, unproved=True).unproved  # refused, so nothing to record
    assert not int8(499, unproved=False).unproved
    swapped = {"labelled": 1_500, "lost": 40, "gained": 39}
    assert not int8(1_500, 79, **swapped).passed
    assert int8(1_500, 79, unproved=True, **swapped).unproved  # classes swap, no accuracy is lost
    assert not int8(1_500, 79, unproved=True, labelled=1_500, lost=60, gained=19).passed


def test_proof_that_suffices_is_not_recorded_as_unproved() -> None:
    assert not int8(2_000, 4, labelled=2_000, lost=4, unproved=True).unproved
    assert not int8(500, 4, unproved=True).unproved


# The negative control: broken merges


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(5)
    return catalog.create("cifar_resnext20_8x8d", num_classes=10).eval()


@pytest.fixture(scope="module")
def photos() -> Array:
    """Return smooth coloured patterns, 48 of 32×32 pixels."""
    y, x = np.mgrid[:32, :32] / 32
    numbers = np.random.default_rng(6).uniform(0, 6, (48, 3, 3))
    waves = [np.sin(a * x + b * y + c) for a, b, c in numbers.reshape(-1, 3)]
    return (127 + 120 * np.array(waves).reshape(48, 3, 32, 32)).astype(np.uint8).transpose(0, 2, 3, 1)


def function(network: nn.Module) -> Callable[[Array], Array]:
    def run(pixels: Array) -> Array:
        with torch.inference_mode():
            inputs = torch.from_numpy(pixels.astype(np.float32) / 64 - 2).permute(0, 3, 1, 2)
            return network(inputs).numpy()

    return run


def judged(network: nn.Module, other: nn.Module, photos: Array) -> Verdict:
    batches = [(photos[:32], None), (photos[32:], None)]
    return judge(compare(function(network), function(other), batches), "fp32")


@pytest.fixture
def in_pairs(network: nn.Module) -> nn.Module:
    """Return a copy of the network whose groups are merged two by two."""
    return merge(network, dict.fromkeys(mergeable(network), 2))


def one_weight(merged: nn.Module) -> torch.Tensor:
    """Return a merged weight of the second stage: 128 outputs in 4 groups of 32, two old groups of 16 each."""
    layers = [layer for layer in merged.modules() if isinstance(layer, nn.Conv2d) and layer.groups > 1]
    assert (layers[3].groups, layers[3].weight.shape) == (4, (128, 32, 3, 3))
    return layers[3].weight.data


def test_the_right_merge_passes(network: nn.Module, in_pairs: nn.Module, photos: Array) -> None:
    verdict = judged(network, in_pairs, photos)
    assert verdict.passed, verdict.reason


def test_a_merge_with_one_block_in_the_wrong_place_is_refused(
    network: nn.Module, in_pairs: nn.Module, photos: Array
) -> None:
    weight = one_weight(in_pairs)
    assert weight[32:48, :16].any()
    assert not weight[32:48, 16:].any()
    weight[32:48] = weight[32:48].roll(16, dims=1)
    verdict = judged(network, in_pairs, photos)
    assert not verdict.passed, verdict.reason


def test_a_merge_with_one_sign_wrong_is_refused(network: nn.Module, in_pairs: nn.Module, photos: Array) -> None:
    weight = one_weight(in_pairs)
    weight.view(-1)[weight.abs().argmax()] *= -1
    verdict = judged(network, in_pairs, photos)
    assert not verdict.passed, verdict.reason
