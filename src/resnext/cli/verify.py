"""`resnext verify`: is a bundle whole?"""

from __future__ import annotations

from pathlib import Path

from resnext.cli import USER_MISTAKE
from resnext.cli.output import Output, note, print_json


def verify(bundle: Path, /, *, output: Output = Output()) -> int:
    """Hash every file of a bundle against what it says of itself. Exit code 2 where something does not match.

    Example: resnext verify runs/flowers
    """
    from resnext.bundle import ENGINES, Bundle

    opened = Bundle.open(bundle)
    problems = opened.verify()
    if output.json:
        print_json({"bundle": str(opened.path), "identity": opened.identity, "problems": problems})
    elif not problems:
        engine = ", and those of its optimised engine" if (opened.path / ENGINES).is_dir() else ""
        print(f"{opened.path} is whole: {len(opened.files)} files match{engine}, identity {opened.identity[:16]}.")
    for problem in [] if output.json else problems:
        note(f"{opened.path}: {problem}")
    return USER_MISTAKE if problems else 0
