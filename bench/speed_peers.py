"""The proxies that are measured side by side, each as people run it: token added, access log to a file.

Owns: the origin (nginx, http and https) and one recipe for each peer: its configuration and command.
Must not know: what is measured.
Invariant: every proxy runs on one core, adds `Authorization: Bearer bench-token`, keeps connections to the
origin, writes an access log, and verifies the origin's certificate where it speaks TLS.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import trustme

TOKEN = "bench-token"
BIG_BYTES = 100_000_000
PATIENCE_S = 30.0
HERE = Path(__file__).parent
# As it ships: what only tests need would be imported along, and counted.
RUNTIME = HERE.parent / ".venv-runtime" / "bin" / "python"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Cores:
    """Which cores who may use: the measured proxy one of its own."""

    proxy: str = "1"
    origin: str = "2"
    load: str = "0,3"

    @classmethod
    def here(cls) -> Cores:
        if (os.cpu_count() or 1) >= 4:
            return cls()
        return cls(proxy="1", origin="0", load="0")


@dataclass
class Origin:
    """nginx with 1 KB of JSON, 100 MB, an upload and a slow answer; refuses requests without the token."""

    folder: Path
    http_port: int = field(default_factory=free_port)
    https_port: int = field(default_factory=free_port)
    open_port: int = field(default_factory=free_port)  # the same without the check: what no proxy costs
    open_tls_port: int = field(default_factory=free_port)

    @property
    def ca_path(self) -> Path:
        return self.folder / "ca.pem"

    def write(self) -> list[str]:
        authority = trustme.CA()
        certificate = authority.issue_cert("localhost", "127.0.0.1")
        authority.cert_pem.write_to_path(str(self.ca_path))
        certificate.private_key_pem.write_to_path(str(self.folder / "key.pem"))
        certificate.cert_chain_pems[0].write_to_path(str(self.folder / "cert.pem"))
        www = self.folder / "www"
        www.mkdir()
        (www / "small.json").write_bytes(b'{"jobs":[' + b",".join([b'{"id":123456789}'] * 59) + b"]}")
        (www / "slow.json").write_bytes(b"x" * 1024)
        with (www / "big.bin").open("wb") as file:
            file.truncate(BIG_BYTES)
        (self.folder / "origin.conf").write_text(self._config(www))
        return ["nginx", "-p", str(self.folder), "-c", str(self.folder / "origin.conf"), "-g", "daemon off;"]

    def _memory(self) -> Path:
        shm = Path("/dev/shm")
        return shm / f"bodies-{self.http_port}" if shm.is_dir() else self.folder / "bodies"

    def _config(self, www: Path) -> str:
        tls = f"ssl_certificate {self.folder}/cert.pem; ssl_certificate_key {self.folder}/key.pem;"
        locations = f"""
    root {www};
    keepalive_requests 1000000000;
    location /token {{ default_type application/json; client_max_body_size 0;
      return 200 '{{"access_token":"{TOKEN}","token_type":"Bearer","expires_in":86400}}'; }}
    location /upload {{ client_max_body_size 0; client_body_buffer_size 1m;
      proxy_pass http://127.0.0.1:{self.http_port}/swallow; proxy_http_version 1.1; proxy_pass_request_body off;
      proxy_set_header Content-Length ""; }}
    location /swallow {{ client_max_body_size 0; default_type text/plain; return 200 'ok'; }}
    location = /slow.json {{ limit_rate 512; }}
"""
        check = f'if ($http_authorization != "Bearer {TOKEN}") {{ set $refused 1; }} if ($uri = /token) {{ set $refused 0; }} if ($uri = /swallow) {{ set $refused 0; }} if ($refused = 1) {{ return 401; }}'
        return f"""
user root;
worker_processes 1; pid {self.folder}/origin.pid; error_log {self.folder}/origin-error.log;

events {{ worker_connections 8000; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_timeout 300s; client_body_temp_path {self._memory()}; # so that no disk is measured
  proxy_temp_path {self.folder}/proxied; types {{ application/json json; }}
  server {{ listen 127.0.0.1:{self.http_port} backlog=8192; set $refused 0; {check} {locations} }}
  server {{ listen 127.0.0.1:{self.https_port} ssl backlog=8192; {tls} set $refused 0; {check} {locations} }}
  server {{ listen 127.0.0.1:{self.open_port} backlog=8192; {locations} }}
  server {{ listen 127.0.0.1:{self.open_tls_port} ssl backlog=8192; {tls} {locations} }}
}}
"""


@dataclass
class Peer:
    """One proxy: its name, how it is started for an upstream scheme, and what it says of its version."""

    name: str
    prepare: Callable[[Path, Origin, str, int], tuple[list[str], dict[str, str]]]
    version: list[str]
    program: str

    def is_here(self) -> bool:
        return shutil.which(self.program) is not None or Path(self.program).exists()


def prepare_nginx(folder: Path, origin: Origin, scheme: str, port: int) -> tuple[list[str], dict[str, str]]:
    upstream_port = origin.https_port if scheme == "https" else origin.http_port
    tls = f"proxy_ssl_verify on; proxy_ssl_trusted_certificate {origin.ca_path}; proxy_ssl_name localhost; proxy_ssl_server_name on;"
    config = folder / "nginx.conf"
    config.write_text(f"""
user root;
worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log; 
events {{ worker_connections 8000; }}
http {{
  access_log {folder}/access.log; keepalive_requests 1000000000;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; client_max_body_size 0;
  upstream api {{ server 127.0.0.1:{upstream_port}; keepalive 512; keepalive_requests 1000000000; }}
  server {{ listen 127.0.0.1:{port} backlog=8192;
    location / {{ proxy_pass {scheme}://api; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header Host localhost; proxy_set_header Authorization "Bearer {TOKEN}"; {tls if scheme == "https" else ""} }} }}
}}
""")
    return ["nginx", "-p", str(folder), "-c", str(config), "-g", "daemon off;"], {}


def prepare_haproxy(folder: Path, origin: Origin, scheme: str, port: int) -> tuple[list[str], dict[str, str]]:
    upstream_port = origin.https_port if scheme == "https" else origin.http_port
    tls = (
        f"ssl verify required ca-file {origin.ca_path} sni str(localhost) verifyhost localhost"
        if scheme == "https"
        else ""
    )
    config = folder / "haproxy.cfg"
    config.write_text(f"""
global
  nbthread 1
  maxconn 4000
  log stdout format raw local0
defaults
  mode http
  log global
  option httplog
  timeout connect 10s
  timeout client 300s
  timeout server 300s
  http-reuse always
frontend front
  bind 127.0.0.1:{port} backlog 8192
  default_backend api
backend api
  http-request set-header Authorization "Bearer {TOKEN}"
  http-request set-header Host localhost
  server api 127.0.0.1:{upstream_port} pool-max-conn 512 {tls}
""")
    return ["haproxy", "-db", "-f", str(config)], {}


def prepare_caddy(folder: Path, origin: Origin, scheme: str, port: int) -> tuple[list[str], dict[str, str]]:
    upstream_port = origin.https_port if scheme == "https" else origin.http_port
    tls = f"tls_trusted_ca_certs {origin.ca_path}\n tls_server_name localhost" if scheme == "https" else ""
    config = folder / "Caddyfile"
    config.write_text(f"""
{{
  admin off
  auto_https off
}}
http://127.0.0.1:{port} {{
  log {{
    output file {folder}/access.log {{
      roll_disabled
    }}
  }}
  reverse_proxy {scheme}://127.0.0.1:{upstream_port} {{
    header_up Authorization "Bearer {TOKEN}"
    header_up Host localhost
    transport http {{
      keepalive 300s
      keepalive_idle_conns_per_host 512
      {tls}
    }}
  }}
}}
""")
    environment = {
        "GOMAXPROCS": "1",
        "HOME": str(folder),
        "XDG_DATA_HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder),
    }
    return ["caddy", "run", "--config", str(config), "--adapter", "caddyfile"], environment


MITMDUMP = HERE.parent / ".venv-mitmproxy" / "bin" / "mitmdump"


def prepare_mitmproxy(
    folder: Path, origin: Origin, scheme: str, port: int
) -> tuple[list[str], dict[str, str]]:
    upstream_port = origin.https_port if scheme == "https" else origin.http_port
    script = folder / "inject.py"
    script.write_text(
        f'def requestheaders(flow):\n    flow.request.headers["Authorization"] = "Bearer {TOKEN}"\n'
    )
    command = [str(MITMDUMP), "--mode", f"reverse:{scheme}://localhost:{upstream_port}", "-s", str(script)]
    command += [
        "--listen-host",
        "127.0.0.1",
        "-p",
        str(port),
        "--set",
        f"confdir={folder}",
        "--set",
        "flow_detail=1",
    ]
    command += [
        "--set",
        f"ssl_verify_upstream_trusted_ca={origin.ca_path}",
        "--set",
        "stream_large_bodies=1m",
    ]
    return command, {}


def prepare_naive(folder: Path, origin: Origin, scheme: str, port: int) -> tuple[list[str], dict[str, str]]:
    upstream_port = origin.https_port if scheme == "https" else origin.http_port
    upstream = (
        f"{scheme}://localhost:{upstream_port}" if scheme == "https" else f"http://127.0.0.1:{upstream_port}"
    )
    return [sys.executable, str(HERE / "speed_naive.py"), str(port), upstream, TOKEN, str(origin.ca_path)], {}


def prepare_cfproxy(folder: Path, origin: Origin, scheme: str, port: int) -> tuple[list[str], dict[str, str]]:
    """As it ships, with [fast]: log, metrics, access checks, token source and queue in the path (rate off)."""
    upstream = (
        f"https://localhost:{origin.https_port}"
        if scheme == "https"
        else f"http://127.0.0.1:{origin.http_port}"
    )
    environment = {
        "CFPROXY_CLIENT_ID": "bench",
        "CFPROXY_CLIENT_SECRET": "bench-client-secret",
        "CFPROXY_GRANT": "client_credentials",
        "CFPROXY_TOKEN_URL": f"http://127.0.0.1:{origin.http_port}/token",
        "CFPROXY_UPSTREAM": upstream,
        "CFPROXY_LISTEN": f"127.0.0.1:{port}",
        "CFPROXY_ADMIN": "127.0.0.1:0",
        "CFPROXY_STORE": f"file:{folder / 'store'}",
        "CFPROXY_PACING__RATE": "off",
        "CFPROXY_LOG__FORMAT": "json",
        "CFPROXY_TLS__CA_FILE": str(origin.ca_path),
        "HOME": str(folder),
    }
    return [str(RUNTIME), "-m", "cfproxy", "serve"], environment


PEERS = [
    Peer("cfproxy", prepare_cfproxy, [str(RUNTIME), "-m", "cfproxy", "--version"], str(RUNTIME)),
    Peer("nginx", prepare_nginx, ["nginx", "-v"], "nginx"),
    Peer("haproxy", prepare_haproxy, ["haproxy", "-v"], "haproxy"),
    Peer("caddy", prepare_caddy, ["caddy", "version"], "caddy"),
    Peer(
        "naive aiohttp",
        prepare_naive,
        [sys.executable, "-c", "import aiohttp; print(aiohttp.__version__)"],
        sys.executable,
    ),
    Peer("mitmproxy", prepare_mitmproxy, [str(MITMDUMP), "--version"], str(MITMDUMP)),
]


@dataclass
class Running:
    """A proxy that was started."""

    name: str
    url: str
    process: subprocess.Popen[bytes]
    ready_s: float

    def processes(self) -> list[int]:
        """Its process and that one's children (nginx serves in a worker)."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [self.process.pid, *map(int, children)]

    def peak_bytes(self) -> int:
        return sum(_status(pid, "VmHWM") * 1024 for pid in self.processes())

    def cpu_s(self) -> float:
        ticks = 0
        for pid in self.processes():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def switches(self) -> int:
        total = 0
        for pid in self.processes():
            for task in Path(f"/proc/{pid}/task").iterdir():
                total += _status(f"{pid}/task/{task.name}", "voluntary_ctxt_switches")
        return total


def _status(process: int | str, name: str) -> int:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    return 0


def answers(url: str) -> bool:
    with suppress(OSError, urllib.error.URLError):
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    return False


@contextmanager
def running_origin(origin: Origin, cores: Cores) -> Iterator[None]:
    with _running(origin.write(), {}, origin.folder / "origin.out", cores.origin) as process:
        _until(lambda: answers(f"http://127.0.0.1:{origin.open_port}/small.json"), process, "the origin")
        yield
    shutil.rmtree(origin._memory(), ignore_errors=True)


@contextmanager
def running_peer(peer: Peer, folder: Path, origin: Origin, scheme: str, cores: Cores) -> Iterator[Running]:
    """Start a proxy and wait for its first whole answer: without the token the origin refuses."""
    folder.mkdir(parents=True)
    port = free_port()
    command, environment = peer.prepare(folder, origin, scheme, port)
    url = f"http://127.0.0.1:{port}"
    began_at = time.perf_counter()
    with _running(command, environment, folder / "out.log", cores.proxy) as process:
        _until(lambda: answers(f"{url}/small.json"), process, peer.name)
        yield Running(peer.name, url, process, time.perf_counter() - began_at)


@contextmanager
def _running(
    command: list[str], environment: dict[str, str], log: Path, cores: str
) -> Iterator[subprocess.Popen[bytes]]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CFPROXY_")}
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["taskset", "-c", cores, *command],
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
            env=kept | environment,
            cwd=log.parent,  # `python -m` looks there first, and is to find what is installed
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _until(condition: Callable[[], bool], process: subprocess.Popen[bytes], name: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{name} does not answer")
        time.sleep(0.005)
