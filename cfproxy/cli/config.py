"""`cfproxy config`: writes, checks and shows the configuration."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path

import click

from cfproxy.cli.options import common_options, config_option, load_config, locate_config
from cfproxy.config import filled_file, json_schema, problem_with, render_settings, starter_file
from cfproxy.config.conflicts import placeholder_warnings
from cfproxy.config.render import SECRET_VARIABLE
from cfproxy.errors import UsageError


@click.group("config", no_args_is_help=False)
@common_options
def config_group() -> None:
    """Write, check and show the configuration."""


@config_group.command("init")
@common_options
def config_init() -> int:
    """Write a starter file to -c FILE, default ./config.yaml.

    On a terminal, asks for the app's values and fills them in.
    """
    place = Path(config_option() or "config.yaml")
    # Before the questions, so that no answer is lost.
    if os.path.lexists(place):
        raise UsageError(f"{place} already exists; edit it, or choose another, such as -c cfproxy.yaml")
    is_terminal = sys.stdin.isatty() and sys.stderr.isatty()
    text, todo, command = _prompt_for_values() if is_terminal else (starter_file(), _FILL_IN, "config check")
    _write(place, text)
    click.echo(f"Wrote {place}. {todo}: cfproxy {command} -c {shlex.quote(str(place))}")
    return 0


_FILL_IN = "Fill in the app's values, then run"


def _prompt_for_values() -> tuple[str, str, str]:
    """Ask for the app's values; return the file's text, the next step and the next command."""
    click.echo(
        "The app's values are in Creative Force: Studio settings, Integrations, Registered Apps.", err=True
    )
    client_id = _prompt("Client id", "client_id")
    redirect_uri = _prompt("Redirect URI as registered (Enter for client credentials)", "redirect_uri")
    secret = None
    if os.environ.get(SECRET_VARIABLE):
        # No copy of it in a file.
        click.echo(f"The client secret is taken from ${SECRET_VARIABLE}.", err=True)
    else:
        secret = _prompt(f"Client secret, not shown (Enter for ${SECRET_VARIABLE})", "client_secret")
    text = filled_file(client_id, redirect_uri or None, secret or None)
    is_complete = secret or os.environ.get(SECRET_VARIABLE)
    todo = "Now run" if is_complete else f"Set {SECRET_VARIABLE}, then run"
    return text, todo, "login" if redirect_uri else "serve"


def _prompt(question: str, key: str) -> str:
    """Ask until the answer is valid for `key`; only the client ID must not be empty."""

    def checked(answer: str) -> str:
        answer = answer.strip()
        problem = problem_with(key, answer) if answer and key != "client_secret" else None
        if problem is not None:
            raise click.BadParameter(problem)
        return answer

    is_needed = key == "client_id"
    answer: str = click.prompt(
        question,
        default=None if is_needed else "",
        show_default=False,
        hide_input=key == "client_secret",
        value_proc=checked,
        err=True,
    )
    return answer


def _write(place: Path, text: str) -> None:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        # It may contain a secret, so no other user may read it at any time.
        descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(
            f"{place} already exists; edit it, or choose another, such as -c cfproxy.yaml"
        ) from None
    except OSError as error:
        raise UsageError(
            f"{place} cannot be written: {error.strerror}; choose another with -c FILE"
        ) from None


@config_group.command("check")
@common_options
def config_check() -> int:
    """Check the configuration; print all problems at once."""
    settings = load_config()
    click.echo(f"{settings.source}: ok, accounts: {', '.join(settings.accounts)}")
    found, _ = locate_config()
    for note in (*placeholder_warnings(settings), *(found.notes if found.path is None else ())):
        click.echo(f"cfproxy: warning: {note}", err=True)
    return 0


@config_group.command("show")
@common_options
def config_show() -> int:
    """Print the effective configuration with secrets redacted."""
    click.echo(render_settings(load_config(), sys.stdout.encoding), nl=False)
    return 0


@config_group.command("schema")
@common_options
def config_schema() -> int:
    """Print the JSON Schema of the configuration file."""
    click.echo(json.dumps(json_schema(), indent=2))
    return 0
