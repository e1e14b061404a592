"""Refresh a login repeatedly while other processes do the same. Not a test itself.

Usage: `python rival.py CONFIG COUNT`. Exits when this process has made COUNT refreshes.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import structlog

from cfproxy.config import load_settings
from cfproxy.runtime.factory import build_endpoint, build_store, build_token_source


async def refresh(config: Path, count: int) -> None:
    account = load_settings(config, {}).accounts["default"]
    store, endpoint = build_store(account), build_endpoint(account)
    token_source = build_token_source(account, store, endpoint, structlog.get_logger())
    await token_source.start()
    while token_source.state().refreshes < count:
        await token_source.replace(await token_source.get(), None)
    await token_source.aclose()


if __name__ == "__main__":
    asyncio.run(refresh(Path(sys.argv[1]), int(sys.argv[2])))
