"""Unix sockets: who can reach them, what they replace, and who is at the other end."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cfproxy.server.unix_sockets import bound_unix_socket, open_to_others, peer_uid

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this system has no Unix sockets")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[str]:
    """A path for a socket, with a umask that would let everybody in."""
    before = os.umask(0)
    yield str(tmp_path / "s")
    os.umask(before)


def mode_of(path: str) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def left_behind(path: str) -> None:
    """Make a socket file whose owner is gone."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)


def test_only_its_owner_can_use_a_socket_unless_others_are_asked_who_they_are(place: str) -> None:
    """Mode 0600 from the first instant, whatever the umask; 0666 once the peer's user decides."""
    with bound_unix_socket(place):
        assert mode_of(place) == 0o600
        open_to_others(place, others=True)
        assert mode_of(place) == 0o666
        open_to_others(place, others=False)
        assert mode_of(place) == 0o600
    assert os.umask(0) == 0, "the umask is as it was"


def test_a_socket_goes_with_its_owner(place: str) -> None:
    """Nothing is left behind, and a successor's socket is left alone."""
    with bound_unix_socket(place):
        pass
    assert not Path(place).exists()
    with bound_unix_socket(place):
        Path(place).unlink()
        left_behind(f"{place}2")
        left_behind(place)
    assert Path(place).exists()


def test_a_dead_socket_is_replaced(place: str) -> None:
    """What a killed process left does not keep the next one from starting."""
    left_behind(place)
    with bound_unix_socket(place) as bound:
        bound.listen()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(place)


def test_a_live_socket_is_refused_and_goes_on(place: str) -> None:
    """A second cfproxy on the same path says so, and the first one keeps its callers."""
    with bound_unix_socket(place) as first:
        first.listen()
        with pytest.raises(OSError, match="another process listens there"), bound_unix_socket(place):
            pass
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(place)


def test_a_live_socket_is_refused_when_it_is_too_busy_to_answer(place: str) -> None:
    """A full queue of callers is no sign of death."""
    with socket.socket(socket.AF_UNIX) as busy, contextlib.ExitStack() as stack:
        busy.bind(place)
        busy.listen(0)
        for _ in range(3):
            caller = stack.enter_context(socket.socket(socket.AF_UNIX))
            caller.setblocking(False)
            if caller.connect_ex(place):
                break
        else:
            pytest.skip("this system's queues are never full")
        with pytest.raises(OSError, match="another process"), bound_unix_socket(place):
            pass
        assert Path(place).exists()


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_nothing_but_a_socket_is_ever_removed(place: str, kind: str) -> None:
    """A path that was mistyped costs nobody a file."""
    path = Path(place)
    if kind == "file":
        path.write_text("precious")
    elif kind == "folder":
        path.mkdir()
    else:
        left_behind(f"{place}2")
        path.symlink_to(f"{place}2")
    with pytest.raises(OSError, match="something else than a socket"), bound_unix_socket(place):
        pass
    assert path.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a socket's peer")
def test_the_kernel_says_who_connected(place: str) -> None:
    """The user of the connecting process, which can't be made up; nobody for TCP."""
    path = Path(place)
    program = "import os, socket, sys; os.setuid(int(sys.argv[1])); s = socket.socket(socket.AF_UNIX); "
    program += f"s.connect({path.name!r}); input()"
    with bound_unix_socket(place) as bound:
        bound.listen()
        open_to_others(place, others=True)
        users = [os.getuid()]
        if os.getuid() == 0:
            path.parent.chmod(0o711)
            users.append(65534)
        for uid in users:
            caller = subprocess.Popen(
                [sys.executable, "-S", "-c", program, str(uid)], stdin=subprocess.PIPE, cwd=path.parent
            )
            connection, _ = bound.accept()
            with connection:
                assert peer_uid(connection) == uid
            caller.communicate(b"\n")
    assert peer_uid(None) is None
    with socket.socket() as tcp:
        assert peer_uid(tcp) is None
