"""How many unreadable images a run bears."""

from __future__ import annotations

from resnext.data.loader import Loader
from resnext.errors import UserError


def refuse_too_many_unreadable(loader: Loader, share: float, unreadable: int | None = None) -> None:
    """Raise UserError where more than this share of a split's images turned out to be unreadable.

    `unreadable` is how many there are, where other processes met some that this loader did not.
    """
    count = len(loader.split)
    number = len(loader.unreadable) if unreadable is None else unreadable
    if number <= share * count:
        return
    index, reason = next(iter(loader.unreadable.items()), (None, ""))
    example = "" if index is None else f"; for example {loader.split.path(index)}: {reason}"
    raise UserError(
        f"{number} of {count} images cannot be read, more than the share {share:g} that is allowed{example}.\n"
        "Mend or remove them, or allow more with --max-unreadable."
    )
