"""Real cfproxy processes against a sandbox in this process.

Owns: the configuration in a folder of the test's own, starting, waiting for and stopping processes,
and the login that they use.
Invariant: whatever was started has ended when its block ends, and only that: processes are stopped
by their own id. Nothing is timed: conditions are polled, with a limit that only a hang reaches.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from cfproxy.auth import login
from cfproxy.config import Account, load_settings
from cfproxy.errors import ConfigError
from cfproxy.runtime.factory import build_login_plan, build_store
from cfproxy.sandbox import Behaviour, Sandbox, approve
from tests.e2e.processes import PATIENCE_S, Proxy, Ran
from tests.support.paths import ROOT
from tests.support.secret_ledger import LEDGER

NOBODY = "http://127.0.0.1:1"  # nothing listens there
SITECUSTOMIZE = ROOT / "tests" / "support" / "sitecustomize"


@dataclass
class World:
    """A sandbox, and the folder of a cfproxy that is configured for it."""

    sandbox: Sandbox
    folder: Path
    settings: dict[str, Any]
    environment: dict[str, str] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)  # the output of all processes, except of `token`
    starts: int = 0

    @property
    def config_path(self) -> Path:
        """The configuration file."""
        return self.folder / "config.yaml"

    @property
    def store_dir(self) -> Path:
        """The store's folder."""
        store = self.settings["store"]
        return Path((store["url"] if isinstance(store, dict) else store).removeprefix("file:"))

    @property
    def document_path(self) -> Path:
        """The stored login."""
        return self.store_dir / "default.json"

    @property
    def secrets_path(self) -> Path:
        """The file in which processes report their secrets."""
        return self.folder / "told-secrets"

    def write_config(self, **changes: Any) -> Path:
        """Write the configuration as JSON, which is YAML; None removes a key."""
        self.settings = {k: v for k, v in (self.settings | changes).items() if v is not None}
        self.config_path.write_text(json.dumps(self.settings), encoding="utf-8")
        return self.config_path

    def document(self) -> dict[str, Any]:
        """Read the stored login."""
        document: dict[str, Any] = json.loads(self.document_path.read_text(encoding="utf-8"))
        return document

    def add_secrets(self) -> None:
        """Record the secrets that processes made, and those in the store."""
        with contextlib.suppress(OSError):
            for line in self.secrets_path.read_text(encoding="ascii").splitlines():
                LEDGER.add_secret(json.loads(line), "a Secret of a process")
        for path in self.store_dir.glob("*.json"):
            with contextlib.suppress(OSError, ValueError):  # damaged on purpose, or being replaced
                stored = json.loads(path.read_text(encoding="utf-8"))
                for name in ("access_token", "refresh_token", "verifier", "state"):
                    LEDGER.add_secret(stored.get(name), f"a stored {name}")

    def age(self, seconds: float) -> None:
        """Make the stored access token older by so many seconds, atomically."""
        document = self.document()
        document["obtained_at"] -= seconds
        fresh = self.document_path.with_suffix(".new")
        fresh.touch(mode=0o600)
        fresh.write_text(json.dumps(document), encoding="utf-8")
        fresh.replace(self.document_path)

    def account(self) -> Account:
        """Return the default account, as a command would read it."""
        return load_settings(self.config_path, self.environment).accounts["default"]

    async def log_in(self) -> None:
        """Log in as `login --print-url`, a person and `login --finish` would, in this process."""
        account = self.account()
        plan = build_login_plan(account, build_store(account))
        url, _ = await login.start(plan)
        await login.finish(plan, await approve(url))
        await plan.store.aclose()

    def full_environment(self) -> dict[str, str]:
        """The environment of processes, without settings of this machine."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CFPROXY_")}
        home = {"HOME": str(self.folder), "XDG_CONFIG_HOME": str(self.folder)}
        python = {"PYTHONPATH": f"{SITECUSTOMIZE}{os.pathsep}{ROOT}", "PYTHONUNBUFFERED": "1"}
        return kept | home | python | {"SECRETS_FILE": str(self.secrets_path)} | self.environment

    def command(self, *args: str) -> list[str]:
        """Return the command line of a command."""
        return [sys.executable, "-m", "cfproxy", *args]

    def popen(self, *args: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start `python -m cfproxy` in the world's folder."""
        with contextlib.suppress(ConfigError):  # reading a configuration records its secrets
            load_settings(self.config_path if self.config_path.exists() else None, self.environment)
        return subprocess.Popen(self.command(*args), cwd=self.folder, env=self.full_environment(), **options)

    async def run(self, *args: str, stdin: str = "") -> Ran:
        """Run a command to its end."""
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        process = self.popen(*args, **pipes)
        try:
            out, err = await asyncio.to_thread(process.communicate, stdin.encode(), PATIENCE_S)
        finally:
            process.kill()
        self.add_secrets()
        ran = Ran(process.returncode, out.decode(), err.decode())
        self.said += [ran.err] if args[0] == "token" else [ran.out, ran.err]
        return ran

    @contextlib.asynccontextmanager
    async def serve(self, *args: str) -> AsyncIterator[Proxy]:
        """Run `cfproxy serve` until the block ends."""
        self.starts += 1
        log_path = self.folder / f"serve-{self.starts}.log"
        with log_path.open("wb") as log:
            process = self.popen("serve", *args, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        connector = aiohttp.TCPConnector(limit=0)
        try:
            async with aiohttp.ClientSession(
                connector=connector, timeout=aiohttp.ClientTimeout(total=PATIENCE_S)
            ) as client:
                proxy = Proxy(process, log_path, client)
                await _started(proxy)
                yield proxy
        finally:
            if process.poll() is None:
                process.terminate()
            try:
                await asyncio.to_thread(process.wait, PATIENCE_S)
            finally:
                process.kill()
                self.said.append(log_path.read_text(encoding="utf-8"))
                LEDGER.add_text(log_path.name, self.said[-1])
                self.add_secrets()


async def _started(proxy: Proxy) -> None:
    def told() -> bool:
        assert proxy.process.poll() is None, proxy.log()
        return bool(proxy.events("admin.started"))

    await until(told, "the proxy starts")
    proxy.urls = {event["account"]: f"http://{event['listen']}" for event in proxy.events("proxy.started")}
    proxy.admin_url = f"http://{proxy.events('admin.started')[0]['listen']}"


async def until(condition: Callable[[], bool | Awaitable[bool]], what: str) -> None:
    """Wait for a condition; fail with `what` if it does not occur."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        held = condition()
        if held if isinstance(held, bool) else await held:
            return
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def open_world(folder: Path, **behaviour: Any) -> AsyncIterator[World]:
    """Start a sandbox without a rate limit, in which a replayed refresh token ends the login."""
    secret = f"client-secret-{secrets.token_hex(16)}"
    options: dict[str, Any] = {
        "limiter": "off",
        "reuse_detection": "revoke",
        "client_secret": secret,
        **behaviour,
    }
    async with Sandbox(Behaviour(**options)) as sandbox:
        world = World(
            sandbox,
            folder,
            {
                "client_id": sandbox.behaviour.client_id,
                "client_secret": sandbox.behaviour.client_secret,
                "redirect_uri": sandbox.behaviour.redirect_uris[0],
                "upstream": sandbox.url,
                "authorize_url": f"{sandbox.url}/connect/authorize",
                "token_url": f"{sandbox.url}/connect/token",
                "revocation_url": f"{sandbox.url}/connect/revocation",
                "listen": "127.0.0.1:0",
                "admin": "127.0.0.1:0",
                "store": f"file:{folder / 'store'}",
                "pacing": {"rate": "off"},
                "reload": "off",  # tests say when
                "log": {"level": "debug", "format": "json"},
            },
        )
        world.write_config()
        LEDGER.add_secret(sandbox.behaviour.client_secret, "the app's client secret")
        try:
            yield world
        finally:
            world.add_secrets()
            for path in (*folder.glob("*.log"), *folder.glob("*.out")):
                LEDGER.add_text(path.name, path.read_text(encoding="utf-8", errors="replace"))
