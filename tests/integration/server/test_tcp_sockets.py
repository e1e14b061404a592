"""TCP sockets to listen on: both loopbacks for localhost, one port for both, and both families for `[::]`."""

from __future__ import annotations

import asyncio
import errno
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from cfproxy.config import TcpAddress
from cfproxy.errors import ListenError
from cfproxy.server import tcp_sockets
from cfproxy.server.listener import ListeningSocket, ListeningSockets
from cfproxy.server.tcp_sockets import bind_tcp
from tests.integration.server.test_listener import Echo

BOTH = ("127.0.0.1", "::1")


def _has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6 loopback")
namespaces = pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode != 0,
    reason="network namespaces need root",
)


def server_at(host: str, port: int = 0) -> socket.socket:
    """Listen as another program does."""
    return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)


async def echoes(host: str, port: int | None) -> bool:
    """Whether what listens there is an `Echo`."""
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(b"x")
    answer = await reader.read(1)
    writer.close()
    return answer == b"x"


@ipv6
@pytest.mark.parametrize("name", ["localhost", "gw.localhost"])
async def test_localhost_means_both_loopbacks_with_one_port(name: str) -> None:
    """Also when the system chooses the port; no name is looked up."""
    listening = await ListeningSocket.open(TcpAddress(name, 0))
    with closing(listening):
        listening.serve(Echo)
        assert [await echoes(host, listening.port) for host in BOTH] == [True, True]
        assert str(listening.address) == f"{name}:{listening.port}"


@ipv6
@pytest.mark.parametrize("host", BOTH)
async def test_a_port_that_another_program_has_on_one_loopback_is_reported(host: str) -> None:
    """With that address, since the other one is free."""
    with server_at(host) as theirs:
        port = theirs.getsockname()[1]
        with pytest.raises(ListenError) as raised:
            await ListeningSocket.open(TcpAddress("localhost", port))
    assert f"cannot listen on {TcpAddress(host, port)}: Address already in use" in str(raised.value)
    # Neither address stays occupied by the attempt.
    (await ListeningSocket.open(TcpAddress("localhost", port))).close()


@ipv6
async def test_a_chosen_port_that_is_taken_on_the_other_loopback_is_chosen_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The system chooses for one address at a time."""
    with server_at("::1") as theirs:
        taken = theirs.getsockname()[1]
        places, bind = [], tcp_sockets.bind_literal

        def bind_taken_first(place: TcpAddress) -> socket.socket:
            places.append(place)
            return bind(TcpAddress(place.host, taken) if len(places) == 1 else place)

        monkeypatch.setattr(tcp_sockets, "bind_literal", bind_taken_first)
        sockets = bind_tcp(TcpAddress("localhost", 0))
    ports = {sock.getsockname()[1] for sock in sockets}
    for sock in sockets:
        sock.close()
    assert len(ports) == 1
    assert ports != {taken}
    assert len(places) == 4


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize("number", [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])
def test_a_machine_without_one_address_family_listens_on_the_other(
    monkeypatch: pytest.MonkeyPatch, family: int, number: int
) -> None:
    """The kernel may lack the family, a sandbox may forbid it, or its loopback may have no address."""
    real = socket.socket

    def without(kind: int, *rest: int) -> socket.socket:
        if kind == family:
            raise OSError(number, "no such family")
        return real(kind, *rest)

    if family == socket.AF_INET and not _has_ipv6():
        pytest.skip("this machine has no IPv6 loopback")
    monkeypatch.setattr("cfproxy.server.tcp_sockets.socket.socket", without)
    (sock,) = bind_tcp(TcpAddress("localhost", 0))
    assert sock.family != family
    sock.close()
    with pytest.raises(OSError, match="no such family"):  # who names an address wants that one
        bind_tcp(TcpAddress("127.0.0.1" if family == socket.AF_INET else "::1", 0))


@namespaces
@pytest.mark.parametrize("setup", ["echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6;", ""])
def test_a_machine_whose_ipv6_is_switched_off_listens_on_ipv4(setup: str) -> None:
    """In a network namespace of its own, where loopback has ::1 unless it is switched off."""
    script = (
        "from cfproxy.config import TcpAddress\n"
        "from cfproxy.server.tcp_sockets import bind_tcp\n"
        "print(*(sock.getsockname()[0] for sock in bind_tcp(TcpAddress('localhost', 8080))))\n"
    )
    shell = f'{setup} ip link set lo up; exec "$0" -c "$1"'
    ran = subprocess.run(
        ["unshare", "-n", "sh", "-c", shell, sys.executable, script],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout.split() == (["127.0.0.1"] if setup else list(BOTH)), ran.stderr


def test_an_address_that_no_family_has_fails() -> None:
    """With the first reason."""
    with pytest.raises(OSError, match="192\\.0\\.2\\.1:8080"):
        bind_tcp(TcpAddress("192.0.2.1", 8080))


@pytest.mark.parametrize(("host", "takes_both"), [("::", True), ("::1", False), ("0.0.0.0", False)])
@ipv6
async def test_the_ipv6_wildcard_takes_ipv4_as_well(host: str, takes_both: bool) -> None:
    """No other address does, so that 0.0.0.0 stays IPv4 only."""
    listening = await ListeningSocket.open(TcpAddress(host, 0))
    with closing(listening):
        listening.serve(Echo)
        assert await echoes("::1" if ":" in host else "127.0.0.1", listening.port)
        if takes_both:
            assert await echoes("127.0.0.1", listening.port)
        else:
            with pytest.raises(OSError):
                await echoes("127.0.0.1" if ":" in host else "::1", listening.port)


async def test_an_address_of_another_machine_is_used_by_nothing_here() -> None:
    """So there is nothing to stop: only another address helps."""
    with pytest.raises(ListenError) as raised:
        await ListeningSocket.open(TcpAddress("192.0.2.1", 0))
    assert str(raised.value).endswith("; set another address")


async def test_a_name_that_does_not_exist_is_reported_in_words() -> None:
    """The resolver's numbers are no error numbers of the system."""
    with pytest.raises(ListenError) as raised:
        await ListeningSocket.open(TcpAddress("no-such-host.invalid", 0))
    assert "cannot listen on no-such-host.invalid:0: " in str(raised.value)
    assert "Unknown error" not in str(raised.value)


# --- sockets of a service manager --------------------------------------------------------------


@contextmanager
def inherited(name: str, *hosts: str) -> Iterator[tuple[int, list[tuple[str, socket.socket]]]]:
    """Return the port of sockets that listen at these hosts, and the sockets with a name."""
    first = server_at(hosts[0])
    port = first.getsockname()[1]
    sockets = [first, *(server_at(host, port) for host in hosts[1:])]
    try:
        yield port, [(name, sock) for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()


@ipv6
@pytest.mark.parametrize("name", ["default", ""])
async def test_all_inherited_sockets_of_an_owner_are_served(name: str) -> None:
    """By name or by address; one socket unit gives all of its sockets the same name."""
    with inherited(name, *BOTH) as (port, given):
        sockets = ListeningSockets(None, given)
        with closing(sockets):
            listening = await sockets.open("default", TcpAddress("localhost", port))
            listening.serve(Echo)
            assert sockets.unused() == []
            assert [await echoes(host, port) for host in BOTH] == [True, True]


@ipv6
@pytest.mark.parametrize("host", BOTH)
async def test_the_loopback_that_was_not_inherited_is_opened(host: str) -> None:
    """A socket unit of an earlier release names only 127.0.0.1."""
    with inherited("cfproxy.socket", host) as (port, given):
        sockets = ListeningSockets(None, given)
        with closing(sockets):
            (await sockets.open("default", TcpAddress("localhost", port))).serve(Echo)
            assert sockets.unused() == []
            assert [await echoes(each, port) for each in BOTH] == [True, True]


@ipv6
async def test_sockets_inherited_by_name_count_as_exposed_if_any_is() -> None:
    """Whatever their order."""
    with inherited("default", "127.0.0.1", "::") as (port, given):
        sockets = ListeningSockets(None, given)
        with closing(sockets):
            listening = await sockets.open("default", TcpAddress("localhost", 1))
            assert listening.address == TcpAddress("::", port)


async def test_a_reload_to_another_inherited_address_serves_that_one() -> None:
    """Sockets that were found by address are not the owner's for ever."""
    with inherited("", "127.0.0.1") as (first, one), inherited("", "127.0.0.1") as (second, other):
        before = ListeningSockets(None, one + other)
        with closing(before):
            await before.open("default", TcpAddress("127.0.0.1", first))
            after = ListeningSockets(before, one + other)
            with closing(after):
                assert (await after.open("default", TcpAddress("127.0.0.1", second))).port == second
