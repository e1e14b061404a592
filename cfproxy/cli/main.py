"""The command line.

Owns: which commands there are, and exit codes; every error becomes one line that says what to do next.
Must not know: how anything is done.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from importlib import import_module

import click

from cfproxy import __version__, errors
from cfproxy.cli.options import common_options


def run(args: list[str]) -> int:
    """Run one command line.

    Args:
        args: without the program's name.

    Returns:
        the exit code.
    """
    debug = "--debug" in args
    try:
        code = cli.main(args=args, prog_name="cfproxy", standalone_mode=False)
    except (KeyboardInterrupt, click.Abort):
        _tell("interrupted")
        return 128 + signal.SIGINT
    except click.ClickException as error:
        command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "cfproxy"
        _tell(f"{error.format_message().rstrip('.')}; see: {command} --help")
        return errors.UsageError.exit_code
    except errors.CfproxyError as error:
        if debug:
            traceback.print_exception(error)
        for line in str(error).splitlines():
            _tell(line)
        return error.exit_code
    except BrokenPipeError:
        # Whoever read our output has gone, and that is nobody's fault.
        _leave_output()
        return errors.CfproxyError.exit_code
    except Exception as error:
        # What fails while a file is opened has its name: without one it was a stream of ours.
        if isinstance(error, OSError) and error.errno in _UNWRITABLE and error.filename is None:
            _leave_output()
            _tell(f"the output can't be written: {error.strerror}; make room, or write it elsewhere")
            return errors.CfproxyError.exit_code
        if debug:
            raise
        _tell(f"internal fault ({type(error).__name__}); run it again with --debug")
        return errors.CfproxyError.exit_code
    return code if isinstance(code, int) else 0


_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


def _tell(line: str) -> None:
    # Where even this can't be written, the exit code still tells.
    with contextlib.suppress(OSError):
        click.echo(f"cfproxy: {line}", err=True)


def _leave_output() -> None:
    # Writing the rest when the process ends would only fail again.
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# Each command and where it is: only the module of the one that is called is imported.
_COMMANDS = {
    "serve": "serve:serve_command",
    "login": "login:login_command",
    "status": "status:status_command",
    "doctor": "doctor:doctor_command",
    "wait": "wait:wait_command",
    "token": "status:token_command",
    "logout": "login:logout_command",
    "store": "store:store_group",
    "config": "config:config_group",
    "sandbox": "sandbox:sandbox_command",
    "demo": "sandbox:demo_command",
    "completion": "completion:completion_command",
}


_WITH_VALUE = {"-c", "--config", "--account"}
_ALONE = {"--help", "-h", "--version"}


def _names_command(args: list[str]) -> bool:
    """Whether a word stands where a command does: not an option, and not the value of one."""
    words = iter(args)
    for word in words:
        if word in _WITH_VALUE:
            next(words, None)
        elif word in _ALONE or not word.startswith("-"):
            return True
    return False


class _Group(click.Group):
    """A group whose default command is `serve`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # What is still being typed may become a command.
        if not ctx.resilient_parsing and not _names_command(args):
            args = ["serve", *args]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - the parent's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - likewise
        place = _COMMANDS.get(cmd_name)
        if place is None:
            return None
        module, _, name = place.partition(":")
        with _no_authorities():
            command: click.Command = getattr(import_module(f"cfproxy.cli.{module}"), name)
        return command


@contextlib.contextmanager
def _no_authorities() -> Iterator[None]:
    """Have OpenSSL find no certificate authorities of the system.

    aiohttp reads them twice while it is imported, for contexts that we don't use: those of every connection
    of ours are made later (`building.build_tls`). The variable is OpenSSL's own way to name another file.
    """
    name = "SSL_CERT_FILE"
    before = os.environ.get(name)
    os.environ[name] = os.devnull
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cfproxy")
@common_options
def cli() -> None:
    """Give any HTTP client access to the Creative Force Gateway API, without OAuth code.

    Without a command, cfproxy serves. Start with 'cfproxy demo'.
    """
