"""Keep what this process has in its memory from ending up in a file.

Owns: the switches that the system has against core dumps.
Must not know: what is secret.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys

PR_SET_DUMPABLE = 4  # prctl(2)


def forbid_core_dumps() -> None:
    """Switch core dumps off where the system lets a process do that; elsewhere do nothing.

    A dump of a crash would hold tokens, keys and the client secret. The limit alone does not reach a
    handler that the kernel pipes dumps to (core(5)), so on Linux the process is marked as well; that also
    closes it to debuggers of the same user (ptrace(2)).
    """
    if sys.platform == "win32":
        return  # crash reports are the system's there (Windows Error Reporting)
    import resource  # noqa: PLC0415 - not on Windows

    with contextlib.suppress(OSError, ValueError):
        _, hard = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # a C library without it
            ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
