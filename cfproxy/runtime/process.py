"""How many files and sockets this process may have open.

Owns: the system's limit, raised as far as it goes.
Must not know: what they are used for.
"""

from __future__ import annotations

import sys


def open_files_for(wanted: int) -> int:
    """Raise the limit of open files to `wanted` where the system allows it; return what is allowed.

    A listener that runs out of descriptors stops accepting: whoever has limits of his own must stay below.
    """
    if sys.platform == "win32":
        return wanted  # sockets are no descriptors there
    import resource  # noqa: PLC0415 - not on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft == unlimited or soft >= wanted:
        return wanted
    goal = wanted if hard == unlimited else min(wanted, hard)
    # macOS calls its limit unlimited and takes no more than OPEN_MAX.
    for limit in (goal, min(goal, 10_240)):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        except (OSError, ValueError):
            continue
        return limit
    return soft
