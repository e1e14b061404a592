"""Pages of listed origins, through a real listener: what their browser gets, and what the API sees."""

from __future__ import annotations

import pytest

from cfproxy.proxy.access import AccessRules
from cfproxy.secret import Secret
from tests.support.origin import Message, answering
from tests.support.proxied import proxied

PAGE = b"https://app.studio"
RULES = AccessRules(origins=(PAGE.decode(),), keys=(Secret("k"),))
FROM_PAGE = b"Origin: " + PAGE
KEY = b"X-Cfproxy-Key: k"
OK = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nETag: x\r\nAccess-Control-Allow-Origin: *\r\n"
    b"access-control-allow-credentials: false\r\nVary: Accept\r\n\r\nok"
)


def cors(answer: Message) -> dict[bytes, list[bytes]]:
    names = {name.lower() for name in answer.names if name.lower().startswith(b"access-control-")}
    return {name: answer.all(name) for name in names}


async def test_a_preflight_is_answered_here_without_a_key() -> None:
    """Browsers send no key with it, and it is not forwarded."""
    ask = b"Access-Control-Request-Method: PUT"
    private = b"Access-Control-Request-Private-Network: true"
    async with proxied(answering(OK), rules=RULES) as world:
        client = await world.client()
        answer = await client.ask(b"OPTIONS /v1/jobs HTTP/1.1", FROM_PAGE, ask, private)
        assert (answer.status, answer.body) == (204, b"")
        assert answer.all(b"Access-Control-Allow-Origin") == [PAGE]
        assert answer.all(b"Access-Control-Allow-Methods") == [b"PUT"]
        assert answer.all(b"Access-Control-Allow-Private-Network") == [b"true"]
        assert answer.all(b"Proxy-Status") == [b'cfproxy; details="preflight"']
        assert answer.all(b"Content-Length") == []
        # The actual request follows on the same connection.
        put = await client.ask(b"PUT /v1/jobs HTTP/1.1", FROM_PAGE, KEY, b"Content-Length: 1", body=b"x")
        assert put.body == b"ok"
        assert [request.method for request in world.origin.requests] == [b"PUT"]
        assert ("OPTIONS", 204) in world.counted


async def test_a_preflight_is_subject_to_the_usual_checks() -> None:
    """Bad requests are refused, and an unread body closes the connection."""
    ask = b"Access-Control-Request-Method: PUT"
    async with proxied(answering(OK), rules=RULES) as world:
        twice = await world.ask(b"OPTIONS / HTTP/1.1", FROM_PAGE, ask, b"Host: other.example")
        assert (twice.status, cors(twice).get(b"access-control-allow-methods")) == (400, None)
        client = await world.client()
        answer = await client.ask(b"OPTIONS / HTTP/1.1", FROM_PAGE, ask, b"Content-Length: 5")
        assert (answer.status, answer.all(b"Connection")) == (204, [b"close"])
        assert await client.ended()
        assert world.origin.requests == []


@pytest.mark.parametrize("origin", [PAGE, b"http://HOST"])
async def test_the_api_does_not_learn_of_the_page(origin: bytes) -> None:
    """Many APIs answer 403 to an `Origin` that is not their own."""
    async with proxied(answering(OK), rules=RULES) as world:
        client = await world.client()
        origin = origin.replace(b"HOST", client.host)
        site = b"Sec-Fetch-Site: " + (b"cross-site" if origin == PAGE else b"same-origin")
        referer = b"Referer: " + origin + b"/page?x"
        answer = await client.ask(
            b"POST / HTTP/1.1", b"Origin: " + origin, site, referer, KEY, b"X-A: 1", b"Content-Length: 0"
        )
        assert answer.body == b"ok"
        [request] = world.origin.requests
        assert request.all(b"Origin") == request.all(b"Referer") == []
        assert request.all(b"Sec-Fetch-Site") == ([] if origin == PAGE else [b"same-origin"])
        assert request.all(b"X-A") == [b"1"]


async def test_a_page_can_read_why_its_request_line_is_malformed() -> None:
    """`fetch` sends `patch` as its script wrote it; a preflight gets the same answer as the request would."""
    ask = b"Access-Control-Request-Method: PUT"
    async with proxied(answering(OK), rules=RULES) as world:
        for line in (b"patch / HTTP/1.1", b"OPTIONS /a#b HTTP/1.1"):
            client = await world.client()
            answer = await client.ask(line, FROM_PAGE, ask, b"X-Request-Id: abc")
            assert (answer.status, answer.all(b"Connection")) == (400, [b"close"])
            assert answer.all(b"Access-Control-Allow-Origin") == [PAGE]
            assert answer.all(b"X-Request-Id") == [b"abc"]
            assert await client.ended()
        assert world.origin.requests == []


async def test_a_page_gets_cookies_that_work_across_sites() -> None:
    """A program gets the same cookie without what keeps it from plain HTTP."""
    said = b"Set-Cookie: a=1; SameSite=None; Secure"
    async with proxied(answering(OK.replace(b"ETag: x", said)), rules=RULES) as world:
        from_page = await world.ask(b"GET / HTTP/1.1", FROM_PAGE, KEY)
        assert from_page.all(b"Set-Cookie") == [b"a=1; SameSite=None; Secure"]
        assert (await world.ask(b"GET / HTTP/1.1", KEY)).all(b"Set-Cookie") == [b"a=1"]


async def test_a_response_names_the_listed_origin_once_and_exposes_all_headers() -> None:
    """The API's own CORS headers are replaced."""
    async with proxied(answering(OK), rules=RULES) as world:
        answer = await world.ask(b"GET / HTTP/1.1", FROM_PAGE, KEY)
        assert cors(answer) == {
            b"access-control-allow-origin": [PAGE],
            b"access-control-allow-credentials": [b"true"],
            b"access-control-expose-headers": [b"ETag, Vary"],
        }
        assert answer.all(b"Vary") == [b"Accept", b"Origin"]


async def test_programs_get_no_cors_headers() -> None:
    """Without an Origin there are none, not even the API's."""
    async with proxied(answering(OK), rules=RULES) as world:
        answer = await world.ask(b"GET / HTTP/1.1", KEY)
        assert (answer.body, cors(answer), answer.all(b"Vary")) == (b"ok", {}, [b"Accept", b"Origin"])
    async with proxied(answering(OK)) as world:
        answer = await world.ask(b"GET / HTTP/1.1")
        assert (answer.body, cors(answer), answer.all(b"Vary")) == (b"ok", {}, [b"Accept"])


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ((b"GET / HTTP/1.1", FROM_PAGE), 401),
        ((b"TRACE / HTTP/1.1", FROM_PAGE, KEY), 403),
        ((b"GET * HTTP/1.1", FROM_PAGE, KEY), 400),
    ],
)
async def test_a_listed_page_may_read_a_refusal(lines: tuple[bytes, ...], status: int) -> None:
    """Our own responses carry the same headers."""
    async with proxied(answering(OK), rules=RULES) as world:
        answer = await world.ask(lines[0], *lines[1:])
        assert (answer.status, answer.all(b"Access-Control-Allow-Origin")) == (status, [PAGE])
        assert b"Proxy-Status" in answer.all(b"Access-Control-Expose-Headers")[0]
        assert world.origin.requests == []


@pytest.mark.parametrize("method", [b"OPTIONS", b"GET"])
async def test_a_page_that_is_not_listed_gets_nothing(method: bytes) -> None:
    """Neither its preflights nor its requests reach the API, and it can't read the refusal."""
    headers = (b"Origin: https://evil", b"Access-Control-Request-Method: PUT", KEY)
    for rules in (RULES, AccessRules()):
        async with proxied(answering(OK), rules=rules) as world:
            answer = await world.ask(method + b" / HTTP/1.1", *headers)
            assert (answer.status, cors(answer)) == (403, {})
            assert world.origin.requests == []


async def test_a_preflight_with_a_foreign_host_is_refused() -> None:
    """DNS rebinding fails before anything is revealed."""
    async with proxied(answering(OK), rules=RULES) as world:
        client = await world.client()
        client.host = b"evil.example:%d" % world.port
        answer = await client.ask(b"OPTIONS / HTTP/1.1", FROM_PAGE, b"Access-Control-Request-Method: PUT")
        assert answer.status == 421


async def test_an_options_request_of_a_program_is_forwarded() -> None:
    """OPTIONS that is no preflight is a method like any other."""
    async with proxied(answering(OK), rules=RULES) as world:
        for headers in ((KEY,), (KEY, FROM_PAGE), (KEY, b"Access-Control-Request-Method: PUT")):
            assert (await world.ask(b"OPTIONS / HTTP/1.1", *headers)).body == b"ok"
        assert [request.method for request in world.origin.requests] == [b"OPTIONS"] * 3
