"""Every case of the suite: what one side sends reaches the other unchanged, byte by byte."""

from __future__ import annotations

import math
import re
import ssl
from collections.abc import Iterable
from unittest.mock import patch

import pytest
import trustme

from tests.conformance.ends import NotKept
from tests.conformance.play import Stage, open_origin
from tests.conformance.script import Case, Group
from tests.conformance.suite import GROUPS
from tests.support.origin import OK, answering
from tests.support.proxied import proxied

FAILING_PATIENCE_S = 1.0
PATIENCE_S = 10.0


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """The certificate authority that the proxy trusts."""
    return trustme.CA()


# Over TLS the bytes of a head are the same; their segments and the end of a connection may differ.
OVER_TLS = re.compile("Bytes|Framing|Trailers|Streams|Answers without|Answers while|A cut|Expect|Interim|Old")


def _parameters(groups: Iterable[Group], *, kept_only: bool = False) -> list[object]:
    return [
        pytest.param(
            case,
            id=f"{group.name}: {case.name}".replace("::", ":"),
            marks=[pytest.mark.xfail(strict=True, raises=NotKept, reason=case.fails)] if case.fails else [],
        )
        for group in groups
        for case in group.cases
        if not (kept_only and case.fails)
    ]


@pytest.mark.parametrize("case", _parameters(GROUPS))
async def test_is_kept(case: Case) -> None:
    """The case passes through a listener on loopback."""
    await _play(case, None, None)


@pytest.mark.parametrize("case", _parameters(GROUPS, kept_only=True))
async def test_is_kept_without_waiting(case: Case) -> None:
    """The case passes when token, slot and connection are available at once."""
    await _play(case, None, None, warm=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", _parameters((group for group in GROUPS if OVER_TLS.match(group.name)), kept_only=True)
)
async def test_is_kept_over_tls(case: Case, authority: trustme.CA) -> None:
    """The case passes with an https upstream."""
    server, trusting = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(trusting)
    await _play(case, server, trusting)


async def _play(
    case: Case, server: ssl.SSLContext | None, trusting: ssl.SSLContext | None, *, warm: bool = False
) -> None:
    scheme = "https" if server else "http"
    # How soon after its request a client ends its side depends on the load of the machine, not on the case.
    with patch("cfproxy.server.connection.HALF_CLOSE_S", math.inf):
        async with open_origin(server) as origin:
            url = f"{scheme}://{origin.authority.decode()}"
            async with proxied(
                answering(OK), upstream_url=url, tls=trusting, retry=False, warm=warm
            ) as world:
                stage = Stage(
                    origin, world.port, b"token-1", FAILING_PATIENCE_S if case.fails else PATIENCE_S
                )
                await stage.play(case)
