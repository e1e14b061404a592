"""Goes through the login page without a browser; the redirect is returned, not followed."""

from __future__ import annotations

from typing import Literal

import aiohttp
from yarl import URL

from cfproxy.errors import LoginFailed

_TIMEOUT_S = 30.0


async def approve(authorize_url: str, *, decision: Literal["allow", "deny"] = "allow") -> str:
    """Open `authorize_url`, press "Yes, Allow" (or "No") and return the redirected URL.

    Raises:
        LoginFailed: the server shows an error page or cannot be reached.
    """
    # Unchanged: a server may compare the query's values exactly.
    address = URL(authorize_url, encoded=True)
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    try:
        async with aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()) as session:
            async with session.get(address, allow_redirects=False) as page:
                if page.status == 302:
                    return page.headers["Location"]
                _expect(page.status, 200)
            form = {"decision": decision}
            async with session.post(address, data=form, allow_redirects=False) as answer:
                _expect(answer.status, 302)
                return answer.headers["Location"]
    except (aiohttp.ClientError, TimeoutError, KeyError, ValueError) as error:
        raise LoginFailed(
            "the sandbox's login page sent no usable response; is the sandbox running?"
        ) from error


def _expect(status: int, expected: int) -> None:
    if status != expected:
        raise LoginFailed(f"the sandbox's login page answered {status}; check client_id and redirect_uri")
