"""`cfproxy serve`."""

from __future__ import annotations

import click

from cfproxy.cli.options import choose_account, common_options, complete_account, settings_reader
from cfproxy.cli.run import run_loop, serve
from cfproxy.observability.logs import LogOutput
from cfproxy.observability.output import unblock_output


@click.command("serve")
@common_options
@click.option(
    "--account",
    "accounts",
    metavar="NAME",
    multiple=True,
    shell_complete=complete_account,
    help="Serve only this account; repeatable.",
)
def serve_command(accounts: tuple[str, ...]) -> int:
    """Run the proxy (the default command)."""
    read = settings_reader()
    settings = read()
    for name in accounts:
        choose_account(settings, name)
    unblock_output()
    logs = LogOutput(settings.log.level, settings.log.format, settings.log.sample)
    return run_loop(serve(settings, accounts, logs, read))
