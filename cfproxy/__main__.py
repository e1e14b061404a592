"""`python -m cfproxy` and the console script."""

from __future__ import annotations

import gc
import io
import os
import sys

from cfproxy.runtime.os_limits import forbid_core_dumps

# More objects than a start creates. Imported modules stay, and collecting among them again and again would
# take a tenth of the start. `cli.run.serve` sets another threshold afterwards.
GC_START = 200_000


def main() -> None:
    """Run the command line and exit with its code."""
    _prepare_standard_streams()
    forbid_core_dumps()
    gc.set_threshold(GC_START)
    # A plugin would see every value of the configuration, and the search for plugins scans all packages.
    os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"
    from cfproxy.cli.main import run  # noqa: PLC0415 - after these settings

    sys.exit(run(sys.argv[1:]))


def _prepare_standard_streams() -> None:
    """Open the null device for every standard stream that is closed, and escape what has no encoding.

    Otherwise the next file or socket gets its number, and receives the output meant for the stream. Paths and
    names may contain what the encoding lacks: that of a pipe on Windows is a code page.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            # The system assigns the lowest free number, which is this one.
            null = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(null, mode, encoding="utf-8"))
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    main()
