"""The proxy that everybody writes first with aiohttp: an application, one handler, a client session."""

from __future__ import annotations

import logging
import ssl
import sys
from collections.abc import AsyncIterator

from aiohttp import ClientSession, web

PORT, UPSTREAM, TOKEN, CA_PATH = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
HOP_BY_HOP = {
    "host",
    "connection",
    "transfer-encoding",
    "content-length",
    "content-encoding",
    "date",
    "server",
}


async def handle(request: web.Request) -> web.StreamResponse:
    headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
    headers["Authorization"] = f"Bearer {TOKEN}"
    url = UPSTREAM + request.path_qs
    body = request.content if request.can_read_body else None
    async with request.app["session"].request(request.method, url, headers=headers, data=body) as answer:
        kept = {name: value for name, value in answer.headers.items() if name.lower() not in HOP_BY_HOP}
        response = web.StreamResponse(status=answer.status, headers=kept)
        await response.prepare(request)
        async for piece in answer.content.iter_any():
            await response.write(piece)
        await response.write_eof()
        return response


async def session(app: web.Application) -> AsyncIterator[None]:
    from aiohttp import TCPConnector

    context = ssl.create_default_context(cafile=CA_PATH)
    async with ClientSession(connector=TCPConnector(ssl=context)) as app["session"]:
        yield


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    app = web.Application(client_max_size=1 << 30)
    app.cleanup_ctx.append(session)
    app.router.add_route("*", "/{path:.*}", handle)
    web.run_app(app, host="127.0.0.1", port=PORT, print=None, backlog=8192)


if __name__ == "__main__":
    main()
