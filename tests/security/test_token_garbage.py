"""Any response of the token endpoint is a token or one of our errors, and is never quoted."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cfproxy.auth.models import TokenReply
from cfproxy.errors import CfproxyError, GrantRefused, Misconfigured, TokenEndpointUnavailable
from cfproxy.secret import Secret
from tests.integration.auth.raw_server import MARKER, answer, assert_silent, endpoint_at, listening
from tests.security.garbage import NO_ANSWERS, SPICES
from tests.support.examples import examples

GOOD = {
    "access_token": f"{MARKER}1",
    "token_type": "Bearer",
    "expires_in": 3600,
    "refresh_token": f"{MARKER}2",
    "scope": "cfgateway offline_access",
}
ANSWERS = (
    answer(200, GOOD),
    answer(200, {**GOOD, "error": "invalid_grant"}),
    answer(400, {"error": "invalid_grant", "error_description": f"{MARKER} expired"}),
    answer(400, {"error": "invalid_client"}),
    answer(429, {}, "Retry-After: 3"),
    answer(503, None, body=b"<html>down</html>"),
    answer(302, None, "Location: http://evil.example/", body=b""),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def changed(draw: st.DrawFn) -> bytes:
    """Return a response with some bytes changed."""
    said = draw(st.sampled_from(ANSWERS) | st.sampled_from(sorted(NO_ANSWERS.values())))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, min(len(said), 400)))
        skip = draw(st.sampled_from((0, 0, 1, 2, 20)))
        said = said[:at] + draw(st.sampled_from(SPICES)) + said[at + skip :]
    return said


@st.composite
def documents(draw: st.DrawFn) -> bytes:
    """Return a response with arbitrary values for some fields."""
    fields: dict[str, Any] = dict(GOOD)
    for name in draw(st.lists(st.sampled_from([*GOOD, "error", "error_description"]), max_size=3)):
        fields[name] = draw(JSON)
    return answer(draw(st.sampled_from((200, 200, 201, 400, 401, 500))), draw(st.just(fields) | JSON))


async def outcome(said: bytes) -> TokenReply | CfproxyError:
    async with listening(said) as server:
        try:
            return await endpoint_at(server.origin).refresh(Secret("refresh"))
        except CfproxyError as error:
            return error


@pytest.mark.parametrize("garbage", NO_ANSWERS.values(), ids=NO_ANSWERS)
async def test_an_invalid_response_is_a_temporary_failure(garbage: bytes) -> None:
    """A broken server costs no login."""
    assert isinstance(await outcome(garbage), TokenEndpointUnavailable)


@settings(max_examples=examples(250), suppress_health_check=[HealthCheck.too_slow])
@given(said=changed() | documents() | st.binary(max_size=200))
async def test_any_response_of_a_token_endpoint_is_handled(said: bytes) -> None:
    """The result is a usable token, or one of our errors in one line, without a word of the response."""
    given_back = await outcome(said)
    if isinstance(given_back, TokenReply):
        assert given_back.access_token or given_back.refresh_token
        assert given_back.lifetime_s is None or given_back.lifetime_s > 0
    else:
        assert isinstance(given_back, GrantRefused | Misconfigured | TokenEndpointUnavailable)
        assert "\n" not in str(given_back)
        assert MARKER not in repr(given_back)
        assert_silent(given_back)


def test_the_valid_responses_are_accepted() -> None:
    """Otherwise the tests above might only see refusals."""
    assert json.loads(ANSWERS[0].partition(b"\r\n\r\n")[2]) == GOOD
