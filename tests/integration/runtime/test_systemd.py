"""What the service manager is told, and the sockets that it hands over."""

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
    """The address at which a service manager listens, and its socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(10)
        yield str(tmp_path / "notify"), listening


def test_the_manager_is_told_each_state(manager: tuple[str, socket.socket]) -> None:
    """In the words of sd_notify(3); a reload with its instant, as Type=notify-reload wants it."""
    address, listening = manager
    notifier = Notifier(address)
    for state in ("ready", "reloading", "stopping", "alive"):
        notifier.tell(state)
    told = [listening.recv(256).decode() for _ in range(4)]
    assert told[0] == "READY=1"
    assert re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=\d+", told[1])
    assert told[2:] == ["STOPPING=1", "WATCHDOG=1"]


@pytest.mark.skipif(os.name != "posix" or os.uname().sysname != "Linux", reason="abstract names are Linux's")
def test_an_abstract_address_is_understood() -> None:
    """It is what systemd gives to some services: `@` stands for the leading zero byte."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        name = f"cfproxy-test-{os.getpid()}"
        listening.bind(f"\0{name}")
        listening.settimeout(10)
        Notifier(f"@{name}").tell("ready")
        assert listening.recv(256) == b"READY=1"


def test_without_a_manager_nothing_happens(tmp_path: Path) -> None:
    """Nor when it is gone: that must not end the proxy."""
    Notifier(None).tell("ready")
    Notifier(str(tmp_path / "gone")).tell("ready")


def test_the_environment_is_read_once_and_for_this_process_only() -> None:
    """Children must not speak in our name; a watchdog for another process is none of ours."""
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


def test_sockets_for_another_process_are_left_alone() -> None:
    """LISTEN_PID says whom they are for."""
    environ = {"LISTEN_FDS": "1", "LISTEN_PID": "1", "LISTEN_FDNAMES": "admin"}
    assert take_sockets(environ) == []
    assert environ == {}


def test_sockets_are_taken_with_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """They begin at a fixed number; a missing name is an empty one."""
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


async def test_what_is_no_listening_address_is_refused() -> None:
    """Such as a Unix socket without a path."""
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(ListenError, match="neither TCP nor"):
        await ListeningSocket.open(TcpAddress("127.0.0.1", 0), ours)
