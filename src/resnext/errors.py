"""The errors that users see: what happened, why, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake that the user can mend; its message is one to three lines and ends in an action.

    The command line prints the message alone and exits with 2.
    """


class ImageError(UserError):
    """One image file cannot be read.

    `path` names the file as the caller named it; `reason` says why in a few words.
    """

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """Return " Did you mean 'x' or 'y'?" with the nearest candidates, or "" where none is near."""
    near = difflib.get_close_matches(name, list(candidates), n=3, cutoff=0.5)
    if not near:
        return ""
    return " Did you mean " + " or ".join(repr(candidate) for candidate in near) + "?"
