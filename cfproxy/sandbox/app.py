"""The sandbox itself: both servers, the object store and the control plane on one port.

Nothing outlives `close()`, and nothing is written to disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal, Self

from aiohttp import web
from aiohttp.typedefs import Handler

from cfproxy.config import TcpAddress
from cfproxy.hosts import is_below_localhost, is_loopback, render_authority, resolves_here, split_host
from cfproxy.sandbox import pages, probes
from cfproxy.sandbox.accounts import Accounts
from cfproxy.sandbox.api import Api
from cfproxy.sandbox.assets import Assets
from cfproxy.sandbox.behaviour import Behaviour, Fault
from cfproxy.sandbox.control import Control
from cfproxy.sandbox.gateway import Gateway
from cfproxy.sandbox.grants import AccessToken, Grants
from cfproxy.sandbox.journal import Journal, TokenRequest
from cfproxy.sandbox.studio import Studio
from cfproxy.server.tcp_sockets import bind_tcp

# A burst of connections has to reach the API's limit before the kernel's.
_BACKLOG = 4096
_SHUTDOWN_S = 0.05


class Sandbox:
    """A local stand-in for Creative Force's accounts and gateway servers.

    Args:
        behaviour: the settings; they may be changed while the sandbox runs.
        clock: seconds since the epoch, for expiry and limits.

    `behaviour`, `grants`, `journal` and `studio` give access to everything it knows.
    """

    def __init__(self, behaviour: Behaviour | None = None, clock: Callable[[], float] = time.time) -> None:
        self.behaviour = behaviour or Behaviour()
        self._initial_settings = self.behaviour.model_dump(mode="json")
        self.journal = Journal()
        self.studio = Studio()
        self.grants = Grants(self.behaviour, clock, self.journal)
        self._assets = Assets(self.studio, clock)
        table = [*Api(self.studio, self._assets).routes(), *probes.build_routes()]
        self._gateway = Gateway(self.behaviour, self.grants, self.journal, clock, table)
        self._accounts = Accounts(self.behaviour, self.grants, self.journal, clock)
        self._runner: web.AppRunner | None = None
        self._host = ""  # where it listens, in lower case

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Start listening; port 0 picks a free port.

        Raises:
            OSError: the address is not available.
        """
        runner = web.AppRunner(
            self._build_app(), handler_cancellation=True, access_log=None, shutdown_timeout=_SHUTDOWN_S
        )
        await runner.setup()
        try:
            for sock in bind_tcp(TcpAddress(host, port)):
                await web.SockSite(runner, sock, backlog=_BACKLOG).start()
        except BaseException:
            await runner.cleanup()
            raise
        self._runner, self._host = runner, host.lower()
        bound_port = runner.addresses[0][1]
        self.grants.issuer = self._assets.base_url = f"http://{render_authority(host, bound_port)}"

    async def close(self) -> None:
        """Stop listening and close every connection."""
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
        return self.grants.issuer

    @property
    def token_requests(self) -> list[TokenRequest]:
        """The token endpoint's calls, oldest first."""
        return list(self.journal.token_requests)

    @property
    def api_requests(self) -> int:
        """The number of API calls, whatever their answer was."""
        return self.journal.api_requests

    @property
    def reuse_seen(self) -> int:
        """How often a used refresh token was presented again."""
        return self.journal.reuse_seen

    @property
    def access_tokens(self) -> list[AccessToken]:
        """Every access token issued, oldest first."""
        return list(self.grants.access_tokens.values())

    def issue_code(
        self, redirect_uri: str | None = None, scope: str = "cfgateway offline_access", challenge: str = ""
    ) -> str:
        """Return a code, as if a user had just consented; without `redirect_uri`, for the first one."""
        registered = (*self.behaviour.redirect_uris, f"{self.url}/paste")
        return self.grants.issue_code(redirect_uri or registered[0], scope, challenge)

    def issue_login(self, scope: str = "cfgateway offline_access") -> dict[str, Any]:
        """Return the token response of a new login, without any request."""
        return self.grants.start_login(scope)

    def inject(self, on: Literal["token", "api"], fault: Fault) -> None:
        """Queue a fault for the token endpoint or the API."""
        (self.behaviour.token_faults if on == "token" else self.behaviour.api_faults).append(fault)

    def revoke_access_tokens(self) -> int:
        """Revoke every access token issued so far; return how many were still valid."""
        return self.grants.revoke_access_tokens()

    def reset(self) -> None:
        """Restore the initial settings and studio, and forget tokens and counters."""
        self.behaviour.update(self._initial_settings)
        self.grants.reset()
        self._gateway.limiter.reset()
        self.journal.reset()
        self._assets.reset()
        self.studio.reset()

    def to_document(self) -> dict[str, object]:
        """Return settings and counters in JSON types, without tokens."""
        issued = {
            "codes": len(self.grants.codes),
            "accessTokens": len(self.grants.access_tokens),
            "refreshTokens": len(self.grants.refresh_tokens),
        }
        counters = {**self.journal.to_document(), "issued": issued}
        return {"url": self.url, "behaviour": self.behaviour.model_dump(mode="json"), "counters": counters}

    def _build_app(self) -> web.Application:
        app = web.Application(middlewares=[self._check_host])
        app.add_routes(self._accounts.routes())
        app.add_routes(Control(self.behaviour, self.grants, self.to_document, self.reset).routes())
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

    @web.middleware
    async def _check_host(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse web pages whose name was rebound to this machine.

        The API itself asks for a token, which they can't get: that path is among those that are checked.
        """
        host = request.headers.get("Host")  # which every browser sends
        if host is not None and not request.path.startswith("/v1/"):
            name, _ = split_host(host)
            local_address = request.get_extra_info("sockname", ("",))[0].removeprefix("::ffff:")
            is_own = is_loopback(name) or (name and name in {self._host, local_address})
            if not (is_own or (is_below_localhost(name) and await resolves_here(name))):
                text = (
                    "this Host does not name the sandbox; call http://localhost, or set --listen NAME:PORT\n"
                )
                return web.Response(status=421, text=text)
        return await handler(request)

    async def _paste(self, request: web.Request) -> web.Response:
        return pages.render_paste(f"{self.url}{request.raw_path}")
