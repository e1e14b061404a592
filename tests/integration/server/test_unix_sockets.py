"""Unix sockets: who can connect, what they replace, and the user of a peer."""

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
    """Return a path for a socket, under a umask that restricts nothing."""
    before = os.umask(0)
    yield str(tmp_path / "s")
    os.umask(before)


def mode_of(path: str) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def create_stale(path: str) -> None:
    """Create a socket file that no process has open."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)


def test_only_the_owner_can_use_a_socket_until_it_is_opened_to_others(place: str) -> None:
    """Mode 0600 from the start, whatever the umask; 0666 once the peer's user is checked."""
    with bound_unix_socket(place):
        assert mode_of(place) == 0o600
        open_to_others(place, others=True)
        assert mode_of(place) == 0o666
        open_to_others(place, others=False)
        assert mode_of(place) == 0o600
    assert os.umask(0) == 0, "the umask is restored"


def test_a_socket_file_is_removed_with_its_owner(place: str) -> None:
    """The socket of a new process at the same path stays."""
    with bound_unix_socket(place):
        pass
    assert not Path(place).exists()
    with bound_unix_socket(place):
        Path(place).unlink()
        create_stale(f"{place}2")
        create_stale(place)
    assert Path(place).exists()


def test_a_stale_socket_is_replaced(place: str) -> None:
    """A killed process does not prevent the next start."""
    create_stale(place)
    with bound_unix_socket(place) as bound:
        bound.listen()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(place)


def test_a_socket_in_use_is_not_replaced(place: str) -> None:
    """A second cfproxy at the same path fails, and the first one keeps its clients."""
    with bound_unix_socket(place) as first:
        first.listen()
        with pytest.raises(OSError, match="another process listens on it"), bound_unix_socket(place):
            pass
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(place)


def test_a_socket_in_use_is_not_replaced_when_its_queue_is_full(place: str) -> None:
    """A refused connection may also mean a full queue."""
    with socket.socket(socket.AF_UNIX) as busy, contextlib.ExitStack() as stack:
        busy.bind(place)
        busy.listen(0)
        for _ in range(3):
            caller = stack.enter_context(socket.socket(socket.AF_UNIX))
            caller.setblocking(False)
            if caller.connect_ex(place):
                break
        else:
            pytest.skip("this system's queues never become full")
        with pytest.raises(OSError, match="another process"), bound_unix_socket(place):
            pass
        assert Path(place).exists()


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_nothing_but_a_socket_is_ever_removed(place: str, kind: str) -> None:
    """A mistyped path loses no file."""
    path = Path(place)
    if kind == "file":
        path.write_text("precious")
    elif kind == "folder":
        path.mkdir()
    else:
        create_stale(f"{place}2")
        path.symlink_to(f"{place}2")
    with pytest.raises(OSError, match="is not a socket"), bound_unix_socket(place):
        pass
    assert path.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports the peer of a socket")
def test_the_kernel_reports_the_user_of_a_peer(place: str) -> None:
    """It is the user of the connecting process, which can't be forged; None for TCP."""
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
