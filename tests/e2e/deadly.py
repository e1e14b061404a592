"""Refreshes in child processes that are killed at a given step; not a test itself.

Usage: `python deadly.py CONFIG`. Each line on standard input is a number. For each, a child is forked, which
asks the token source for a token and kills itself with SIGKILL at the step of that number. A JSON line on
standard output has the name of that step, or null if the child ended before it.

Steps are system calls that change a file or wait for a disk, the moment before the token request is sent,
and the moments before the bytes of its answer are read and after the whole answer was.
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

import structlog

from cfproxy.auth import token_endpoint
from cfproxy.auth.models import TokenReply
from cfproxy.auth.token_endpoint import HttpTokenEndpoint
from cfproxy.auth.token_response import EndpointResponse, read_response
from cfproxy.config import load_settings
from cfproxy.runtime.factory import build_endpoint, build_store, build_token_source

CALLS = ("open", "write", "utime", "fsync", "close", "replace", "unlink")


class Countdown:
    """Kills the process at step number `left`, after reporting the name of the step."""

    def __init__(self, left: int, told: int) -> None:
        self._left = left
        self._told = told
        self._write = os.write
        self.armed = False

    def step(self, name: str) -> None:
        """Count down one step."""
        if not self.armed:
            return
        self._left -= 1
        if self._left == 0:
            self._write(self._told, name.encode())
            os.kill(os.getpid(), signal.SIGKILL)

    def arm(self) -> None:
        """Make every call a step, and the moments before and after the token request."""
        for name in CALLS:
            setattr(os, name, self._before(name, getattr(os, name)))
        refresh = HttpTokenEndpoint.refresh

        async def told_refresh(endpoint: HttpTokenEndpoint, *given: Any) -> TokenReply:
            self.step("before the request")
            reply = await refresh(endpoint, *given)
            self.step("after the answer")
            return reply

        def told_read_response(data: bytes, *, ended: bool) -> EndpointResponse | None:
            self.step("before reading the answer")
            return read_response(data, ended=ended)

        for owner, method in ((HttpTokenEndpoint, told_refresh), (token_endpoint, told_read_response)):
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
    """Fork a child that is killed at step `number`; return the name of the step."""
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
