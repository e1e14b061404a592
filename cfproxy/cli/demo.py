"""`cfproxy demo`: the sandbox, a login and the proxy in one process.

The demo uses no disk and no other host.
"""

from __future__ import annotations

import click
from structlog.typing import FilteringBoundLogger

from cfproxy.auth import login
from cfproxy.cli.options import debug_option, is_debug, parse_listen_option, reject_config_option
from cfproxy.cli.run import run_loop, wait_for_signal
from cfproxy.config import TcpAddress, load_settings
from cfproxy.errors import UsageError
from cfproxy.hosts import may_be_loopback, render_authority
from cfproxy.observability.logs import build_logger
from cfproxy.observability.output import check_output, unblock_output
from cfproxy.runtime.factory import build_login_plan
from cfproxy.runtime.service import Service
from cfproxy.sandbox import Behaviour, Sandbox, approve
from cfproxy.server.tcp_sockets import bind_tcp
from cfproxy.stores import open_store

# Short enough to watch refreshes.
ACCESS_LIFETIME_S = 60.0


async def run_demo(host: str, port: int, log: FilteringBoundLogger) -> int:
    """Start everything, print what to try, and log requests until a signal; return the exit code.

    Args:
        host: host to listen at.
        port: port to listen at; a free one is used instead if it is in use.
        log: logs the requests.
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
                "CFPROXY_LISTEN": render_authority(host, _free_port(host, port)),
                "CFPROXY_ADMIN": render_authority(host, _free_port(host, port + 1 if port else 0)),
                "CFPROXY_STORE": "memory",
            },
        )
        account = settings.accounts["default"]
        store = open_store("memory", None)
        plan = build_login_plan(account, store)
        url, _ = await login.start(plan)
        await login.finish(plan, await approve(url))
        async with Service(settings, (), log, stores={"default": store}) as service:
            _print_commands(service.accounts[0].url, service.admin_url, sandbox.url)
            check_output()
            return await wait_for_signal(service.stopped)
    finally:
        await sandbox.close()


def _print_commands(proxy_url: str, admin_url: str | None, sandbox_url: str) -> None:
    """Print what is running, and three commands to try."""
    echo = click.echo
    echo(f"\nThe sandbox imitates Creative Force at {sandbox_url}, and cfproxy is logged in to it.")
    echo(
        f"Access tokens expire after {ACCESS_LIFETIME_S:.0f} s, so the log shows refreshes. Ctrl-C ends it.\n"
    )
    echo("Try, in another terminal:\n")
    echo(f"  curl '{proxy_url}/v1/jobs?pageSize=3'")
    echo(f"  curl {proxy_url}/v1/productiontypes")
    echo(
        f"  curl -X POST -H 'Content-Type: application/json' "
        f'-d \'{{"fileName": "shoe.jpg"}}\' {proxy_url}/v1/assets/get-presigned-url\n'
    )
    if admin_url is not None:
        echo(f"Status page: {admin_url}\n")


def _free_port(host: str, preferred: int) -> int:
    """Return `preferred` if it is free, else 0, which lets the system choose."""
    try:
        for probe in bind_tcp(TcpAddress(host, preferred)):
            probe.close()
    except OSError:
        return 0
    return preferred


@click.command("demo")
@debug_option
@click.option(
    "--listen", default="localhost:8080", metavar="HOST:PORT", help="Address of the proxy.", show_default=True
)
def demo_command(listen: str) -> int:
    """Run sandbox, login and proxy together; print requests to try."""
    reject_config_option("the demo")
    host, port = parse_listen_option(listen)
    if not may_be_loopback(host):
        raise UsageError("the demo listens on this machine only: --listen localhost:PORT")
    unblock_output()
    return run_loop(run_demo(host, port, build_logger("debug" if is_debug() else "info", "console")))
