"""`resnext networks`: the catalogue."""

from __future__ import annotations

from resnext.cli.output import Output, note, print_json, print_table


def networks(pattern: str = "*", /, *, output: Output = Output()) -> None:
    """List the networks, with their paper, parameters (in training also those of auxiliary heads) and multiply-adds.

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
        return
    heads = any(row["training_parameters"] != row["parameters"] for row in rows)
    columns = ("name", "parameters", *(["in training"] if heads else []), "multiply-adds", "pixels", "paper")
    print_table(columns, [_cells(row, heads) for row in rows], right=range(1, len(columns) - 1))


def _cells(row: dict[str, object], heads: bool) -> list[str]:
    """Return one row of the table; with `heads`, parameters in training where auxiliary heads make them more."""
    more = row["training_parameters"] != row["parameters"]
    training = [f"{row['training_parameters']:,}" if more else ""] if heads else []
    return [
        str(row["name"]),
        f"{row['parameters']:,}",
        *training,
        f"{row['macs']:,}",
        str(row["image_size"]),
        str(row["paper"]),
    ]
