"""The report of a time-to-accuracy study, in Markdown: one section for each type of machine, and what is missing."""

from __future__ import annotations

import statistics

from accuracy_study import SIDES, Record, Run, Study


def report(study: Study) -> str:
    """Return the report of what is known."""
    if study.plan is None:
        return f"{study.place} holds no study."
    plan = study.plan
    options = ", ".join(f"{name} {value}" for name, value in plan.options.items())
    network = f"{plan.network} ({options})" if options else plan.network
    head = f"{network}, top-1 on validation, runs of at most {plan.limit:g} minutes."
    return "\n\n".join([head, *(_machine(study, place) for place in study.machines)])


def _machine(study: Study, place: str) -> str:
    about = study.machines[place]
    has = "bf16" if about["bf16"] else "no bf16"
    title = f"## {about['processor']}, {about['cores']} cores ({has}), {about['memory_gib']} GiB"
    parts = [title, _times(study, place), _tests(study, place), _search(study, place), _commits(study, place)]
    return "\n\n".join(part for part in [*parts, _missing(study, place)] if part)


def _times(study: Study, place: str) -> str:
    """Return minutes to each threshold with each side's best setting: median (least to most) over seeds, and ratio."""
    judged = study.judged(place)
    if not judged or study.plan is None:
        return ""
    limit = study.plan.limit
    titles = " | ".join(f"{side} ({judged[side][0].setting}), minutes" for side in SIDES)
    lines = [f"| top-1 | {titles} | ours / timm |", "|---|---|---|---|"]
    for threshold in study.plan.thresholds:
        medians, cells = {}, []
        for side in SIDES:
            records = [study.record(run) for run in judged[side]]
            known = [record.minutes_to(threshold, limit) for record in records if record.ended]
            reached = [minutes for minutes in known if minutes is not None]
            if reached and len(reached) == len(known):
                medians[side] = statistics.median(reached)
            cells.append(_cell(reached, len(known)))
        ratio = f"{medians['ours'] / medians['timm']:.2f}" if len(medians) == len(SIDES) else "–"
        lines.append(f"| {threshold:.0%} | {' | '.join(cells)} | {ratio} |")
    return "\n".join(lines)


def _cell(reached: list[float], runs: int) -> str:
    if not reached:
        return "not reached" if runs else "–"
    seeds = f"{runs} seed{'s' if runs > 1 else ''}" if len(reached) == runs else f"only {len(reached)} of {runs} seeds"
    return f"{statistics.median(reached):.1f} ({min(reached):.1f} to {max(reached):.1f}; {seeds})"


def _tests(study: Study, place: str) -> str:
    lines = []
    for side, runs in study.judged(place).items():
        told = [test for run in runs if (test := study.record(run).test)]
        if told:
            top1 = [test["top1"] for test in told]
            spread = f"{statistics.median(top1):.4f} ({min(top1):.4f} to {max(top1):.4f})"
            lines.append(f"| {side} | {spread} | {len(top1)} | {told[0]['images']:,} |")
    if not lines:
        return ""
    return "\n".join(["| side | top-1 on test, median (range) | seeds | images |", "|---|---|---|---|", *lines])


def _search(study: Study, place: str) -> str:
    """Return every setting with the first seed: minutes to each threshold, best top-1, minutes in all."""
    assert study.plan is not None
    shares = " | ".join(f"{threshold:.0%}" for threshold in study.plan.thresholds)
    lines = [
        f"| seed 0, epochs × rate | side | {shares} | best | minutes | ended |",
        "|---|---|" + "---|" * (len(study.plan.thresholds) + 3),
    ]
    for setting in study.plan.all_settings:
        for side in SIDES:
            record = study.record(Run(place, side, setting, 0))
            if record.pieces:
                lines.append(f"| {setting} | {side} | {_row(record, study)} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def _row(record: Record, study: Study) -> str:
    assert study.plan is not None
    times = (record.minutes_to(threshold, study.plan.limit) for threshold in study.plan.thresholds)
    cells = [f"{minutes:.1f}" if minutes is not None else "–" for minutes in times]
    ended = record.ended or "not yet"
    pieces = f", in {len(record.pieces)} pieces" if len(record.pieces) > 1 else ""
    return " | ".join([*cells, f"{record.best:.4f}", f"{record.minutes:.1f}", ended + pieces])


def _commits(study: Study, place: str) -> str:
    records = [record for name, record in study.records.items() if name.startswith(f"runs/{place}/")]
    commits = sorted({str(piece["commit"]) for record in records for piece in record.pieces})
    return f"Commits: {', '.join(commits)}." if commits else ""


def _missing(study: Study, place: str) -> str:
    """Say which runs and tests are missing on this machine."""
    assert study.plan is not None
    runs = [Run(place, side, setting, 0) for setting in study.plan.all_settings for side in SIDES]
    judged = [run for each in study.judged(place).values() for run in each]
    missing = [run for run in dict.fromkeys([*runs, *judged]) if not study.record(run).ended]
    parts = [f"{run.side} {run.setting} seed {run.seed}" for run in missing]
    if not judged and study.plan.seeds > 1:
        parts.append(f"{study.plan.seeds - 1} more seeds of each side's best setting")
    if not judged or any(study.record(run).test is None for run in judged):
        parts.append("the test images")
    return f"Missing: {', '.join(parts)}." if parts else ""
