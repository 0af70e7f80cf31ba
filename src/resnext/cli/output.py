"""What commands say: results on stdout (JSON alone with --json), everything else on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

if TYPE_CHECKING:
    from rich.console import Console

WIDE = 1000


@Parameter(name="*")
@dataclass(frozen=True)
class Output:
    """How results are printed."""

    json: Annotated[bool, Parameter(negative="")] = False
    """Print JSON and nothing else on stdout."""


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """Print one JSON value on stdout."""
    print(json.dumps(value, indent=indent, ensure_ascii=False), flush=indent is None)


def note(text: str) -> None:
    """Say one line on stderr."""
    print(text, file=sys.stderr, flush=True)


def console() -> Console:
    """Return a rich console on stdout; where that is no terminal, lines are as long as they need to be."""
    from rich.console import Console

    class Ours(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # rich would exit with 1; `cli.run` knows what a closed pipe means

    return Ours(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else WIDE)


def error_console() -> Console:
    """Return a rich console on stderr."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[int] = ()) -> None:
    """Print a table on stdout; columns whose numbers are in `right` are aligned to the right."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index in right else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(str(value)) for value in row))
    console().print(table)
