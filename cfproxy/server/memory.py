"""Gives memory back to the system after many connections were busy at once."""

from __future__ import annotations

import ctypes
import sys


def release_memory() -> None:
    """Return the memory that was freed to the system, where the C library keeps it (glibc).

    Buffers of some 100 KB come from its heap, which shrinks at its end only: one small object there keeps
    hundreds of megabytes in the process.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none, and needs none
        if trim is not None:
            trim(0)
