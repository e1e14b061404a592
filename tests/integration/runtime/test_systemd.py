"""The service manager's protocol: notifications, and sockets that it hands over."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cfproxy.config import TcpAddress
from cfproxy.errors import ListenError
from cfproxy.runtime import systemd
from cfproxy.runtime.systemd import Notifier, take_sockets
from cfproxy.server.listener import ListeningSocket, ListeningSockets

pytestmark = pytest.mark.skipif(
    not hasattr(socket, "AF_UNIX"), reason="systemd's protocol needs Unix sockets"
)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """Return the address and the socket of a service manager."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(10)
        yield str(tmp_path / "notify"), listening


def test_each_state_is_reported_to_the_manager(manager: tuple[str, socket.socket]) -> None:
    """As in sd_notify(3); a reload has its time, as Type=notify-reload requires."""
    address, listening = manager
    notifier = Notifier(address)
    for state in ("ready", "reloading", "stopping", "alive"):
        notifier.notify(state)
    messages = [listening.recv(256).decode() for _ in range(4)]
    assert messages[0] == "READY=1"
    assert re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=\d+", messages[1])
    assert messages[2:] == ["STOPPING=1", "WATCHDOG=1"]


@pytest.mark.skipif(os.name != "posix" or os.uname().sysname != "Linux", reason="abstract names are Linux's")
def test_an_abstract_address_is_supported() -> None:
    """Some services get such an address from systemd; `@` stands for the leading null byte."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        name = f"cfproxy-test-{os.getpid()}"
        listening.bind(f"\0{name}")
        listening.settimeout(10)
        Notifier(f"@{name}").notify("ready")
        assert listening.recv(256) == b"READY=1"


def test_notifications_without_a_manager_do_nothing(tmp_path: Path) -> None:
    """Nor does a manager that is gone end the proxy."""
    Notifier(None).notify("ready")
    Notifier(str(tmp_path / "gone")).notify("ready")


def test_the_variables_are_removed_and_apply_to_this_process_only() -> None:
    """Child processes must not report as this one; another process's watchdog is ignored."""
    environ = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "10000000", "WATCHDOG_PID": str(os.getpid())}
    assert Notifier.from_environment(environ).watchdog_s == 10
    assert environ == {}
    assert Notifier.from_environment({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "1"}).watchdog_s is None
    assert Notifier.from_environment({"WATCHDOG_USEC": "0"}).watchdog_s is None
    assert Notifier.from_environment({}).watchdog_s is None


def listening_socket() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    return sock


def test_sockets_for_another_process_are_not_taken() -> None:
    """LISTEN_PID names the process."""
    environ = {"LISTEN_FDS": "1", "LISTEN_PID": "1", "LISTEN_FDNAMES": "admin"}
    assert take_sockets(environ) == []
    assert environ == {}


def test_sockets_are_taken_with_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Descriptors start at a fixed number; a missing name is empty."""
    sock = listening_socket()
    monkeypatch.setattr(systemd, "_FIRST_FD", sock.fileno())
    environ = {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
    ((name, taken),) = take_sockets(environ)
    assert (name, taken.getsockname()) == ("", sock.getsockname())
    sock.detach()
    taken.close()


async def test_an_inherited_socket_is_found_by_name_or_address() -> None:
    """The name comes first; without one, the address decides."""
    with listening_socket() as named, listening_socket() as plain:
        address = TcpAddress("127.0.0.1", plain.getsockname()[1])
        sockets = ListeningSockets(None, [("admin", named), ("", plain)])
        try:
            admin = await sockets.open("admin", TcpAddress("127.0.0.1", 1))
            assert admin.port == named.getsockname()[1]
            assert (await sockets.open("default", address)).port == address.port
            again = ListeningSockets(sockets, [("admin", named), ("", plain)])
            assert await again.open("admin", TcpAddress("127.0.0.1", 2)) is admin
        finally:
            sockets.close()


async def test_a_socket_that_can_not_listen_is_refused() -> None:
    """For example a Unix socket without a path."""
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(ListenError, match="neither a TCP socket nor"):
        await ListeningSocket.open(TcpAddress("127.0.0.1", 0), [ours])
