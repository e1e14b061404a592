"""`cfproxy config …`."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import click

from cfproxy.commands.options import common, config_path, load
from cfproxy.config import json_schema, render_settings, starter_file
from cfproxy.errors import UsageError


@click.group("config", no_args_is_help=False)
@common
def config_group() -> None:
    """Write, check and show the configuration."""


@config_group.command("init")
@common
def config_init() -> int:
    """Write a starter file: to -c FILE, else ./config.yaml."""
    place = Path(config_path() or "config.yaml")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        # A secret may be written into it: nobody else may read it from the start.
        descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(starter_file())
    except FileExistsError:
        raise UsageError(f"{place} is there already; edit it, or choose another with -c FILE") from None
    except OSError as error:
        raise UsageError(f"{place} cannot be written: {error.strerror}") from None
    check = f"cfproxy config check -c {shlex.quote(str(place))}"
    click.echo(f"Wrote {place}. Fill in the app's values, then run: {check}")
    return 0


@config_group.command("check")
@common
def config_check() -> int:
    """Validate the configuration; all problems at once."""
    settings = load()
    click.echo(f"{settings.source}: ok, accounts: {', '.join(settings.accounts)}")
    return 0


@config_group.command("show")
@common
def config_show() -> int:
    """Print the effective configuration, secrets redacted."""
    click.echo(render_settings(load()), nl=False)
    return 0


@config_group.command("schema")
@common
def config_schema() -> int:
    """Print the JSON Schema of the configuration file."""
    click.echo(json.dumps(json_schema(), indent=2))
    return 0
