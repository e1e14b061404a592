"""What a start leaves undone because no request needs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
import trustme

from cfproxy.cli import cli

# After the import of `serve`: whom aiohttp's own contexts trust, and whom ours do.
TRUST = """
import click
from cfproxy.cli import cli
cli.get_command(click.Context(cli), "serve")
from aiohttp import connector
from cfproxy.building import build_tls
from cfproxy.config import load_settings
settings = load_settings(None, {"CFPROXY_CLIENT_ID": "app", "CFPROXY_REDIRECT_URI": "https://example.com/cb"})
ours = build_tls(settings.accounts["default"])
for context in (connector._SSL_CONTEXT_VERIFIED, connector._SSL_CONTEXT_UNVERIFIED, ours):
    print(context.cert_store_stats()["x509_ca"])
"""


def test_the_systems_authorities_are_not_read_by_libraries(tmp_path: Path) -> None:
    """The client library would read them twice, for nothing; connections of ours trust them all the same."""
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    ran = subprocess.run(
        [sys.executable, "-c", TRUST],
        env=os.environ | {"SSL_CERT_FILE": str(tmp_path / "ca.pem")},
        check=True,
        capture_output=True,
        text=True,
    )
    assert ran.stdout.split() == ["0", "0", "1"]


@pytest.mark.parametrize("named", [None, "/etc/authorities.pem"])
def test_the_environment_stays_as_it_was(monkeypatch: pytest.MonkeyPatch, named: str | None) -> None:
    """Whoever names authorities by SSL_CERT_FILE is heard."""
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    if named is not None:
        monkeypatch.setenv("SSL_CERT_FILE", named)
    before = dict(os.environ)
    assert cli.get_command(click.Context(cli), "serve") is not None
    assert dict(os.environ) == before
