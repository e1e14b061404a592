"""`cfproxy demo`: the sandbox, a login and the proxy in one process.

Owns: the settings of the demonstration. Nothing of it touches a disk or a foreign host.
"""

from __future__ import annotations

import socket
import sys

import click
from structlog.typing import FilteringBoundLogger

from cfproxy.auth import login
from cfproxy.cli.run import wait_for_signal
from cfproxy.config import load_settings
from cfproxy.hosts import render_authority
from cfproxy.runtime.factory import build_login_plan
from cfproxy.runtime.service import Service
from cfproxy.sandbox import Behaviour, Sandbox, approve
from cfproxy.stores import open_store

# Short enough to watch refreshes happen.
ACCESS_LIFETIME_S = 60.0


async def run_demo(host: str, port: int, log: FilteringBoundLogger) -> int:
    """Start everything, print what to try, show requests until a signal comes; return the exit code.

    Args:
        host: where the proxy listens.
        port: likewise; a free one is taken when it is in use.
        log: shows the requests.
    """
    sandbox = Sandbox(Behaviour(access_lifetime_s=ACCESS_LIFETIME_S))
    await sandbox.start()
    try:
        settings = load_settings(
            None,
            {
                "CFPROXY_CLIENT_ID": sandbox.behaviour.client_id,
                "CFPROXY_CLIENT_SECRET": sandbox.behaviour.client_secret,
                "CFPROXY_REDIRECT_URI": sandbox.behaviour.redirect_uris[0],
                "CFPROXY_UPSTREAM": sandbox.url,
                "CFPROXY_AUTHORIZE_URL": f"{sandbox.url}/connect/authorize",
                "CFPROXY_TOKEN_URL": f"{sandbox.url}/connect/token",
                "CFPROXY_REVOCATION_URL": f"{sandbox.url}/connect/revocation",
                "CFPROXY_LISTEN": render_authority(host, free_port(host, port)),
                "CFPROXY_ADMIN": render_authority(host, free_port(host, port + 1 if port else 0)),
                "CFPROXY_STORE": "memory",
            },
        )
        account = settings.accounts["default"]
        store = open_store("memory", None)
        plan = build_login_plan(account, store)
        url, _ = await login.start(plan)
        await login.finish(plan, await approve(url))
        async with Service(settings, (), log, stores={"default": store}) as service:
            print_invitation(service.accounts[0].url, service.admin_url, sandbox.url)
            return await wait_for_signal(service.stopped)
    finally:
        await sandbox.close()


def print_invitation(proxy_url: str, admin_url: str | None, sandbox_url: str) -> None:
    """Print what is running and three command lines that work."""
    echo = click.echo
    echo(f"\nA stand-in for Creative Force runs at {sandbox_url}, and cfproxy is logged in to it.")
    echo(f"Access tokens live {ACCESS_LIFETIME_S:.0f} s here; watch them being refreshed. Ctrl-C ends it.\n")
    echo("Try, in another terminal:\n")
    echo(f"  curl '{proxy_url}/v1/jobs?pageSize=3'")
    echo(f"  curl {proxy_url}/v1/productiontypes")
    echo(
        f"  curl -X POST -H 'Content-Type: application/json' "
        f'-d \'{{"fileName": "shoe.jpg"}}\' {proxy_url}/v1/assets/get-presigned-url\n'
    )
    if admin_url is not None:
        echo(f"Status page: {admin_url}\n")


def free_port(host: str, wanted: int) -> int:
    """Return `wanted` if it is free, else 0: the system chooses."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            if sys.platform != "win32":
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, wanted))
    except OSError:
        return 0
    return wanted
