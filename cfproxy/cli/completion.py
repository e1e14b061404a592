"""`cfproxy completion`: prints a shell's completion script for commands, options and accounts."""

from __future__ import annotations

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from cfproxy.cli.options import debug_option

_SHELLS: dict[str, type[ShellComplete]] = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}
_WHERE = """\
\b
bash  in ~/.bashrc: eval "$(cfproxy completion bash)"  (4.4 or newer)
zsh   in ~/.zshrc, after compinit: eval "$(cfproxy completion zsh)"
fish  cfproxy completion fish > ~/.config/fish/completions/cfproxy.fish"""


@click.command("completion", epilog=_WHERE)
@debug_option
@click.argument("shell", type=click.Choice(list(_SHELLS)))
def completion_command(shell: str) -> int:
    """Print a shell's completion script."""
    root = click.get_current_context().find_root().command
    click.echo(_SHELLS[shell](root, {}, "cfproxy", "_CFPROXY_COMPLETE").source())
    return 0
