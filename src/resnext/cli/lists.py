"""Flags that hold several values, as in `--cardinality 1,2,4`."""

from __future__ import annotations

from resnext.errors import UserError


def names(given: str) -> tuple[str, ...]:
    """Return the words between commas, each once, in their order."""
    return tuple(dict.fromkeys(name.strip() for name in given.split(",") if name.strip()))


def numbers(flag: str, given: str | None) -> tuple[int, ...]:
    """Return the whole numbers between commas, each once, in their order; none for None.

    Raises UserError for what is no list of them.
    """
    if given is None:
        return ()
    try:
        found = tuple(int(word) for word in names(given))
    except ValueError:
        found = ()
    if not found:
        raise UserError(f"--{flag} {given!r} is no list of whole numbers. Write it like 1,16.")
    return tuple(dict.fromkeys(found))
