"""Save a login in children that are killed before their 1st, 2nd, 3rd … system call; not a test itself.

Usage: `python killed_save.py FOLDER`. Prints one JSON list with an object for each child: whether it
was killed, before which call, and which record stood afterwards. Ends with the first child that survives.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cfproxy.auth.models import Login, Token
from cfproxy.secret import Secret
from cfproxy.stores.file import FileStore

STEPS = ("open", "write", "utime", "fsync", "close", "replace", "unlink")


def build(serial: int) -> Login:
    token = Token(Secret(f"access-{serial}" * 100), 0.0, 60.0)
    return Login("default", "app", "https://t", "https://a", "s", token, Secret("r"), serial, 0.0)


def arm(countdown: int, told: int) -> None:
    """Make the call number `countdown` of this process kill it, after writing its name to `told`."""
    write = os.write
    left = countdown

    def deadly(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                write(told, name.encode())
                os.kill(os.getpid(), signal.SIGKILL)
            if name == "write" and len(args[1]) > 1:
                args = (
                    args[0],
                    args[1][: len(args[1]) // 2],
                )  # a short write: killed between the halves, too
            return real(*args, **kwargs)

        return call

    for name in STEPS:
        setattr(os, name, deadly(name, getattr(os, name)))


def attempt(store: FileStore, countdown: int) -> dict[str, object]:
    store._save(build(1))
    seen, told = os.pipe()
    child = os.fork()
    if child == 0:
        arm(countdown, told)
        store._save(build(2))
        os._exit(0)
    os.close(told)
    _, status = os.waitpid(child, 0)
    with os.fdopen(seen) as pipe:
        step = pipe.read()
    login = store._load("default")
    stands = next((serial for serial in (1, 2) if login == build(serial)), None)
    return {"killed": os.WIFSIGNALED(status), "status": status, "before": step, "stands": stands}


def main() -> None:
    store = FileStore(Path(sys.argv[1]))
    children = [attempt(store, 1)]
    while children[-1]["killed"] and len(children) < 200:
        children.append(attempt(store, len(children) + 1))
    print(json.dumps(children))


if __name__ == "__main__":
    main()
