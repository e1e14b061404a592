"""`cfproxy serve`."""

from __future__ import annotations

import click

from cfproxy.commands.options import choose, common, load
from cfproxy.logs import build_logger
from cfproxy.running import run_loop, serve


@click.command("serve")
@common
@click.option(
    "--account", "accounts", metavar="NAME", multiple=True, help="Serve this account only; repeatable."
)
def serve_command(accounts: tuple[str, ...]) -> int:
    """Run the proxy (the default command)."""
    settings = load()
    for name in accounts:
        choose(settings, name)
    log = build_logger(settings.log.level, settings.log.format)
    return run_loop(serve(settings, accounts, log))
