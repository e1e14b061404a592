"""What a start leaves undone because no request needs it."""

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

# After the import of `serve`: whom aiohttp's own contexts trust, and whom ours do.
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


# What has been imported when the listeners are open and the start is over.
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


def test_what_no_request_to_the_api_needs_is_not_waited_for() -> None:
    """The admin listener's server and metrics, YAML where there is no file, locks where nothing is locked."""
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


def test_no_plugin_sees_the_configuration(tmp_path: Path) -> None:
    """Whatever else is installed: pydantic would load it, and hand it what is validated, secrets included."""
    info = tmp_path / "nosy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: nosy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[pydantic]\nnosy = nosy:plugin\n")
    (tmp_path / "nosy.py").write_text(f"open({str(tmp_path / 'seen')!r}, 'w').close()\nplugin = None\n")
    command = [sys.executable, "-m", "cfproxy", "config", "check"]
    environment = os.environ | SETTINGS | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{Path.cwd()}"}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert not (tmp_path / "seen").exists()


async def test_the_admin_listener_is_built_though_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only when it is needed: by then its files may be another version's."""
    monkeypatch.setattr(admin_listener, "LEAD_S", 0.0)
    async with asyncio.timeout(30), Service(load_settings(None, SETTINGS), (), LOG) as service:
        while service._admin.app is None:
            await asyncio.sleep(0)


async def test_whoever_asks_the_admin_listener_first_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking is what builds it; its end does not wait for it either."""
    monkeypatch.setattr(admin_listener, "LEAD_S", 3600.0)
    async with asyncio.timeout(30), Service(load_settings(None, SETTINGS), (), LOG) as service:
        assert service._admin.app is None
        async with aiohttp.ClientSession() as session, session.get(f"{service.admin_url}/livez") as answer:
            assert answer.status == 200
    async with asyncio.timeout(30), Service(load_settings(None, SETTINGS), (), LOG) as service:
        assert service._admin.app is None


async def test_admin_pages_that_fail_to_load_keep_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log and the responses say so; a reload tries again."""
    monkeypatch.setattr(admin_listener, "LEAD_S", 3600.0)
    with monkeypatch.context() as broken:
        broken.setattr(admin_listener, "_IMPORTED_LATE", ("cfproxy.no_such_module",))
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


def test_the_systems_authorities_are_not_read_by_libraries(tmp_path: Path) -> None:
    """The client library would read them twice, for nothing; connections of ours trust them all the same."""
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
def test_the_environment_stays_as_it_was(monkeypatch: pytest.MonkeyPatch, named: str | None) -> None:
    """Whoever names authorities by SSL_CERT_FILE is heard."""
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    if named is not None:
        monkeypatch.setenv("SSL_CERT_FILE", named)
    before = dict(os.environ)
    assert cli.get_command(click.Context(cli), "serve") is not None
    assert dict(os.environ) == before
