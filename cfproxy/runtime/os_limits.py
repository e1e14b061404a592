"""Process-wide limits: raises the number of open files, disables core dumps."""

from __future__ import annotations

import contextlib
import ctypes
import sys

PR_SET_DUMPABLE = 4  # prctl(2)


def open_files_for(count: int) -> int:
    """Raise the limit of open files to `count` if the system allows it; return the limit.

    A listener that runs out of descriptors stops accepting, so callers must stay below the limit.
    """
    if sys.platform == "win32":
        return count  # sockets are no descriptors there
    import resource  # noqa: PLC0415 - not on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft == unlimited or soft >= count:
        return count
    goal = count if hard == unlimited else min(count, hard)
    # macOS reports an unlimited hard limit but accepts at most OPEN_MAX.
    for limit in (goal, min(goal, 10_240)):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        except (OSError, ValueError):
            continue
        return limit
    return soft


def forbid_core_dumps() -> None:
    """Disable core dumps where the system lets a process do that.

    A dump would contain tokens, keys and the client secret. The limit alone does not reach a handler that
    the kernel pipes dumps to (core(5)), so on Linux the process is marked as not dumpable as well. That
    also closes it to debuggers of the same user (ptrace(2)).
    """
    if sys.platform == "win32":
        return  # crash reports are up to the system there (Windows Error Reporting)
    import resource  # noqa: PLC0415 - not on Windows

    with contextlib.suppress(OSError, ValueError):
        _, hard = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # a C library without it
            ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
