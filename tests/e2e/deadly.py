"""Refresh in children that are killed at their 1st, 2nd, 3rd … step; not a test itself.

Usage: `python deadly.py CONFIG`. Each line on standard input is a number: a child is forked, asks the
broker for a token, and kills itself with SIGKILL at the step of that number. A JSON line on standard
output tells the name of that step, or null when the child came to its end before.

A step is a system call that changes a file or waits for a disk, the token request just before it is
sent, the moment at which the head of its answer has come, and the moment at which all of it has.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import structlog

from cfproxy.auth.models import TokenReply
from cfproxy.auth.token_endpoint import HttpTokenEndpoint
from cfproxy.config import load_settings
from cfproxy.runtime.factory import build_endpoint, build_store, build_token_source

CALLS = ("open", "write", "utime", "fsync", "close", "replace", "unlink")


class Countdown:
    """Kills the process at its step number `left`, having told the step's name."""

    def __init__(self, left: int, told: int) -> None:
        self._left = left
        self._told = told
        self._write = os.write
        self.armed = False

    def step(self, name: str) -> None:
        """Count one step down."""
        if not self.armed:
            return
        self._left -= 1
        if self._left == 0:
            self._write(self._told, name.encode())
            os.kill(os.getpid(), signal.SIGKILL)

    def arm(self) -> None:
        """Put a step before every call, and before and after the token request."""
        for name in CALLS:
            setattr(os, name, self._before(name, getattr(os, name)))
        refresh, start = HttpTokenEndpoint.refresh, aiohttp.ClientResponse.start

        async def told_refresh(endpoint: HttpTokenEndpoint, *given: Any) -> TokenReply:
            self.step("before the request")
            reply = await refresh(endpoint, *given)
            self.step("after the answer")
            return reply

        async def told_start(response: aiohttp.ClientResponse, connection: Any) -> Any:
            started = await start(response, connection)
            self.step("before reading the answer")
            return started

        for owner, method in ((HttpTokenEndpoint, told_refresh), (aiohttp.ClientResponse, told_start)):
            setattr(owner, method.__name__.removeprefix("told_"), method)

    def _before(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self.step(name)
            return real(*args, **options)

        return call


async def refresh_once(config: Path, countdown: Countdown) -> None:
    account = load_settings(config, {}).accounts["default"]
    store, endpoint = build_store(account), build_endpoint(account)
    token_source = build_token_source(account, store, endpoint, structlog.get_logger())
    countdown.armed = True
    await token_source.get()
    countdown.armed = False
    await token_source.aclose()


def attempt(config: Path, number: int) -> str | None:
    """Fork a child that dies at step `number`; return the step's name."""
    seen, told = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(seen)
        try:
            countdown = Countdown(number, told)
            countdown.arm()
            asyncio.run(refresh_once(config, countdown))
        except BaseException:
            os._exit(1)
        os._exit(0)
    os.close(told)
    _, status = os.waitpid(child, 0)
    with os.fdopen(seen) as pipe:
        step = pipe.read()
    if not step and status != 0:
        raise RuntimeError(f"the child failed by itself ({status})")
    return step or None


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    for line in sys.stdin:
        print(json.dumps(attempt(Path(sys.argv[1]), int(line))), flush=True)


if __name__ == "__main__":
    main()
