"""A real browser for tests: headless Chromium, driven by playwright-core.

Owns: finding the browser and its driver, starting them, giving back what a script returned.
Must not know: what is tested.
Invariants: nothing is installed and nothing beyond loopback is reached from here; whatever was started
has ended when `run_script` returns.

How to use it: write a JavaScript module beside the test,

    // example.mjs
    export default async ({ browser, context, page, input }) => {
      await page.goto(input.url);
      return { title: await page.title() };
    };

where `page` and the other names are playwright's (https://playwright.dev/docs/api/class-page), and a test:

    @needs_browser
    async def test_the_page_has_a_title(…) -> None:
        seen = await run_script(HERE / "example.mjs", {"url": url})
        assert seen == {"title": "cfproxy"}

`run_script` is a coroutine, so that servers on the same event loop can respond. An exception in the script
fails the test with its message.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
RUNNER = HERE / "run.mjs"
PATIENCE_S = 120.0  # reached only by a hang
ARGUMENTS = (
    "--no-sandbox",  # the sandbox needs a non-root user, which containers often lack
    "--disable-dev-shm-usage",
    # Chromium asks its user before a page may call a local address. Not every browser does, and whether
    # the server is safe without that would not show.
    "--disable-features=LocalNetworkAccessChecks",
)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def find_browser() -> str | None:
    """Return the path of a Chromium."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def missing() -> str:
    """Return what browser tests lack on this machine and how to get it, or an empty string."""
    if find_browser() is None:
        return "no Chromium; on Debian: apt-get install chromium"
    if shutil.which("node") is None:
        return "no Node.js; on Debian: apt-get install nodejs npm"
    packages = json.loads((HERE / "package.json").read_text(encoding="utf-8"))["dependencies"]
    if absent := [name for name in packages if not (HERE / "node_modules" / name).is_dir()]:
        return f"no {', '.join(absent)}; run: npm install --prefix tests/browser --no-package-lock"
    return ""


needs_browser = pytest.mark.skipif(bool(missing()), reason=missing())


async def run_script(script: Path, given: Any = None, *, names: Mapping[str, str] | None = None) -> Any:
    """Run a script in a fresh browser and return its result.

    Args:
        script: a module as described above.
        given: JSON types; the script's `input`.
        names: host name → address, instead of DNS. No other names except localhost resolve.
    """
    rules = [f"MAP {name} {address}" for name, address in (names or {}).items()]
    rules += ["MAP * ~NOTFOUND", "EXCLUDE localhost", "EXCLUDE 127.0.0.1", "EXCLUDE [::1]"]
    job = {
        "script": str(script),
        "executable": find_browser(),
        "args": [*ARGUMENTS, f"--host-resolver-rules={', '.join(rules)}"],
        "input": given,
    }
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        shutil.which("node") or "node", str(RUNNER), stdin=pipe, stdout=pipe, stderr=pipe
    )
    try:
        async with asyncio.timeout(PATIENCE_S):
            out, err = await process.communicate(json.dumps(job).encode())
    finally:
        if process.returncode is None:
            process.terminate()  # then playwright ends the browser
            await process.wait()
    assert process.returncode == 0, err.decode(errors="replace")
    return json.loads(out)
