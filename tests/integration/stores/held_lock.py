"""Hold an account's lock until killed; not a test itself. Usage: `python held_lock.py FOLDER`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from cfproxy.stores.file import FileStore


async def main() -> None:
    async with FileStore(Path(sys.argv[1])).lock("default", 5):
        print("held", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
