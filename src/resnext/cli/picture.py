"""Pictures in terminals that can show them: kitty's protocol and iTerm2's."""

from __future__ import annotations

import base64
import os
import sys

CHUNK = 4096


def show(png: bytes) -> bool:
    """Show a PNG in the terminal on stdout; return whether it can."""
    if not sys.stdout.isatty():
        return False
    encoded = base64.b64encode(png).decode()
    if "KITTY_WINDOW_ID" in os.environ or "kitty" in os.environ.get("TERM", ""):
        pieces = [encoded[start : start + CHUNK] for start in range(0, len(encoded), CHUNK)]
        for number, piece in enumerate(pieces):
            first = "f=100,a=T," if number == 0 else ""
            more = int(number + 1 < len(pieces))
            sys.stdout.write(f"\x1b_G{first}m={more};{piece}\x1b\\")
    elif os.environ.get("TERM_PROGRAM") in ("iTerm.app", "WezTerm"):
        sys.stdout.write(f"\x1b]1337;File=inline=1;size={len(png)}:{encoded}\a")
    else:
        return False
    sys.stdout.write("\n")
    return True
