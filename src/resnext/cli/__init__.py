"""The command line: one file a command, no logic. `resnext --help` imports neither torch nor numpy."""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from resnext.errors import UserError

USER_MISTAKE, OUR_FAULT = 2, 1
ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "Free some space, or choose another place."),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "Choose a place where you may read and write."),
    **dict.fromkeys(
        (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP), "Choose another path."
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and leave with its exit code: 0 done, 2 a mistake the user can mend, 1 a fault of ours."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115  (lives as long as the process)
    _leave(run(arguments))


def _leave(code: int) -> NoReturn:
    """End the process, without letting Python take torch apart, module by module, for more than half a second."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # `run` has flushed what it printed, and told of a failure
            stream.flush()
    os._exit(code)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; mistakes are told in one to three lines on stderr."""
    from cyclopts import CycloptsError

    from resnext.cli.app import app

    try:
        result = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
    except (UserError, CycloptsError) as error:
        return _told(str(error), USER_MISTAKE)
    except KeyboardInterrupt as error:
        return _told(str(error) or "Interrupted.", 128 + signal.SIGINT)
    except BrokenPipeError:
        # The reader of our output went away, as `| head` does; Python must not fail on flushing what is left.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        if (advice := ADVICE.get(error.errno or 0)) is None:
            return _fault()
        return _told(f"{error.filename or 'A file'}: {error.strerror}. {advice}")
    except Exception as error:
        if (code := getattr(error, "exit_code", None)) is not None:
            return _told(str(error), int(code))
        return _fault()
    return result if isinstance(result, int) else 0


def _told(message: str, code: int = USER_MISTAKE) -> int:
    if message:  # a process whose error another one tells has none
        sys.stderr.write(message.strip() + "\n")
    return code


def _fault() -> int:
    traceback.print_exc()
    return _told("This is a fault of resnext, not yours. Please report it with the lines above.", OUR_FAULT)
