"""The processes of tests: a command that has ended, and a running proxy. `kit.py` starts them."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

PATIENCE_S = 60.0
PROBLEM = "urn:cfproxy:problem:"


@dataclass(frozen=True)
class Ran:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The only line on stderr."""
        assert self.err.startswith("cfproxy: ")
        assert self.err.count("\n") == 1, self.err
        return self.err.strip()


@dataclass
class Proxy:
    """A running `cfproxy serve`."""

    process: subprocess.Popen[bytes]
    log_path: Path
    client: aiohttp.ClientSession
    urls: dict[str, str] = field(default_factory=dict)
    admin_url: str = ""

    @property
    def url(self) -> str:
        """The URL of the first account."""
        return next(iter(self.urls.values()))

    def log(self) -> str:
        """Return its stderr so far."""
        return self.log_path.read_text(encoding="utf-8")

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return its log events of that name so far."""
        lines = [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name]

    async def status(self, target: str = "/v1/jobs?pageSize=1", **options: Any) -> int:
        """Return the status of an API call."""
        async with self.client.get(self.url + target, **options) as answer:
            await answer.read()
            return answer.status

    async def problem(self, target: str = "/v1/jobs?pageSize=1") -> tuple[str, str | None]:
        """Return the slug of our own answer and its Retry-After; `none` for an answer of the API."""
        async with self.client.get(self.url + target) as answer:
            document = await answer.json(content_type=None)
            kind = document.get("type", "") if isinstance(document, dict) else ""
            slug = kind.removeprefix(PROBLEM) if kind.startswith(PROBLEM) else "none"
            return slug, answer.headers.get("Retry-After")

    async def account(self) -> dict[str, Any]:
        """Return the first account of /status.json."""
        async with self.client.get(f"{self.admin_url}/status.json") as answer:
            document = await answer.json()
            report: dict[str, Any] = document["accounts"][0]
            return report

    async def ready(self) -> int:
        """Return the status of /readyz."""
        async with self.client.get(f"{self.admin_url}/readyz") as answer:
            return answer.status

    async def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; return the exit code."""
        self.process.send_signal(number)
        return await asyncio.to_thread(self.process.wait, PATIENCE_S)
