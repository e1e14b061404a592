"""The sandbox itself: both servers, the object store and the control plane on one port.

Owns: the composition, start and close.
Must not know: any rule of what it composes.
Invariant: nothing outlives `close()`, and nothing is written to disk.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any, Literal, Self

from aiohttp import web

from cfproxy.sandbox import pages, probes
from cfproxy.sandbox.accounts import Accounts
from cfproxy.sandbox.api import Api
from cfproxy.sandbox.assets import Assets
from cfproxy.sandbox.behaviour import Behaviour
from cfproxy.sandbox.control import Control
from cfproxy.sandbox.faults import Fault
from cfproxy.sandbox.gateway import Gateway
from cfproxy.sandbox.grants import AccessToken, Grants
from cfproxy.sandbox.journal import Journal, TokenRequest
from cfproxy.sandbox.studio import Record, Studio

# A burst of connections must meet the API's limit, not the kernel's.
_BACKLOG = 4096
_SHUTDOWN_S = 0.05


class Sandbox:
    """A local stand-in for Creative Force's accounts and gateway servers.

    Args:
        behaviour: how it plays them; its attributes may be changed while it runs.
        clock: seconds since the epoch; expiry and limits follow it.
    """

    def __init__(self, behaviour: Behaviour | None = None, clock: Callable[[], float] = time.time) -> None:
        self._behaviour = behaviour or Behaviour()
        self._initially = copy.deepcopy(self._behaviour.to_document())
        self._journal = Journal()
        self._studio = Studio()
        self._grants = Grants(self._behaviour, clock, self._note_reuse)
        self._assets = Assets(self._studio, clock)
        table = [*Api(self._studio, self._assets).routes(), *probes.build_routes()]
        self._gateway = Gateway(self._behaviour, self._grants, self._journal, clock, table)
        self._accounts = Accounts(self._behaviour, self._grants, self._journal, clock)
        self._runner: web.AppRunner | None = None

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen; port 0 takes a free one.

        Raises:
            OSError: the address can't be had.
        """
        runner = web.AppRunner(
            self._build_app(), handler_cancellation=True, access_log=None, shutdown_timeout=_SHUTDOWN_S
        )
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port, backlog=_BACKLOG).start()
        except BaseException:
            await runner.cleanup()
            raise
        self._runner = runner
        bound_port = runner.addresses[0][1]
        self._grants.issuer = self._assets.base_url = f"http://{_bracket(host)}:{bound_port}"

    async def close(self) -> None:
        """Stop listening and drop every connection."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def url(self) -> str:
        """`http://HOST:PORT` without a slash at the end; empty before `start`."""
        return self._grants.issuer

    @property
    def behaviour(self) -> Behaviour:
        """The settings."""
        return self._behaviour

    @property
    def token_requests(self) -> list[TokenRequest]:
        """The calls of the token endpoint, oldest first."""
        return list(self._journal.token_requests)

    @property
    def api_requests(self) -> int:
        """How many API calls came, whatever the answer was."""
        return self._journal.api_requests

    @property
    def api_arrivals(self) -> list[float]:
        """The instants of the API calls, oldest first."""
        return list(self._journal.api_arrivals)

    @property
    def api_statuses(self) -> dict[int, int]:
        """How many API calls were answered with which status; 444 stands for a dropped connection."""
        return dict(self._journal.api_statuses)

    @property
    def reuse_seen(self) -> int:
        """How often a used refresh token came again."""
        return self._journal.reuse_seen

    @property
    def access_tokens(self) -> list[AccessToken]:
        """Every access token issued, oldest first."""
        return list(self._grants.access_tokens.values())

    @property
    def assets(self) -> list[Record]:
        """Every asset announced, oldest first; once uploaded, with `sizeBytes` and `sha256`."""
        return list(self._studio.assets.values())

    def issue_code(
        self, redirect_uri: str | None = None, scope: str = "cfgateway offline_access", challenge: str = ""
    ) -> str:
        """Return a code, as if a person had just consented; `redirect_uri` defaults to the first one."""
        registered = (*self._behaviour.redirect_uris, f"{self.url}/paste")
        return self._grants.issue_code(redirect_uri or registered[0], scope, challenge)

    def issue_login(self, scope: str = "cfgateway offline_access") -> dict[str, Any]:
        """Return the token endpoint's answer to a fresh login, without any request."""
        return self._grants.start_login(scope)

    def inject(self, on: Literal["token", "api"], fault: Fault) -> None:
        """Queue a fault for the token endpoint or the API."""
        (self._behaviour.token_faults if on == "token" else self._behaviour.api_faults).append(fault)

    def revoke_access_tokens(self) -> int:
        """Make every access token issued so far invalid; return how many were not yet."""
        return self._grants.revoke_access_tokens()

    def reset(self) -> None:
        """Put settings, tokens, counters and the studio back to the start."""
        self._behaviour.update(self._initially)
        self._grants.reset()
        self._gateway.limiter.reset()
        self._journal.reset()
        self._assets.reset()
        self._studio.reset()

    def to_document(self) -> dict[str, object]:
        """Return settings and counters in JSON types, without any token."""
        issued = {
            "codes": len(self._grants.codes),
            "accessTokens": len(self._grants.access_tokens),
            "refreshTokens": len(self._grants.refresh_tokens),
        }
        counters = {**self._journal.to_document(), "issued": issued}
        return {"url": self.url, "behaviour": self._behaviour.to_document(), "counters": counters}

    def _build_app(self) -> web.Application:
        app = web.Application()
        app.add_routes(self._accounts.routes())
        app.add_routes(Control(self).routes())
        app.add_routes(
            [
                web.get("/paste", self._paste, allow_head=False),
                web.get("/_sandbox/style.css", pages.serve_style),
                web.put("/_objects/{key}", self._assets.receive),
                # Not `.*`: a dot stops at an encoded newline.
                web.route("*", r"/v1{tail:(?:/[\s\S]*)?}", self._gateway.handle),
            ]
        )
        return app

    async def _paste(self, request: web.Request) -> web.Response:
        return pages.render_paste(f"{self.url}{request.raw_path}")

    def _note_reuse(self) -> None:
        self._journal.reuse_seen += 1


def _bracket(host: str) -> str:
    return f"[{host}]" if ":" in host else host
