"""The command line: finds the command, and turns every error into one line and an exit code."""

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
from cfproxy.observability.output import release_output


def run(args: list[str]) -> int:
    """Run one command line.

    Args:
        args: the arguments, without the program's name.

    Returns:
        the exit code.
    """
    try:
        return _run(args)
    finally:
        release_output()


def _run(args: list[str]) -> int:
    debug = "--debug" in args
    try:
        code = cli.main(args=args, prog_name="cfproxy", standalone_mode=False)
    except (KeyboardInterrupt, click.Abort):
        _print_error("interrupted")
        return 128 + signal.SIGINT
    except click.ClickException as error:
        command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "cfproxy"
        _print_error(f"{error.format_message().rstrip('.')}; see: {command} --help")
        return errors.UsageError.exit_code
    except errors.CfproxyError as error:
        if debug:
            traceback.print_exception(error)
        for line in str(error).splitlines():
            _print_error(line)
        return error.exit_code
    except BrokenPipeError:
        # The program that reads our output has ended, which is not an error.
        _discard_output()
        return errors.CfproxyError.exit_code
    except Exception as error:
        # Errors of opening a file have its name; without one, it was one of our streams.
        if isinstance(error, OSError) and error.errno in _UNWRITABLE and error.filename is None:
            _discard_output()
            _print_error(f"the output can't be written: {error.strerror}; free space, or write it elsewhere")
            return errors.CfproxyError.exit_code
        if debug:
            raise
        if isinstance(error, UnicodeEncodeError):  # of a path; the standard streams escape what they lack
            _print_error(
                f"a path has characters that {error.encoding}, this system's encoding, lacks; use UTF-8"
            )
            return errors.UsageError.exit_code
        _print_error(f"internal error ({type(error).__name__}); run it again with --debug")
        return errors.CfproxyError.exit_code
    return code if isinstance(code, int) else 0


_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


def _print_error(line: str) -> None:
    # If this can't be written either, the exit code still reports the error.
    with contextlib.suppress(OSError):
        click.echo(f"cfproxy: {line}", err=True)


def _discard_output() -> None:
    # Flushing the rest at the end of the process would only fail again.
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# Each command and its place; only the module of the called command is imported.
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
    "demo": "demo:demo_command",
    "completion": "completion:completion_command",
}


_WITH_VALUE = {"-c", "--config", "--account"}
_ALONE = {"--help", "-h", "--version"}


def _names_command(args: list[str]) -> bool:
    """Whether one of the words is a command, not an option or its value."""
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
        # An incomplete word may become a command.
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
    """Keep OpenSSL from loading the system's certificate authorities.

    aiohttp loads them twice during its import, which is slow, for contexts that cfproxy does not use (its own
    come from `factory.build_tls`). `SSL_CERT_FILE` is OpenSSL's variable for another file.
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
