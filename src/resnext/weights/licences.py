"""What may be done with weights, as those who published them say."""

from __future__ import annotations

import re

FORBIDS_SALE = re.compile(r"(^|[-_ ])nc([-_ ]|$)|non-?commercial", re.IGNORECASE)

OF_FILES = (
    (r"(^|[_/])ig_resne|[._]fb_wsl_|-WSL-", "cc-by-nc-4.0"),
    (r"semi_(weakly_)?supervised_|[._]fb_s(w)?sl_|(^|[_/])s(w)?sl_resne", "cc-by-nc-4.0"),
    (r"^resnext[-_]?(50|101).*\.t7$", "cc-by-nc-4.0"),
)
"""Names of files whose licence is known although it does not lie beside them: WSL, SSL, SWSL, the authors' ResNeXts."""

UNKNOWN = "not named; ask those who published them"


def of_file(name: str) -> str:
    """Return the licence of weights of which only the name of their file is known."""
    return next((licence for pattern, licence in OF_FILES if re.search(pattern, name)), UNKNOWN)


def warning(licence: str, source: str) -> str:
    """Return what a user is told before weights are used that may not be used commercially; else nothing."""
    if not FORBIDS_SALE.search(licence):
        return ""
    if licence.endswith("."):
        return licence  # a bundle's, which says so itself
    return f"The weights of {source} may not be used commercially (licence {licence}), nor what is trained from them."


def text(licence: str, source: str) -> str:
    """Return what a bundle says of its weights' licence; what another bundle says of them is kept."""
    if licence.endswith("."):
        return licence
    forbidden = " They may not be used commercially." if FORBIDS_SALE.search(licence) else ""
    return f"The weights come from {source}; their licence: {licence}.{forbidden}"
