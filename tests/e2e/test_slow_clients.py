"""Two thousand clients that keep the proxy waiting do not affect the others."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cfproxy.runtime.os_limits import open_files_for
from tests.e2e.kit import World, until
from tests.e2e.processes import Proxy

ATTACKERS = 2000
# As docs/security.md states; it has the measurement.
GROWTH_MAX_BYTES = 64 * 2**20

ATTACKS = {
    "silence": b"",
    "an endless head": b"GET /v1/jobs HTTP/1.1\r\nHost: localhost\r\nX-Slow: " + b"a" * 2048,
    "an endless body": b"POST /v1/jobs HTTP/1.1\r\nHost: %b\r\nContent-Length: 99999\r\n\r\n" + b"a" * 2048,
}


def resident_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


@contextlib.contextmanager
def attack(proxy: Proxy, data: bytes) -> Iterator[list[socket.socket]]:
    """Open the connections, send `data` on each, and nothing more."""
    authority = proxy.url.removeprefix("http://")
    host, _, port = authority.rpartition(":")
    with contextlib.ExitStack() as stack:
        attackers = []
        for _ in range(ATTACKERS):
            attacker = stack.enter_context(socket.create_connection((host, int(port))))
            with contextlib.suppress(ConnectionError):  # closed already, which is fine, too
                attacker.sendall(data.replace(b"%b", authority.encode()))
            attacker.setblocking(False)
            attackers.append(attacker)
        yield attackers


def alive(attackers: list[socket.socket]) -> int:
    count = 0
    for attacker in attackers:
        try:
            count += bool(attacker.recv(65_536))
        except BlockingIOError:
            count += 1
        except ConnectionError:
            pass
    return count


@pytest.mark.skipif(sys.platform != "linux", reason="reads the process's memory from /proc")
@pytest.mark.parametrize("kind", ATTACKS)
async def test_slow_clients_block_no_other_client(world: World, kind: str) -> None:
    """The others are all served, and the proxy grows by less than is documented."""
    if open_files_for(2 * ATTACKERS + 500) < 2 * ATTACKERS + 500:
        pytest.skip("not so many files may be open here")
    await world.log_in()
    async with world.serve() as proxy:
        assert [await proxy.status() for _ in range(20)] == [200] * 20
        before_bytes = resident_bytes(proxy.process.pid)
        with attack(proxy, ATTACKS[kind]):
            assert [await proxy.status() for _ in range(200)] == [200] * 200
            assert resident_bytes(proxy.process.pid) - before_bytes < GROWTH_MAX_BYTES
        assert await proxy.status() == 200


@pytest.mark.skipif(sys.platform != "linux", reason="needs thousands of files")
async def test_slow_clients_over_the_limits_are_closed(world: World) -> None:
    """At the limits the oldest are closed first, and the log has their number."""
    world.write_config(limits={"connections": 300, "unfinished": 100})
    await world.log_in()
    async with world.serve() as proxy:
        assert await proxy.status() == 200
        with attack(proxy, ATTACKS["an endless head"]) as attackers:
            assert [await proxy.status() for _ in range(20)] == [200] * 20
            await until(lambda: alive(attackers) <= 100, "all but the bound are ended")
            assert [await proxy.status() for _ in range(20)] == [200] * 20
        ended = sum(event["unfinished"] for event in proxy.events("connections.ended"))
        assert ended >= ATTACKERS - 100
