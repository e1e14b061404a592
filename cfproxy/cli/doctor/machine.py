"""Checks of this machine: the configuration file, sources of secrets, the environment and the ports.

Invariant: only names and modes of files are read here, never the value of a secret.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import shlex
import socket
import stat
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cfproxy.cli.doctor.findings import Finding
from cfproxy.config import Settings, TcpAddress, UnixAddress
from cfproxy.config.problems import Problems
from cfproxy.config.sources import read_file
from cfproxy.server.tcp_sockets import bind_literal, is_optional, literal_addresses

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
_LISTENING = "0A"  # TCP_LISTEN in /proc/net/tcp


def check_configuration(settings: Settings) -> Finding:
    """Report the configuration in use, which was read without a problem."""
    names = ", ".join(settings.accounts)
    return Finding("configuration", "ok", f"{settings.source} can be used; accounts: {names}")


def check_secrets(path: Path | None) -> Iterator[Finding]:
    """Check that other users of this machine can't read files that hold secrets."""
    if path is None or os.name != "posix":
        return
    tree = read_file(path, Problems(str(path))) or {}
    sources = list(_secret_sources(tree))
    if any(kind == "text" for kind, _ in sources) and _others_read(path):
        text = f"{path} contains a secret, and other users of this machine can read it"
        yield Finding("secret", "warn", text, f"chmod 600 {shlex.quote(str(path))}")
    for kind, name in sources:
        place = path.parent / name
        with contextlib.suppress(RuntimeError):  # no such home folder; then a variable has overridden it
            place = path.parent / Path(name).expanduser()
        if kind == "file" and _others_read(place):
            text = f"{place} contains a secret, and other users of this machine can read it"
            yield Finding("secret", "warn", text, f"chmod 600 {shlex.quote(str(place))}")
    if sources:
        kinds = {"text": "the configuration file", "file": "a file", "env": "a variable"}
        names = ", ".join(sorted({kinds[kind] for kind, _ in sources}))
        yield Finding("secret", "ok", f"all secrets can be read; they come from: {names}")


def _secret_sources(tree: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the kind of every secret (`text`, `file` or `env`) and the file or variable that it names."""
    accounts = tree.get("accounts")
    for owner in (tree, *(accounts.values() if isinstance(accounts, Mapping) else ())):
        if not isinstance(owner, Mapping):
            continue
        access = owner.get("access")
        keys = access.get("keys") if isinstance(access, Mapping) else None
        for value in (owner.get("client_secret"), *(keys if isinstance(keys, list) else ())):
            source = value.get("key", value) if isinstance(value, Mapping) else value
            if isinstance(source, Mapping):
                yield from ((kind, str(name)) for kind, name in source.items() if kind in {"file", "env"})
            elif source is not None:
                yield "text", ""


def _others_read(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return bool(path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH))
    return False


def check_environment(environ: Mapping[str, str]) -> Finding:
    """Check for proxy variables, which cfproxy ignores."""
    found = [name for name in _PROXIES if environ.get(name)]
    if not found:
        return Finding("environment", "ok", "no proxy variable is set")
    text = f"{', '.join(found)}: set, and ignored: cfproxy connects directly"
    return Finding("environment", "warn", text, "let this machine reach the hosts below directly")


def check_port(
    check: str, address: TcpAddress | UnixAddress | None, account: str | None = None
) -> list[Finding]:
    """Check that an address is free or served by cfproxy; report the process that uses it otherwise.

    Returns:
        one finding, or one for each of the address's two loopbacks if these differ.
    """
    if address is None:
        return [Finding(check, "ok", "off", account=account)]
    if isinstance(address, UnixAddress):
        return [_check_unix(check, address, account)]
    try:
        places = literal_addresses(address)
    except OSError as error:
        return [_unusable(check, address, error, account)]
    found: dict[TcpAddress, Finding] = {}
    absent: list[Finding] = []
    for place in places:
        try:
            with bind_literal(place) as probe:
                probe.listen()  # it could be bound beside a socket that listens
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                found[place] = _address_in_use(check, place, account)
            elif is_optional(address, error):
                absent.append(_unusable(check, place, error, account))
            else:
                found[place] = _unusable(check, place, error, account)
        else:
            found[place] = Finding(check, "ok", f"{place} is free", account=account)
    # If all places are alike, the address as it is configured stands for them.
    alike = {replace(each, text=each.text.replace(str(at), str(address), 1)) for at, each in found.items()}
    return list(alike if len(alike) == 1 else found.values()) or absent


def _unusable(check: str, address: TcpAddress | UnixAddress, error: OSError, account: str | None) -> Finding:
    reason = error.strerror or "not an address of this machine"
    return Finding(check, "fail", f"{address}: {reason}", f"set another {check} address", account)


def _address_in_use(check: str, address: TcpAddress, account: str | None) -> Finding:
    owner = find_listener(address)
    if owner is None:
        text = f"{address} is in use; this system does not report by which process"
        return Finding(check, "warn", text, f"unless cfproxy uses it, set another {check} address", account)
    pid, command = owner
    if "cfproxy" in command and not command.endswith(" sandbox"):
        return Finding(check, "ok", f"{address} is served by cfproxy, process {pid}", account=account)
    text = f"{address} is in use by process {pid} ({command})"
    return Finding(check, "fail", text, f"stop process {pid}, or set another {check} address", account)


def _check_unix(check: str, address: UnixAddress, account: str | None) -> Finding:
    if not hasattr(socket, "AF_UNIX"):
        text = "this system has no Unix sockets"
        return Finding(check, "fail", text, f"set {check} to host:port", account)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(address.path)
        except FileNotFoundError:
            parent = Path(address.path).parent
            if os.access(parent, os.W_OK):
                return Finding(check, "ok", f"{address} is free", account=account)
            reason = "can't be written by this user" if parent.exists() else "does not exist"
            return Finding(check, "fail", f"{parent} {reason}", f"set another {check} address", account)
        except ConnectionRefusedError:
            if not Path(address.path).is_socket():
                return _unusable(check, address, OSError(0, "the path exists and is not a socket"), account)
            return Finding(check, "ok", f"{address} was left by a process that has ended", account=account)
        except (BlockingIOError, TimeoutError):
            pass  # its queue of new connections is full
        except OSError as error:
            return _unusable(check, address, error, account)
    return Finding(check, "ok", f"{address} is served by a running process", account=account)


def find_listener(address: TcpAddress) -> tuple[int, str] | None:
    """Return the process that keeps an address from being used, and its command; None if it is hidden.

    Args:
        address: with a literal host.
    """
    if sys.platform != "linux":
        return None
    found = [each for table in ("tcp", "tcp6") for each in _listening(table, address)]
    inodes = {f"socket:[{inode}]" for distance, inode in found if distance == min(found)[0]}
    for descriptors in Path("/proc").glob("[0-9]*/fd"):
        with contextlib.suppress(OSError):
            for descriptor in descriptors.iterdir():
                with contextlib.suppress(OSError):
                    if str(descriptor.readlink()) in inodes:
                        return int(descriptors.parent.name), _command(descriptors.parent)
    return None


def _listening(table: str, address: TcpAddress) -> Iterator[tuple[int, str]]:
    """Yield the sockets in the way of `address` (proc(5), /proc/net/tcp): how remotely, and the inode."""
    ours = ipaddress.ip_address(address.host)
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/net/{table}").read_text(encoding="ascii").splitlines()[1:]:
            fields = line.split()
            host, _, port = fields[1].rpartition(":")
            if fields[3] != _LISTENING or int(port, 16) != address.port:
                continue
            theirs = _read_host(host)
            wildcards = [each.version for each in (ours, theirs) if each.is_unspecified]
            if ours == theirs:
                yield 0, fields[9]
            elif wildcards and ours.version == theirs.version:
                yield 1, fields[9]
            elif 6 in wildcards:  # it may take IPv4 connections, too; the table doesn't say
                yield 2, fields[9]


def _read_host(digits: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return an address from words in this machine's byte order, each as eight hexadecimal digits."""
    words = [int(digits[start : start + 8], 16) for start in range(0, len(digits), 8)]
    host = ipaddress.ip_address(b"".join(word.to_bytes(4, sys.byteorder) for word in words))
    return getattr(host, "ipv4_mapped", None) or host


def _command(process: Path) -> str:
    """Return the program and, for an interpreter, its script; further arguments may be secrets.

    `sandbox` is kept, because that command does not serve a proxy's address.
    """
    words = (process / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    shown, further = [Path(words[0]).name], words[1:]
    if len(words) > 2 and words[1] == "-m":
        shown, further = [*shown, *words[1:3]], words[3:]
    elif len(words) > 1 and words[1].endswith(("cfproxy", ".py")):
        shown, further = [*shown, Path(words[1]).name], words[2:]
    if shown[-1] == "cfproxy" and "sandbox" in further[:1]:
        shown.append("sandbox")
    return " ".join(shown)
