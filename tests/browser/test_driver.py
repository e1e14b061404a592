"""The driver itself: otherwise a browser test could pass because nothing ran."""

from __future__ import annotations

import pytest

from tests.browser.driver import HERE, needs_browser, run_script
from tests.support.origin import answering, reply, serving

PAGE = reply("200 OK", b"<title>a page</title>", b"Content-Type: text/html")

pytestmark = needs_browser


async def test_a_script_sees_a_page_under_the_name_it_asked_for() -> None:
    """It makes a real request, to a name that only the test resolves."""
    async with serving(answering(PAGE)) as origin:
        url = origin.url.replace("127.0.0.1", "page.example")
        seen = await run_script(HERE / "title.mjs", {"url": url}, names={"page.example": "127.0.0.1"})
        assert seen == {"host": "page.example", "title": "a page"}
        assert origin.requests[0].all(b"Host") == [url.removeprefix("http://").encode()]


async def test_a_script_that_fails_fails_the_test() -> None:
    """With the script's own message; unknown names do not resolve."""
    with pytest.raises(AssertionError, match="ERR_NAME_NOT_RESOLVED"):
        await run_script(HERE / "title.mjs", {"url": "http://unknown.example/"})
