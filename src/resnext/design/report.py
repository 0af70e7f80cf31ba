"""A study's answer as files: `index.html`, which needs nothing else, `results.md` and `results.parquet`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resnext import durable, pages
from resnext.design import figures, words
from resnext.design.outcomes import Result, Summary, results, summaries, write_parquet
from resnext.design.study import Study
from resnext.errors import UserError

PAGE, TABLE, ROWS = "index.html", "results.md", "results.parquet"
TRIALS = (
    "candidate",
    "seed",
    "learning rate",
    "top-1",
    "validation",
    "training loss",
    "ms an image",
    "minutes",
    "peak MiB",
)


def write(study: Study) -> list[Path]:
    """Write what is known of a study until now; return the files.

    Raises UserError where no trial that counts is done, or what draws pages is not installed.
    """
    found = results(study)
    if not found:
        raise UserError(f"No trial of {study.place} that counts is done. Go on with --resume.")
    summed = summaries(study, found)
    write_parquet(found, study.place / ROWS)
    durable.write_text(study.place / TABLE, words.markdown(study.plan, summed))
    durable.write_text(study.place / PAGE, page(study, found, summed))
    return [study.place / name for name in (PAGE, TABLE, ROWS)]


def page(study: Study, found: Sequence[Result], summed: Sequence[Summary]) -> str:
    """Return the page; raises UserError where jinja2 or matplotlib is not installed."""
    plan = study.plan
    return pages.render(
        "resnext.design",
        "page.html",
        title=f"{len(summed)} networks on {Path(plan.data).name}",
        done=len(found),
        wanted=len(study.counted()),
        data=plan.data,
        question=words.question(plan),
        verdicts=words.verdicts(plan, summed),
        columns=words.COLUMNS,
        rows=words.rows(summed),
        figures=_figures(study, summed),
        trial_columns=TRIALS,
        trials=[_trial(each) for each in found],
        plan=plan.to_toml(),
    )


def _figures(study: Study, summed: Sequence[Summary]) -> list[dict[str, Any]]:
    described = (
        (
            "Differences, seed by seed",
            "Top-1 of each candidate less that of the reference: a small dot a seed, a large mark the mean with its "
            "95 % interval.",
            figures.differences(study.plan, summed),
        ),
        (
            "Accuracy against what it costs",
            "Top-1 against parameters, multiply-adds, training time and memory: means with 95 % intervals, and seeds.",
            figures.against_costs(summed),
        ),
        (
            "Learning",
            "Training loss and validation top-1 by epoch: thin lines are seeds, thick ones their means.",
            figures.curves(summed),
        ),
    )
    return [{"title": title, "alt": alt, "svg": svg} for title, alt, svg in described if svg]


def _trial(each: Result) -> tuple[str, ...]:
    return (
        each.candidate,
        str(each.seed),
        f"{each.learning_rate:g}",
        f"{each.top1:.4f}",
        f"{each.validation:.4f}",
        f"{each.training_loss:.4f}",
        f"{1e3 * each.step_seconds:.2f}",
        f"{each.seconds / 60:.1f}",
        f"{each.peak_memory_mib:,.0f}",
    )
