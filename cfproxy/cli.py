"""The command line.

Owns: commands, options, messages and exit codes; every error becomes one line that says what to do next.
Must not know: how anything is done.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from cfproxy import __version__, errors, login, service
from cfproxy.broker import Broker
from cfproxy.config import (
    Account,
    Settings,
    find_config,
    json_schema,
    load_settings,
    render_settings,
    starter_file,
)
from cfproxy.demo import run_demo
from cfproxy.logs import build_logger
from cfproxy.ports import TokenStore
from cfproxy.report import render_text, report_stored
from cfproxy.running import EXIT_INTERRUPTED, run_loop, serve, wait_for_signal
from cfproxy.sandbox import Behaviour, Sandbox, parse_setting
from cfproxy.token import Token

_F = TypeVar("_F", bound=Callable[..., Any])

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_CODES: tuple[tuple[type[errors.CfproxyError], int], ...] = (
    (errors.ConfigError, EXIT_USAGE),
    (errors.UsageError, EXIT_USAGE),
    (errors.LoginRequired, 3),
    (errors.StoreUnavailable, 4),
    (errors.StoreUnusable, 4),
    (errors.TokenEndpointUnavailable, 5),
    (errors.Misconfigured, 5),
    (errors.GrantRefused, 5),
    (errors.UpstreamError, 5),
    (errors.CfproxyError, EXIT_FAILURE),
)


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
        click.echo("cfproxy: interrupted", err=True)
        return EXIT_INTERRUPTED
    except click.ClickException as error:
        command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "cfproxy"
        click.echo(f"cfproxy: {error.format_message()}; see: {command} --help", err=True)
        return EXIT_USAGE
    except errors.CfproxyError as error:
        if debug:
            _print_trace(error)
        for line in str(error).splitlines():
            click.echo(f"cfproxy: {line}", err=True)
        return next(code for kind, code in EXIT_CODES if isinstance(error, kind))
    except BrokenPipeError:
        # Whoever read our output has gone; writing the rest would only fail again.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURE
    except Exception as error:
        if debug:
            raise
        click.echo(f"cfproxy: internal fault ({type(error).__name__}); run it again with --debug", err=True)
        return EXIT_FAILURE
    return code if isinstance(code, int) else 0


def _print_trace(error: BaseException) -> None:
    import traceback  # noqa: PLC0415 - only for --debug

    traceback.print_exception(error)


class _Group(click.Group):
    """A group whose default command is `serve`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        alone = {"--help", "-h", "--version"}
        if not args or (args[0].startswith("-") and not alone.intersection(args) and not self._named(args)):
            args = ["serve", *args]
        return super().parse_args(ctx, args)

    def _named(self, args: list[str]) -> bool:
        return any(arg in self.commands for arg in args)


def _remember(ctx: click.Context, option: click.Parameter, value: object) -> None:
    # `meta` is shared by a command and its groups: the option may stand before or after the command's name.
    if value and option.name is not None:
        ctx.meta[f"cfproxy.{option.name}"] = value


def common(function: _F) -> _F:
    """Give a command `-c` and `--debug`; `_settings` and `_debug` read them."""
    config = click.option(
        "-c",
        "--config",
        metavar="FILE",
        expose_value=False,
        callback=_remember,
        help="The configuration file; default: $CFPROXY_CONFIG, ./config.yaml, the user's config folder.",
    )
    debug = click.option(
        "--debug", is_flag=True, expose_value=False, callback=_remember, help="Show tracebacks."
    )
    return config(debug(function))


def _config_path() -> str | None:
    path: str | None = click.get_current_context().meta.get("cfproxy.config")
    return path


def _debug() -> bool:
    return bool(click.get_current_context().meta.get("cfproxy.debug"))


def _settings() -> Settings:
    """Load the configuration.

    Raises:
        ConfigError
    """
    return load_settings(find_config(_config_path(), os.environ, Path.cwd()), os.environ)


_account_option = click.option("--account", metavar="NAME", help="The account, where there are several.")


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cfproxy")
@common
def cli() -> None:
    """Give any HTTP client access to the Creative Force Gateway API, without OAuth code.

    Without a command, cfproxy serves. Start with 'cfproxy demo'.
    """


@cli.command("serve")
@common
@click.option(
    "--account", "accounts", metavar="NAME", multiple=True, help="Serve this account only; repeatable."
)
def serve_command(accounts: tuple[str, ...]) -> int:
    """Run the proxy (the default command)."""
    settings = _settings()
    for name in accounts:
        _account(settings, name)
    log = build_logger(settings.log.level, settings.log.format)
    return run_loop(serve(settings, accounts, log))


@cli.command("login")
@common
@_account_option
@click.option("--no-browser", is_flag=True, help="Print the address only, open nothing.")
@click.option("--print-url", is_flag=True, help="Print the authorize URL, remember the attempt, exit.")
@click.option("--finish", metavar="URL_OR_CODE", help="Finish that attempt; '-' reads standard input.")
def login_command(
    account: str | None,
    no_browser: bool,
    print_url: bool,
    finish: str | None,
) -> int:
    """Log in, or log in anew; a running proxy picks it up."""
    if print_url and finish is not None:
        raise errors.UsageError("--print-url and --finish are two steps: use one at a time")
    settings = _settings()
    chosen = _account(settings, account)
    if chosen.store == "memory":
        raise errors.UsageError(
            "store: memory ends with each process, so a login here would reach nobody; set store: file"
        )
    if finish == "-":
        finish = sys.stdin.read()
    return run_loop(_login(chosen, print_url=print_url, finish=finish, browser=not no_browser))


async def _login(account: Account, *, print_url: bool, finish: str | None, browser: bool) -> int:
    plan = service.build_login_plan(account, service.build_store(account))
    if account.grant == "client_credentials":
        if print_url or finish is not None:
            raise errors.UsageError("client_credentials has no login in a browser; run: cfproxy login")
        await login.login_app(plan)
        click.echo(f"Account '{account.name}' got a token: client_id and client_secret are right.")
        return 0
    if finish is None:
        url, _ = await login.begin(plan)
        if print_url:
            click.echo(url)
            return 0
        finish = await _ask_for_redirect(url, browser=browser)
    done = await login.finish(plan, finish)
    click.echo(f"Logged in as account '{account.name}' ({done.scope}).")
    return 0


async def _ask_for_redirect(url: str, *, browser: bool) -> str:
    click.echo("Open this address, log in to Creative Force and click 'Yes, Allow':\n", err=True)
    click.echo(url)
    if browser and _has_desktop():
        await asyncio.to_thread(webbrowser.open, url)
    click.echo(
        "\nThe browser then goes to your redirect URI; whether that page loads does not matter.\n"
        "Copy the whole address from its address bar and paste it here (a bare code will do too).\n"
        "An error page of Creative Force instead? Then redirect_uri differs from the registered one.",
        err=True,
    )
    click.echo("> ", err=True, nl=False)
    line: str = await asyncio.to_thread(sys.stdin.readline)
    if not line.strip():
        raise errors.LoginFailed("nothing was pasted; without a terminal use --print-url, then --finish URL")
    return line


def _has_desktop() -> bool:
    """Whether a browser would open in a window; a text browser would take the terminal over."""
    return sys.platform in {"win32", "darwin"} or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )


@cli.command("status")
@common
@_account_option
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def status_command(account: str | None, as_json: bool) -> int:
    """Show who is logged in and what expires when; asks no network."""
    settings = _settings()
    chosen = [_account(settings, account)] if account else list(settings.accounts.values())
    reports = run_loop(_report(chosen))
    click.echo(json.dumps({"accounts": reports}, indent=2) if as_json else render_text(reports))
    states = {report["state"] for report in reports} | {report["store"]["state"] for report in reports}
    if states & {"store-unusable", "store-unavailable"}:
        return 4
    return 3 if "login-required" in states else 0


async def _report(accounts: list[Account]) -> list[dict[str, Any]]:
    reports = []
    for account in accounts:
        store = service.build_store(account)
        stored, store_error = await _stored(account, store)
        now = service.SystemClock().time()
        report = report_stored(service.build_app(account), stored, now, store.location, store_error)
        report["listen"] = str(account.listen)
        report["upstream"] = account.upstream
        reports.append(report)
    return reports


async def _stored(account: Account, store: TokenStore) -> tuple[Any, errors.CfproxyError | None]:
    stored = None
    try:
        stored = await store.load(account.name)
        if stored is not None:
            await store.probe(account.name)
    except (errors.StoreUnavailable, errors.StoreUnusable) as error:
        return stored, error
    return stored, None


@cli.command("token")
@common
@_account_option
def token_command(account: str | None) -> int:
    """Print a fresh access token, for scripts."""
    settings = _settings()
    chosen = _account(settings, account)
    log = build_logger("debug" if _debug() else "silent", "console")
    store = service.build_store(chosen)
    token, unsaved = run_loop(_token(service.build_broker(chosen, store, log), store, chosen.name))
    click.echo(token.value.reveal())
    if unsaved is not None:
        # Unlike a running proxy, this process has no later chance to save what it got.
        raise errors.StoreUnavailable(f"the token above is good, but it is not saved: {unsaved}")
    return 0


async def _token(broker: Broker, store: TokenStore, account: str) -> tuple[Token, errors.CfproxyError | None]:
    stored = await store.load(account)
    if stored is not None and stored.token.remaining_s(service.SystemClock().time()) <= 0:
        # A one-time refresh token must not be spent where its successor can't be kept.
        await store.probe(account)
    await broker.start()
    try:
        token = await broker.get()
    finally:
        await broker.aclose()
    state = broker.state()
    return token, state.store_error if state.unsaved else None


@cli.command("logout")
@common
@_account_option
def logout_command(account: str | None) -> int:
    """Revoke the tokens where the server can, and forget them."""
    settings = _settings()
    chosen = _account(settings, account)
    plan = service.build_login_plan(chosen, service.build_store(chosen))
    done = run_loop(login.logout(plan))
    if not done.found:
        click.echo(f"Account '{chosen.name}' was not logged in.")
        return 0
    told = {
        True: "the server has revoked them",
        False: "the server does not revoke; they die by age",
        None: "the server could not be asked to revoke them; they die by age",
    }
    click.echo(f"Account '{chosen.name}' is logged out. Its tokens are forgotten; {told[done.revoked]}.")
    return 0


@cli.group("config", no_args_is_help=False)
@common
def config_group() -> None:
    """Write, check and show the configuration."""


@config_group.command("init")
@common
def config_init() -> int:
    """Write a starter file: to -c FILE, else ./config.yaml."""
    place = Path(_config_path() or "config.yaml")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        # A secret may be written into it: nobody else may read it from the start.
        descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(starter_file())
    except FileExistsError:
        raise errors.UsageError(
            f"{place} is there already; edit it, or choose another with -c FILE"
        ) from None
    except OSError as error:
        raise errors.UsageError(f"{place} cannot be written: {error.strerror}") from None
    click.echo(f"Wrote {place}. Fill in the app's values, then run: cfproxy config check -c {place}")
    return 0


@config_group.command("check")
@common
def config_check() -> int:
    """Validate the configuration; all problems at once."""
    settings = _settings()
    click.echo(f"{settings.source}: ok, accounts: {', '.join(settings.accounts)}")
    return 0


@config_group.command("show")
@common
def config_show() -> int:
    """Print the effective configuration, secrets redacted."""
    click.echo(render_settings(_settings()), nl=False)
    return 0


@config_group.command("schema")
def config_schema() -> int:
    """Print the JSON Schema of the configuration file."""
    click.echo(json.dumps(json_schema(), indent=2))
    return 0


@cli.command("sandbox")
@common
@click.option("--listen", default="127.0.0.1:9400", metavar="HOST:PORT", help="Where it listens.")
@click.option("--set", "changes", metavar="NAME=VALUE", multiple=True, help="Change a behaviour; repeatable.")
def sandbox_command(listen: str, changes: tuple[str, ...]) -> int:
    """Run a local stand-in for Creative Force's two servers."""
    host, port = _host_and_port(listen)
    behaviour = Behaviour()
    for change in changes:
        name, separator, value = change.partition("=")
        if not separator:
            raise errors.UsageError(f"--set wants NAME=VALUE, not '{name}'")
        try:
            behaviour.update({name: parse_setting(name, value)})
        except ValueError as error:
            raise errors.UsageError(str(error)) from None
    return run_loop(_sandbox(host, port, behaviour))


async def _sandbox(host: str, port: int, behaviour: Behaviour) -> int:
    sandbox = Sandbox(behaviour)
    try:
        await sandbox.start(host, port)
    except OSError as error:
        raise service.ListenError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another with --listen"
        ) from None
    try:
        click.echo(
            f"The sandbox plays both servers at {sandbox.url}\n"
            f"  client_id: {behaviour.client_id}\n  client_secret: {behaviour.client_secret}\n"
            f"  redirect_uri: {behaviour.redirect_uris[0]}, or {sandbox.url}/paste\n"
            f"  authorize_url: {sandbox.url}/connect/authorize\n  token_url: {sandbox.url}/connect/token\n"
            f"  revocation_url: {sandbox.url}/connect/revocation\n  upstream: {sandbox.url}"
        )
        return await wait_for_signal(asyncio.Event())
    finally:
        await sandbox.close()


@cli.command("demo")
@common
@click.option("--listen", default="127.0.0.1:8080", metavar="HOST:PORT", help="Where the proxy listens.")
def demo_command(listen: str) -> int:
    """Run sandbox, login and proxy in one command; prints a curl to try."""
    host, port = _host_and_port(listen)
    return run_loop(run_demo(host, port, build_logger("debug" if _debug() else "info", "console")))


def _host_and_port(listen: str) -> tuple[str, int]:
    host, separator, port = listen.rpartition(":")
    if not separator or not port.isdigit() or int(port) > 65535:
        raise errors.UsageError("--listen wants HOST:PORT, such as 127.0.0.1:9400")
    return host.strip("[]") or "127.0.0.1", int(port)


def _account(settings: Settings, name: str | None) -> Account:
    """Return the named account; without a name `default`, or the only one there is.

    Raises:
        UsageError
    """
    known = ", ".join(settings.accounts)
    if name is None:
        if "default" in settings.accounts:
            return settings.accounts["default"]
        if len(settings.accounts) == 1:
            return next(iter(settings.accounts.values()))
        raise errors.UsageError(f"there are several accounts; choose one with --account: {known}")
    if name not in settings.accounts:
        raise errors.UsageError(f"there is no account '{name}'; there are: {known}")
    return settings.accounts[name]
