"""A file from a server: what an earlier attempt left is gone on from, and it has its name only when its hash fits."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path

from resnext.errors import UserError

SILENCE = 30.0
"""Seconds that a server may say nothing."""

ATTEMPTS = 3
"""How often a download that broke off is taken up before the user is told."""


def fetch(url: str, target: Path, expected: str, *, algorithm: str = "md5", silence: float | None = None) -> None:
    """Fetch a file to `target`, whose hash in hexadecimal begins with `expected`; nothing is done where it is there.

    What an earlier attempt left in `target`.part is gone on from. A server may say nothing for `silence` seconds (None:
    SILENCE); one that never says anything is not asked again. Raises UserError where the file cannot be had, or is
    another one.
    """
    if target.exists():
        return
    part = target.with_name(target.name + ".part")
    reason, before = "", _size(part)
    for _ in range(ATTEMPTS):
        try:
            received = _receive(url, part, algorithm, SILENCE if silence is None else silence)
        except urllib.error.HTTPError as error:
            error.close()
            reason = f"the server says {error.code} {error.reason}"
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                part.unlink(missing_ok=True)
        except urllib.error.URLError as error:
            reason = str(getattr(error.reason, "strerror", None) or error.reason)
            break
        except (ConnectionError, TimeoutError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
            if isinstance(error, TimeoutError) and _size(part) == before:
                break
        else:
            if received.startswith(expected):
                part.rename(target)
                return
            part.unlink()
            name = {"md5": "MD5", "sha256": "SHA-256"}[algorithm]
            reason = f"its {name} is {received[: max(len(expected), 8)]}, but should be {expected}"
    raise UserError(
        f"{url} cannot be fetched: {reason}.\n"
        "Check the network and try again (a partial download is resumed), or name a mirror in RESNEXT_MIRROR."
    )


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _receive(url: str, part: Path, algorithm: str, silence: float) -> str:
    """Append to `part` what the server has beyond it, or all anew; return the hash of the whole."""
    digest = hashlib.new(algorithm, usedforsecurity=algorithm != "md5")
    have = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=silence) as response, part.open("a+b") as file:
        if have and response.status == http.HTTPStatus.PARTIAL_CONTENT:
            file.seek(0)
            while piece := file.read(1 << 20):
                digest.update(piece)
        else:
            file.truncate(0)
        length = response.headers["Content-Length"]
        start = file.seek(0, os.SEEK_END)
        while piece := response.read(1 << 16):
            digest.update(piece)
            file.write(piece)
        if length is not None and file.tell() - start < int(length):
            raise ConnectionError("the connection broke off")
    return digest.hexdigest()
