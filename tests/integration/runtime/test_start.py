"""The start loads only what requests to the API need."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import aiohttp
import click
import pytest
import structlog
import trustme

from cfproxy.admin import listener as admin_listener
from cfproxy.cli.main import cli
from cfproxy.config import load_settings
from cfproxy.runtime.service import Service
from tests.integration.runtime.test_reload import opened

LOG = structlog.wrap_logger(None, processors=[structlog.testing.LogCapture()])
SETTINGS = {
    "CFPROXY_CLIENT_ID": "app",
    "CFPROXY_REDIRECT_URI": "https://example.com/cb",
    "CFPROXY_STORE": "memory",
    "CFPROXY_LISTEN": "127.0.0.1:0",
    "CFPROXY_ADMIN": "127.0.0.1:0",
}

# The authorities in aiohttp's own contexts and in ours, after the import of `serve`.
TRUST = """
import click
from cfproxy.cli.main import cli
cli.get_command(click.Context(cli), "serve")
from aiohttp import connector
from cfproxy.runtime.factory import build_tls
from cfproxy.config import load_settings
settings = load_settings(None, {SETTINGS})
ours = build_tls(settings.accounts["default"])
for context in (connector._SSL_CONTEXT_VERIFIED, connector._SSL_CONTEXT_UNVERIFIED, ours):
    print(context.cert_store_stats()["x509_ca"])
"""


# The modules that are imported when the start is complete.
STARTED = """
import asyncio, sys
from cfproxy.cli import serve
from cfproxy.config import load_settings
from cfproxy.observability.logs import build_logger
from cfproxy.runtime.service import Service
async def start():
    async with Service(load_settings(None, {SETTINGS}), (), build_logger("error", "json")) as service:
        print(service.admin_url is not None, *sys.modules)
asyncio.run(start())
"""


def test_the_start_does_not_wait_for_modules_that_no_api_request_needs() -> None:
    """Admin endpoints and metrics, YAML without a file, locks without a file store."""
    ran = subprocess.run(
        [sys.executable, "-c", STARTED.format(SETTINGS=SETTINGS)], check=True, capture_output=True, text=True
    )
    is_open, *imported = ran.stdout.split()
    assert is_open == "True"
    assert "cfproxy.runtime.service" in imported
    late = {
        "aiohttp.web",
        "prometheus_client",
        "cfproxy.admin.app",
        "cfproxy.observability.prometheus",
        "yaml",
        "filelock",
    }
    assert not late & set(imported)


def test_no_pydantic_plugin_sees_the_configuration(tmp_path: Path) -> None:
    """Pydantic would load any that is installed, and pass it all values, secrets included."""
    info = tmp_path / "nosy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: nosy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[pydantic]\nnosy = nosy:plugin\n")
    (tmp_path / "nosy.py").write_text(f"open({str(tmp_path / 'seen')!r}, 'w').close()\nplugin = None\n")
    command = [sys.executable, "-m", "cfproxy", "config", "check"]
    environment = os.environ | SETTINGS | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{Path.cwd()}"}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert not (tmp_path / "seen").exists()


async def test_the_admin_listener_is_loaded_without_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Later its files may belong to another version."""
    monkeypatch.setattr(admin_listener, "LEAD_S", 0.0)
    async with asyncio.timeout(30), Service(load_settings(None, SETTINGS), (), LOG) as service:
        while service._admin.app is None:
            await asyncio.sleep(0)


async def test_the_first_admin_request_loads_the_admin_listener(monkeypatch: pytest.MonkeyPatch) -> None:
    """The request is answered, and shutting down does not wait for the load."""
    monkeypatch.setattr(admin_listener, "LEAD_S", 3600.0)
    async with asyncio.timeout(30), Service(load_settings(None, SETTINGS), (), LOG) as service:
        assert service._admin.app is None
        async with aiohttp.ClientSession() as session, session.get(f"{service.admin_url}/livez") as answer:
            assert answer.status == 200
    async with asyncio.timeout(30), Service(load_settings(None, SETTINGS), (), LOG) as service:
        assert service._admin.app is None


async def test_admin_pages_that_fail_to_load_keep_no_request_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log and the responses say so; a reload tries again."""
    monkeypatch.setattr(admin_listener, "LEAD_S", 3600.0)
    with monkeypatch.context() as broken:
        broken.setattr(admin_listener, "_APP", "cfproxy.no_such_module")
        async with opened(tmp_path) as world, asyncio.timeout(30):
            assert world.service is not None
            assert world.client is not None
            url = f"{world.service.admin_url}/livez"
            for _ in range(2):  # a request before it has failed, and one afterwards
                async with world.client.get(url) as answer:
                    assert answer.status == 500
                    assert "admin.failed" in (await answer.json())["detail"]
                assert len(world.events("admin.failed")) == 1
            broken.undo()
            await world.reload()
            while world.service._admin.app is None:
                await asyncio.sleep(0)
            async with world.client.get(url) as answer:
                assert answer.status == 200


def test_libraries_do_not_load_the_systems_authorities(tmp_path: Path) -> None:
    """Aiohttp would load them twice for contexts that are not used; our own context has them."""
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    ran = subprocess.run(
        [sys.executable, "-c", TRUST.format(SETTINGS=SETTINGS)],
        env=os.environ | {"SSL_CERT_FILE": str(tmp_path / "ca.pem")},
        check=True,
        capture_output=True,
        text=True,
    )
    assert ran.stdout.split() == ["0", "0", "1"]


@pytest.mark.parametrize("named", [None, "/etc/authorities.pem"])
def test_the_environment_is_restored(monkeypatch: pytest.MonkeyPatch, named: str | None) -> None:
    """SSL_CERT_FILE keeps the user's value."""
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    if named is not None:
        monkeypatch.setenv("SSL_CERT_FILE", named)
    before = dict(os.environ)
    assert cli.get_command(click.Context(cli), "serve") is not None
    assert dict(os.environ) == before
