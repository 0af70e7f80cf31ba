"""Files of a Hugging Face hub, or of a mirror of one that HF_ENDPOINT names; checked by their hashes."""

from __future__ import annotations

import hashlib
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resnext import durable
from resnext.errors import UserError

ANSWER_WITHIN = 3.0
"""Seconds within which a hub must answer before it is taken for unreachable."""


def fetch(repository: str, name: str, revision: str = "") -> Path:
    """Return a file of a repository from the hub's cache, fetching it where it is not there.

    Raises UserError where it cannot be had, naming the file and where to place it, or where its content does not have
    the hash by which the hub knows it.
    """
    found = find(repository, name, revision)
    if found is None:
        raise UserError(f"{repository} has no file {name}.")
    return found


def find(repository: str, name: str, revision: str = "") -> Path | None:
    """Return a file of a repository, as `fetch` does, or None where the repository does not have it."""
    library, errors = _library()
    options = {"repo_id": repository, "filename": name, "revision": revision or None}
    what = f"{repository}/{name}"
    try:
        cached = library.try_to_load_from_cache(**options)
        if isinstance(cached, str):
            return _checked(Path(cached), what)
        _refuse_unreachable(library.constants.ENDPOINT)
        return _checked(Path(library.hf_hub_download(**options)), what)
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"The hub has no repository {repository}, or it is not open to you.") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{repository} has no revision {revision!r}.") from error
    except errors.EntryNotFoundError:
        return None
    except errors.HFValidationError as error:
        raise UserError(f"{repository!r} is no name of a repository. Give hub:OWNER/REPO.") from error
    except UserError:
        raise
    except Exception as error:  # of the network, of several libraries
        raise UserError(unreachable(repository, name, error)) from error


def push(files: Mapping[str, Path | bytes], repository: str, *, private: bool, message: str) -> str:
    """Put files in a repository, in one commit, and return its URL; the repository is made where it is not there.

    Raises UserError where nobody is logged in, the repository is not theirs, or the hub cannot be reached.
    """
    library, errors = _library()
    try:
        library.create_repo(repository, private=private, exist_ok=True)
        operations = [
            library.CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in files.items()
        ]
        made = library.create_commit(repository, operations=operations, commit_message=message)
    except errors.HFValidationError as error:
        raise UserError(f"{repository!r} is no name of a repository. Give OWNER/REPO.") from error
    except (errors.LocalTokenNotFoundError, errors.HfHubHTTPError) as error:
        reason = str(error).strip().split("\n")[0][:160]
        raise UserError(
            f"The hub did not take {repository}: {reason}.\nLog in with `hf auth login`, as an owner of the repository."
        ) from error
    except Exception as error:  # of the network, of several libraries
        raise UserError(
            f"The hub cannot be reached ({type(error).__name__}). Nothing was pushed; try again."
        ) from error
    return str(made.commit_url)


def _library() -> tuple[Any, Any]:
    """Return huggingface_hub and its errors; raises UserError where it is not installed."""
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise UserError(
            "Weights from a hub need the package huggingface_hub. Install it: pip install 'resnext[hub]'."
        ) from error
    return huggingface_hub, errors


def _refuse_unreachable(address: str) -> None:
    """Raise an OSError where no hub answers soon; the library itself would ask again and again, for a minute."""
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=ANSWER_WITHIN).close()
    except urllib.error.HTTPError as error:
        error.close()  # an answer


def unreachable(repository: str, name: str, error: Exception) -> str:
    """Return what a user is told who has no network."""
    reason = str(error).strip().split("\n")[0][:120] or type(error).__name__
    return (
        f"The hub cannot be reached ({reason}), and {name} of {repository} is not in its cache.\n"
        f"Fetch {name} on another machine from https://huggingface.co/{repository} and give its path, with its "
        "config.json beside it."
    )


def _checked(path: Path, what: str) -> Path:
    """Return a file of the cache; raises UserError, and removes it, where it is not what its name in there says.

    The cache calls large files by their SHA-256 and others by their git hash, which is a SHA-1.
    """
    blob = path.resolve()
    known = blob.name
    if re.fullmatch("[0-9a-f]{64}", known):
        found = durable.sha256(blob)
    elif re.fullmatch("[0-9a-f]{40}", known):
        content = blob.read_bytes()
        found = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    else:
        return path
    if found != known:
        path.unlink()
        blob.unlink(missing_ok=True)
        raise UserError(
            f"{what} is damaged: its hash is {found[:16]}, but the hub says {known[:16]}. It was removed; try again."
        )
    return path
