"""What a study's figures support, in words, and as tables of text."""

from __future__ import annotations

from collections.abc import Sequence

from resnext.design.outcomes import Summary
from resnext.design.statistics import LEVEL, Difference, Mean
from resnext.design.study import Plan

COLUMNS = (
    "candidate",
    "parameters",
    "multiply-adds",
    "seeds",
    "top-1",
    "less the reference, points",
    "p (t)",
    "p (sign flips)",
    "training loss",
    "training error",
    "ms an image, training",
    "peak MiB",
)
NONE = "–"


def question(plan: Plan) -> list[str]:
    """Return what is asked, and what is to be known of how it is answered."""
    images = "the test images, once a trial"
    if plan.measure == "validation":
        images = "the validation images, which also chose the epoch whose weights are kept"
    lines = [
        f"Top-1 on {images}. One recipe for all, {plan.epochs} epochs; trials of one seed have the same images in the "
        "same order, so that candidates are compared seed by seed."
    ]
    if plan.rates:
        tried = ", ".join(f"{rate:g}" for rate in plan.rates)
        lines.append(
            f"The learning rate of each candidate is the best on validation of {tried}, tried with a seed of its own."
        )
    if plan.halving:
        lines.append(
            "By successive halving: the worse half, by validation after fewer epochs, was left out. That asks which "
            "candidate is good early, too: one that learns slowly and ends best may have been among those left out."
        )
    return lines


def verdicts(plan: Plan, summaries: Sequence[Summary]) -> list[str]:
    """Return one sentence or two for each candidate: what the data say of it and the reference, and what not."""
    lines = [_verdict(plan.reference, one) for one in summaries if not one.is_reference]
    tested = sum(one.flip_p_holm is not None for one in summaries)
    if tested > 1:
        lines.append(f"The p-values of the {tested} tests are corrected for their number (Holm).")
    few = [one for one in summaries if one.difference is not None and not one.difference.is_testable]
    if few:
        least = min(one.difference.least_p for one in few if one.difference is not None)
        lines.append(
            f"A sign-flip test of few seeds cannot say anything: n seeds give p = 2/2ⁿ at the least, here {least:.2g}; "
            "from six seeds on it can fall below 0.05."
        )
    return lines


def _verdict(reference: str, one: Summary) -> str:
    gap = one.difference
    if gap is None:
        return f"{one.candidate} shares no seed with {reference}, and so is not compared."
    points = f"{signed(gap.mean.mean)} points of top-1 from {reference}"
    if gap.mean.low is None:
        return f"{one.candidate} is {points}, with one seed: nothing follows from that."
    where = f"{one.candidate} is {points} (95 % interval {signed(gap.mean.low)} to {signed(gap.mean.high or 0)})"
    if gap.t_p is None or gap.detectable is None:
        return f"{where}; the difference is the same with every seed."
    least = f"{100 * gap.detectable:.2f} points"
    shown = f"With this spread, {gap.mean.count} seeds would have shown a difference of {least} four times of five."
    if not gap.is_testable or one.flip_p_holm is None:
        return f"{where}, with {gap.mean.count} seeds: too few for a test. {shown}"
    p = f"p {_p(gap.t_p)} by the paired t-test, {_p(one.flip_p_holm)} by sign flips"
    if _excludes_zero(gap.mean) and one.flip_p_holm <= LEVEL:
        return f"{where}: the data support that it is {'better' if gap.mean.mean > 0 else 'worse'} here ({p}). {shown}"
    return f"{where}: the data do not tell the two apart ({p}). {shown}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.0005 else f"= {value:.3f}"


def _excludes_zero(mean: Mean) -> bool:
    assert mean.low is not None
    assert mean.high is not None
    return mean.low > 0 or mean.high < 0


def signed(share: float) -> str:
    """Write a difference of shares in points, with its sign."""
    return f"{100 * share:+.2f}"


def rows(summaries: Sequence[Summary]) -> list[tuple[str, ...]]:
    """Return the table of candidates, as `COLUMNS` names its cells."""
    return [_row(one) for one in summaries]


def _row(one: Summary) -> tuple[str, ...]:
    gap = one.difference
    return (
        one.candidate + (" (reference)" if one.is_reference else ""),
        f"{one.parameters:,}",
        f"{one.macs:,}",
        str(one.top1.count),
        interval(one.top1),
        NONE if gap is None else _gap(gap),
        NONE if gap is None or gap.t_p is None or not gap.is_testable else _p(gap.t_p).removeprefix("= "),
        NONE if one.flip_p_holm is None else _p(one.flip_p_holm).removeprefix("= "),
        f"{one.training_loss.mean:.4f}",
        NONE if one.training_error is None else interval(one.training_error),
        f"{1e3 * one.step_seconds:.2f}",
        f"{one.peak_memory_mib:,.0f}",
    )


def _gap(gap: Difference) -> str:
    if gap.mean.low is None or gap.mean.high is None:
        return signed(gap.mean.mean)
    return f"{signed(gap.mean.mean)} ({signed(gap.mean.low)} to {signed(gap.mean.high)})"


def interval(mean: Mean) -> str:
    """Write a mean of shares with half the width of its interval."""
    if mean.high is None:
        return f"{mean.mean:.4f}"
    return f"{mean.mean:.4f} ± {mean.high - mean.mean:.4f}"


def markdown(plan: Plan, summaries: Sequence[Summary]) -> str:
    """Return the answer as Markdown."""
    table = [COLUMNS, ["---", *("---:" for _ in COLUMNS[1:])], *rows(summaries)]
    lines = ["\n".join("| " + " | ".join(cells) + " |" for cells in table)]
    lines += ["\n".join(question(plan)), *(f"- {line}" for line in verdicts(plan, summaries))]
    return "\n\n".join(lines[:2]) + "\n\n" + "\n".join(lines[2:]) + "\n"
