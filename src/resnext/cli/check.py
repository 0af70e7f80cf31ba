"""`resnext check`: the data doctor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resnext.cli import USER_MISTAKE
from resnext.cli.output import Output, console, note, print_json, print_table
from resnext.cli.progress import Display

if TYPE_CHECKING:
    from resnext.data.check import Report
    from resnext.data.findings import Finding

MOST_CLASSES = 20
STYLES = {"error": "bold red", "warning": "bold yellow", "note": "bold cyan"}


def check(data: str, /, *, examples: int = 5, output: Output = Output()) -> int:
    """Look for what is wrong with a data set. Exit code 2 where there are errors, as for any mistake in the data.

    Example: resnext check photos/

    Every image of every split is read: unreadable files, copies within and across splits, conflicting labels, classes
    too small or too uneven, odd sizes and kinds. The second time, only files that changed are read.

    Parameters
    ----------
    data
        Data as `train` takes them; val/ and test/ are looked at, too.
    examples
        How many paths to show of each finding; --json has all.
    """
    from resnext.data.check import check as look

    with Display() as display:
        report = look(data, progress=display.bar, note=display.say)
    if output.json:
        print_json(report.to_dict())
    else:
        _print(report, max(0, examples))
    return USER_MISTAKE if report.count("error") else 0


def _print(report: Report, examples: int) -> None:
    images = sum(report.splits.values())
    print(f"{report.data}: {images:,} images of {len(report.classes):,} classes\n")
    _print_classes(report)
    for side, (least, median, most) in report.sizes.items():
        print(f"{side:6s} {least:g} to {most:g} pixels, median {median:g}")
    print("files  " + ", ".join(f"{count:,} {kind}" for kind, count in report.kinds.items()) + "\n")
    for finding in report.findings:
        _print_finding(finding, examples)
    counts = [(severity, report.count(severity)) for severity in STYLES]
    told = ", ".join(f"{count} {severity}{'s' if count != 1 else ''}" for severity, count in counts if count)
    print(told + "." if told else "Nothing is wrong.")


def _print_classes(report: Report) -> None:
    """Print the classes with the fewest images, and the sum of all."""
    splits = list(report.splits)
    rows = sorted(report.classes.items(), key=lambda row: row[1].get("train", sum(row[1].values())))
    shown = [(name, *(f"{counts[split]:,}" for split in splits)) for name, counts in rows[:MOST_CLASSES]]
    total = ("all", *(f"{count:,}" for count in report.splits.values()))
    print_table(("class", *splits), [*shown, total], right=range(1, len(splits) + 1))
    print()
    if len(rows) > MOST_CLASSES:
        note(f"The {MOST_CLASSES} smallest of {len(rows):,} classes; all with --json.")


def _print_finding(finding: Finding, examples: int) -> None:
    from rich.text import Text

    console().print(Text(finding.severity, style=STYLES[finding.severity]) + Text(f"  {finding.what}."))
    print(f"  {finding.why}\n  → {finding.remedy}")
    reasons = finding.reasons or [""] * len(finding.examples)
    for paths, reason in list(zip(finding.examples, reasons, strict=True))[:examples]:
        more = f" and {len(paths) - 4} more" if len(paths) > 4 else ""
        print("    " + " = ".join(paths[:4]) + more + (f": {reason}" if reason else ""))
    if len(finding.examples) > examples:
        print(f"    … {len(finding.examples) - examples:,} more with --json")
    print()
