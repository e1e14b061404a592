"""Refresh a login again and again, beside other processes that do the same; not a test itself.

Usage: `python rival.py CONFIG COUNT`. Ends when this process itself made COUNT refreshes.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import structlog

from cfproxy.config import load_settings
from cfproxy.runtime.factory import build_broker, build_store


async def refresh(config: Path, count: int) -> None:
    account = load_settings(config, {}).accounts["default"]
    broker = build_broker(account, build_store(account), structlog.get_logger())
    await broker.start()
    while broker.state().refreshes < count:
        await broker.replace(await broker.get())
    await broker.aclose()


if __name__ == "__main__":
    asyncio.run(refresh(Path(sys.argv[1]), int(sys.argv[2])))
