"""The doctor's checks of this machine."""

from __future__ import annotations

import errno
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cfproxy.cli.doctor.findings import Finding, from_error, render_findings
from cfproxy.cli.doctor.machine import check_environment, check_port, check_secrets, find_listener
from cfproxy.config import TcpAddress, UnixAddress
from cfproxy.errors import LoginRequired, Misconfigured
from tests.integration.server.test_tcp_sockets import ipv6

posix = pytest.mark.skipif(os.name != "posix", reason="modes as POSIX has them")
linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")


def taken() -> tuple[socket.socket, TcpAddress]:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    return sock, TcpAddress("127.0.0.1", sock.getsockname()[1])


def test_a_free_port_is_fine_and_stays_free() -> None:
    """The check does not occupy it."""
    sock, address = taken()
    sock.close()
    for _ in range(2):
        assert check_port("listen", address) == [Finding("listen", "ok", f"{address} is free")]
    assert [each.text for each in check_port("admin", None)] == ["off"]


@linux
def test_a_port_in_use_is_reported_with_its_process() -> None:
    """With number and program, so that it can be stopped, and without its arguments."""
    script = "import socket,sys,time; s=socket.socket(); s.bind(('127.0.0.1',0)); s.listen()"
    script += "; print(s.getsockname()[1], flush=True); time.sleep(60)"
    with subprocess.Popen(
        [sys.executable, "-c", script, "--secret=marker"], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        address = TcpAddress("127.0.0.1", int(process.stdout.readline()))
        try:
            (finding,) = check_port("listen", address)
        finally:
            process.kill()
    assert finding.level == "fail"
    assert f"process {process.pid} ({Path(sys.executable).name})" in finding.text
    assert finding.next.startswith(f"stop process {process.pid}")
    assert "marker" not in finding.text


@linux
def test_a_sandbox_at_the_proxys_port_is_no_proxy() -> None:
    """The proxy could not start there."""
    command = [sys.executable, "-m", "cfproxy", "sandbox", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert process.stdout is not None
            found = next(filter(None, (re.search(r"127\.0\.0\.1:(\d+)", line) for line in process.stdout)))
            (finding,) = check_port("listen", TcpAddress("127.0.0.1", int(found[1])))
        finally:
            process.kill()
    assert finding.level == "fail"
    assert "cfproxy sandbox)" in finding.text


LISTEN = """
import socket, sys, time
host, port, only = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
if ":" in host:
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
sock.bind((host, port))
sock.listen()
print(sock.getsockname()[1], flush=True)
time.sleep(60)
"""


@contextmanager
def listening(host: str, port: int = 0, *, only: bool = True) -> Iterator[tuple[int, int]]:
    """Listen in another process; return its number and the port."""
    words = [sys.executable, "-c", LISTEN, host, str(port), str(int(only))]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield process.pid, int(process.stdout.readline())
        finally:
            process.kill()


@linux
@ipv6
def test_each_loopback_of_localhost_is_reported_with_its_process() -> None:
    """Two programs may have the port, or one of them only half of it."""
    with listening("127.0.0.1") as (one, port), listening("::1", port) as (other, _):
        texts = [each.text for each in check_port("listen", TcpAddress("localhost", port))]
    python = Path(sys.executable).name
    assert texts == [
        f"127.0.0.1:{port} is in use by process {one} ({python})",
        f"[::1]:{port} is in use by process {other} ({python})",
    ]
    with listening("::1") as (pid, port):
        findings = check_port("listen", TcpAddress("localhost", port))
        (single,) = check_port("listen", TcpAddress("127.0.0.1", port))
    assert [(each.level, each.text) for each in findings] == [
        ("ok", f"127.0.0.1:{port} is free"),
        ("fail", f"[::1]:{port} is in use by process {pid} ({python})"),
    ]
    assert single.text == f"127.0.0.1:{port} is free"


@linux
@ipv6
@pytest.mark.parametrize("ours", ["localhost", "127.0.0.1", "::1", "::", "0.0.0.0"])
def test_a_wildcard_socket_of_another_process_is_found(ours: str) -> None:
    """[::] for both families is in the way of every address."""
    with listening("::", only=False) as (pid, port):
        (finding,) = check_port("listen", TcpAddress(ours, port))
    assert f"{TcpAddress(ours, port)} is in use by process {pid} " in finding.text


@linux
@ipv6
def test_the_nearest_socket_is_named() -> None:
    """[::] for IPv6 only is not in the way of an IPv4 address, which the system's table does not tell."""
    with listening("::") as (_, port), listening("127.0.0.1", port) as (pid, _):
        (finding,) = check_port("listen", TcpAddress("127.0.0.1", port))
    assert f"in use by process {pid} " in finding.text


def test_a_loopback_that_this_machine_lacks_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """Like for the listener; an address that was named is one."""
    real = socket.socket

    def without_ipv6(family: int, *rest: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        return real(family, *rest)

    monkeypatch.setattr("cfproxy.server.tcp_sockets.socket.socket", without_ipv6)
    assert [each.text for each in check_port("listen", TcpAddress("localhost", 0))] == ["localhost:0 is free"]
    assert [each.level for each in check_port("listen", TcpAddress("::1", 0))] == ["fail"]


def test_a_name_that_does_not_exist_fails() -> None:
    """With the resolver's reason."""
    (finding,) = check_port("listen", TcpAddress("no-such-host.invalid", 8080))
    assert finding.level == "fail"
    assert finding.text.startswith("no-such-host.invalid:8080: ")


def test_a_port_in_use_by_an_unknown_process_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be the proxy itself."""
    sock, address = taken()
    with sock:
        monkeypatch.setattr("cfproxy.cli.doctor.machine.find_listener", lambda _: None)
        assert check_port("listen", address)[0].level == "warn"
        monkeypatch.setattr("cfproxy.cli.doctor.machine.find_listener", lambda _: (7, "python -m cfproxy"))
        (finding,) = check_port("listen", address)
    assert (finding.level, finding.text) == ("ok", f"{address} is served by cfproxy, process 7")


def test_processes_are_found_on_linux_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other systems have their own tools."""
    monkeypatch.setattr("sys.platform", "win32")
    assert find_listener(TcpAddress("::", 80)) is None


def test_an_address_of_another_machine_fails() -> None:
    """TEST-NET-1 belongs to no machine."""
    (finding,) = check_port("listen", TcpAddress("192.0.2.1", 8080))
    assert (finding.level, finding.next) == ("fail", "set another listen address")


@posix
def test_unix_sockets_are_checked(tmp_path: Path) -> None:
    """Free, served, left behind, or in a missing folder."""
    address = UnixAddress(str(tmp_path / "s"))
    assert check_port("listen", address)[0].text.endswith("is free")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(address.path)
        assert "was left by" in check_port("listen", address)[0].text
        sock.listen()
        assert "is served by" in check_port("listen", address)[0].text
    assert check_port("listen", UnixAddress(str(tmp_path / "no" / "s")))[0].level == "fail"


@posix
@pytest.mark.parametrize("obstacle", ["file", "folder", "datagrams", "below a file", "no folder"])
def test_what_no_unix_socket_can_replace_fails(tmp_path: Path, obstacle: str) -> None:
    """`serve` replaces the socket of a process that has ended, and nothing else."""
    path, reason = tmp_path / "s", "the path exists and is not a socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        if obstacle == "folder":
            path.mkdir()
        elif obstacle == "datagrams":
            other.bind(str(path))
            reason = os.strerror(errno.EPROTOTYPE)
        elif obstacle == "no folder":
            path, reason = tmp_path / "no" / "s", f"{tmp_path / 'no'} does not exist"
        else:
            path.touch()
        if obstacle == "below a file":
            path, reason = path / "s", os.strerror(errno.ENOTDIR)
        (finding,) = check_port("listen", UnixAddress(str(path)))
    assert (finding.level, finding.next) == ("fail", "set another listen address")
    assert finding.text.endswith(reason)


def test_proxy_variables_are_reported_as_ignored() -> None:
    """By name only, because their values may have a password."""
    finding = check_environment({"HTTPS_PROXY": "http://user:marker@proxy", "HTTP_PROXY": ""})
    assert finding.level == "warn"
    assert finding.text == "HTTPS_PROXY: set, and ignored: cfproxy connects directly"
    assert check_environment({}).level == "ok"


@posix
def test_files_with_secrets_that_others_can_read_are_reported(tmp_path: Path) -> None:
    """The configuration with a literal secret, and secret files, with the command that repairs it."""
    (tmp_path / "a b").mkdir()
    config, secret = tmp_path / "a b/config.yaml", tmp_path / "a b/secret"
    secret.write_text("marker")
    config.write_text(
        "client_secret: marker\n"
        "access: {keys: [{env: KEY}, {key: {file: secret}, account: acme}]}\n"
        "accounts: {acme: {client_secret: {file: secret}}}\n"
    )
    config.chmod(0o644)
    secret.chmod(0o640)
    findings = list(check_secrets(config))
    assert [(each.level, each.next) for each in findings] == [
        ("warn", f"chmod 600 '{config}'"),
        ("warn", f"chmod 600 '{secret}'"),
        ("warn", f"chmod 600 '{secret}'"),
        ("ok", ""),
    ]
    assert "marker" not in render_findings(findings)
    config.chmod(0o600)
    secret.chmod(0o600)
    (finding,) = check_secrets(config)
    assert finding.text.endswith("they come from: a file, a variable, the configuration file")
    assert list(check_secrets(None)) == []


def test_the_finding_of_an_error_has_its_next_step() -> None:
    """After the last semicolon, or else colon; its exit code becomes the command's."""
    finding = from_error("login", LoginRequired("account 'a' is not logged in; run: cfproxy login"), "a")
    assert (finding.text, finding.next, finding.code) == ("account 'a' is not logged in", "cfproxy login", 3)
    finding = from_error("token endpoint", Misconfigured("it refused the app: compare client_id"))
    assert (finding.text, finding.next, finding.code) == ("it refused the app", "compare client_id", 5)
    assert from_error("x", LoginRequired("plain")).text == "plain"


def test_findings_are_rendered_as_text_and_json() -> None:
    """As text under their account, as JSON one by one."""
    found = Finding("login", "fail", "not logged in", "cfproxy login", "acme", 3)
    assert render_findings([Finding("dns", "ok", "fine"), found]).count("\n") == 3
    assert found.to_document() == {
        "check": "login",
        "account": "acme",
        "level": "fail",
        "text": "not logged in",
        "next": "cfproxy login",
    }
