"""Tests of the driver, because a browser test could otherwise pass without running anything."""

from __future__ import annotations

import pytest

from tests.browser.driver import HERE, needs_browser, run_script
from tests.support.origin import answering, reply, serving

PAGE = reply("200 OK", b"<title>a page</title>", b"Content-Type: text/html")

pytestmark = needs_browser


async def test_a_script_sees_a_page_under_its_host_name() -> None:
    """A real request was made to a host name that only the test defines."""
    async with serving(answering(PAGE)) as origin:
        url = origin.url.replace("127.0.0.1", "page.example")
        seen = await run_script(HERE / "title.mjs", {"url": url}, names={"page.example": "127.0.0.1"})
        assert seen == {"host": "page.example", "title": "a page"}
        assert origin.requests[0].all(b"Host") == [url.removeprefix("http://").encode()]


async def test_a_script_that_fails_fails_the_test() -> None:
    """Its message is in the failure; other host names do not resolve."""
    with pytest.raises(AssertionError, match="ERR_NAME_NOT_RESOLVED"):
        await run_script(HERE / "title.mjs", {"url": "http://unknown.example/"})
