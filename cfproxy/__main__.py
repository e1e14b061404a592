"""`python -m cfproxy` and the console script."""

from __future__ import annotations

import gc
import os
import sys

from cfproxy.runtime.process import forbid_core_dumps

# More objects than a start makes: what is imported stays, and looking it over again and again for garbage
# would take a tenth of the start. `running.serve` sets another threshold for what comes after.
GC_START = 200_000


def main() -> None:
    """Run the command line and exit with its code."""
    _fill_standard_streams()
    forbid_core_dumps()
    gc.set_threshold(GC_START)
    # A plugin would see every value of the configuration, and looking for some reads all that is installed.
    os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"
    from cfproxy.cli.main import run  # noqa: PLC0415 - with that

    sys.exit(run(sys.argv[1:]))


def _fill_standard_streams() -> None:
    """Open the null device wherever a standard stream is closed.

    Else the first file or socket that is opened takes its number, and gets what is meant for the stream.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is this one, since those below are open.
            null = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(null, mode, encoding="utf-8"))


if __name__ == "__main__":
    main()
