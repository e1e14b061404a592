"""The service manager's protocol: sd_notify(3), sd_listen_fds(3) and sd_watchdog_enabled(3).

Without their environment variables every function here is a no-op.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator, MutableMapping

_FIRST_FD = 3  # SD_LISTEN_FDS_START


class Notifier:
    """Reports the state of the process to the service manager.

    Args:
        address: its datagram socket, a path or `@` and an abstract name; None if there is no manager.
        watchdog_s: seconds within which it expects a sign of life; None for no watchdog.
    """

    def __init__(self, address: str | None, watchdog_s: float | None = None) -> None:
        self._address = address
        self.watchdog_s = watchdog_s

    @property
    def is_managed(self) -> bool:
        """Whether there is a service manager."""
        return self._address is not None

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str]) -> Notifier:
        """Read and remove the variables that are meant for this process."""
        address = environ.pop("NOTIFY_SOCKET", None)
        period, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", str(os.getpid()))
        watched = period.isdecimal() and int(period) > 0 and pid == str(os.getpid())
        return cls(address, int(period) / 1e6 if watched else None)

    def notify(self, state: str) -> None:
        """Report `ready`, `reloading`, `stopping` or `alive`; an unreachable manager is ignored."""
        text = {
            "ready": "READY=1",
            # Type=notify-reload distinguishes reloads by this time.
            "reloading": f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}",
            "stopping": "STOPPING=1",
            "alive": "WATCHDOG=1",
        }[state]
        if self._address is None or not hasattr(socket, "AF_UNIX"):
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto(text.encode(), address)


def take_sockets(environ: MutableMapping[str, str]) -> list[tuple[str, socket.socket]]:
    """Return the sockets passed to this process, with their names; remove the variables."""
    count, pid = environ.pop("LISTEN_FDS", ""), environ.pop("LISTEN_PID", "")
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    return list(_adopt(int(count), names))


def _adopt(count: int, names: list[str]) -> Iterator[tuple[str, socket.socket]]:
    for index in range(count):
        with contextlib.suppress(OSError):  # descriptors that are no sockets are ignored
            sock = socket.socket(fileno=_FIRST_FD + index)
            sock.set_inheritable(False)
            sock.setblocking(False)
            yield names[index] if index < len(names) else "", sock
