"""`resnext networks`: the catalogue."""

from __future__ import annotations

from resnext.cli.output import Output, note, print_json, print_table


def networks(pattern: str = "*", /, *, output: Output = Output()) -> None:
    """List the networks, with their paper, parameters and multiply-adds.

    Example: resnext networks 'resnext*'

    Parameters
    ----------
    pattern
        Names to list; * stands for anything.
    """
    from resnext import catalog

    rows = catalog.rows(pattern)
    if output.json:
        print_json(rows)
        return
    if not rows:
        note(f"No name fits {pattern!r}; `resnext networks` lists all.")
    print_table(
        ("name", "parameters", "multiply-adds", "pixels", "paper"),
        [(r["name"], f"{r['parameters']:,}", f"{r['macs']:,}", r["image_size"], r["paper"]) for r in rows],
        right=(1, 2, 3),
    )
