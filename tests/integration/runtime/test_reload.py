"""Reloads: what changes while the proxy serves, what can't change, and that errors change nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog

from cfproxy.config import Settings, load_settings
from cfproxy.errors import BadTarget, ConfigError, ListenError, ShuttingDown
from cfproxy.observability.logs import LogOutput
from cfproxy.runtime.reload_rules import check_reload, list_changes
from cfproxy.runtime.service import Service
from cfproxy.sandbox import Behaviour, Fault, Sandbox
from tests.support.redis_server import free_port

ACTION = {"X-Cfproxy-Admin": "1"}


@dataclass
class World:
    """A proxy in this process, its sandbox, and the variables that configure it."""

    sandbox: Sandbox
    environ: dict[str, str]
    entries: list[Any] = field(default_factory=list)
    service: Service | None = None
    client: aiohttp.ClientSession | None = None

    def load(self) -> Settings:
        return load_settings(None, self.environ)

    def events(self, name: str) -> list[Any]:
        return [entry for entry in self.entries if entry["event"] == name]

    async def reload(self, **changes: str | None) -> list[str]:
        assert self.service is not None
        for key, value in changes.items():
            if value is None:
                self.environ.pop(f"CFPROXY_{key}", None)
            else:
                self.environ[f"CFPROXY_{key}"] = value
        return await self.service.reload()

    def url(self, account: str = "default") -> str:
        assert self.service is not None
        return next(each.url for each in self.service.accounts if each.app.account == account)

    async def call(self, account: str = "default", url: str | None = None, **headers: str) -> int:
        assert self.client is not None
        target = f"{url or self.url(account)}/v1/jobs?pageSize=1"
        async with self.client.get(target, headers=headers) as answer:
            await answer.read()
            return answer.status


@contextlib.asynccontextmanager
async def opened(
    tmp_path: Path, inherited: list[tuple[str, socket.socket]] | None = None, **changes: str
) -> AsyncIterator[World]:
    async with Sandbox(Behaviour(limiter="off")) as sandbox:
        environ = {
            "CFPROXY_CLIENT_ID": sandbox.behaviour.client_id,
            "CFPROXY_CLIENT_SECRET": sandbox.behaviour.client_secret,
            "CFPROXY_GRANT": "client_credentials",
            "CFPROXY_UPSTREAM": sandbox.url,
            "CFPROXY_TOKEN_URL": f"{sandbox.url}/connect/token",
            "CFPROXY_STORE": f"file:{tmp_path / 'store'}",
            "CFPROXY_LISTEN": "127.0.0.1:0",
            "CFPROXY_ADMIN": "127.0.0.1:0",
            "CFPROXY_PACING__RATE": "off",
        } | {f"CFPROXY_{key}": value for key, value in changes.items()}
        world = World(sandbox, environ)
        capture = structlog.testing.LogCapture()
        world.entries = capture.entries
        log = structlog.wrap_logger(None, processors=[capture])
        service = Service(world.load(), (), log, load=world.load, inherited=inherited)
        async with service, aiohttp.ClientSession() as client:
            world.service, world.client = service, client
            yield world


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with opened(tmp_path) as opened_world:
        yield opened_world


async def test_a_reload_applies_to_the_next_request_on_the_same_connection(world: World) -> None:
    """A new access key is required at once, and no connection is closed."""
    assert world.service is not None
    assert world.client is not None
    assert await world.call() == 200
    connections = list(world.service.accounts[0].server.connections)
    assert await world.reload(ACCESS__KEYS="sesame") == ["access.keys"]
    assert await world.call() == 401
    assert await world.call(**{"X-Cfproxy-Key": "sesame"}) == 200
    assert list(world.service.accounts[0].server.connections) == connections
    assert world.events("config.reloaded")[-1]["changed"] == ["access.keys"]


async def test_a_reload_leaves_accounts_alone_whose_settings_are_equal(world: World) -> None:
    """A change of another account rebuilds none of their parts."""
    assert world.service is not None
    await world.reload(ACCOUNTS__ACME__LISTEN="127.0.0.1:0")
    default, acme = world.service.accounts
    await world.reload(ACCOUNTS__ACME__ACCESS__METHODS="GET")
    assert world.service.accounts[0] is default
    assert world.service.accounts[1] is not acme


@pytest.mark.parametrize(
    ("key", "value", "rebuilt"),
    [
        ("ACCESS__METHODS", "GET", set()),
        ("TIMEOUTS__IDLE", "200s", set()),
        ("TIMEOUTS__TOKEN", "7s", {"endpoint"}),
        ("RETRY__UNAUTHORIZED", "off", {"forwarder"}),
        ("LIMITS__UPSTREAM", "7", {"upstream", "forwarder"}),
        ("SCOPE", "cfgateway extra", {"endpoint", "token_source", "forwarder"}),
    ],
)
async def test_a_reload_rebuilds_only_what_depends_on_the_key(
    world: World, key: str, value: str, rebuilt: set[str]
) -> None:
    """Open connections and the token in memory survive unrelated changes."""
    assert world.service is not None
    assert await world.call() == 200
    (before,) = world.service.accounts
    await world.reload(**{key: value})
    (after,) = world.service.accounts
    parts = ("store", "endpoint", "token_source", "queue", "upstream", "forwarder", "socket", "server")
    assert {part for part in parts if getattr(after, part) is not getattr(before, part)} == rebuilt
    assert await world.call() == 200


async def test_a_new_idle_timeout_applies_to_open_connections(world: World) -> None:
    """The pool keeps its connections, and the next request uses the new timeout."""
    assert world.service is not None
    assert await world.call() == 200
    pool = world.service.accounts[0].upstream.pool
    count = pool.connections
    await world.reload(TIMEOUTS__IDLE="200ms")
    world.sandbox.inject("api", Fault("slow", delay_s=5.0))
    assert await world.call() == 504
    assert world.service.accounts[0].upstream.pool is pool
    assert count > 0


async def test_a_wrong_configuration_changes_nothing_and_all_its_problems_are_reported(world: World) -> None:
    """The caller and the log get every problem; the old configuration stays in use."""
    with pytest.raises(ConfigError) as caught:
        await world.reload(TIMEOUTS__IDLE="soon", ACCESS__KEYS="sesame", LISTEN="nowhere")
    assert len(caught.value.problems) == 2
    assert [event["reason"] for event in world.events("config.refused")] == [
        str(problem) for problem in caught.value.problems
    ]
    assert await world.call() == 200
    assert not world.events("config.reloaded")


async def test_post_reload_answers_with_the_problems_and_no_secret(world: World) -> None:
    """`POST /reload` needs the same header as the shutdown; errors come as a problem document."""
    assert world.service is not None
    assert world.client is not None
    url = f"{world.service.admin_url}/reload"
    async with world.client.post(url) as answer:
        assert answer.status == 403
    world.environ |= {"CFPROXY_TIMEOUTS__IDLE": "soon", "CFPROXY_CLIENT_SECRET": "marker\nsecret"}
    async with world.client.post(url, headers=ACTION) as answer:
        text = await answer.text()
        document = await answer.json(content_type=None)
    assert (answer.status, document["type"]) == (500, "urn:cfproxy:problem:misconfigured")
    assert len(document["problems"]) == 2
    assert "marker" not in text
    world.environ |= {"CFPROXY_TIMEOUTS__IDLE": "20s", "CFPROXY_CLIENT_SECRET": "sandbox-secret"}
    async with world.client.post(url, headers=ACTION) as answer:
        assert await answer.json() == {"status": "reloaded", "changed": ["timeouts.idle"]}


async def test_the_store_can_not_change(world: World, tmp_path: Path) -> None:
    """Only the old store may have the newest token; the message asks for a restart."""
    with pytest.raises(ConfigError, match=r"store: can't change .* restart cfproxy"):
        await world.reload(STORE=f"file:{tmp_path / 'elsewhere'}", ACCESS__KEYS="sesame")
    assert await world.call() == 200


def test_a_stores_password_may_change_in_its_file(tmp_path: Path) -> None:
    """The store in use reads it for each connection; a password given otherwise needs a restart."""
    place = tmp_path / "password"
    base = {"CFPROXY_CLIENT_ID": "app", "CFPROXY_REDIRECT_URI": "https://example.com/cb"}
    redis = base | {"CFPROXY_STORE__URL": "redis://127.0.0.1:1/0"}
    by_file = redis | {"CFPROXY_STORE__PASSWORD__FILE": str(place)}
    place.write_text("one")
    old, literal = (
        load_settings(None, by_file),
        load_settings(None, redis | {"CFPROXY_STORE__PASSWORD": "one"}),
    )
    place.write_text("two")
    new = load_settings(None, by_file)
    check_reload(old, new, (), lambda _: False)
    assert list_changes(old, new) == ["store.password"]
    for before, after in ((literal, new), (old, load_settings(None, by_file | {"CFPROXY_STORE__KEY": "k"}))):
        with pytest.raises(ConfigError, match=r"store: can't change"):
            check_reload(before, after, (), lambda _: False)


async def test_a_rate_limit_can_not_become_shared(tmp_path: Path) -> None:
    """Requests of the last second are counted in one place only; the message asks for a restart."""
    async with opened(tmp_path, STORE=f"redis://127.0.0.1:{free_port()}/0", PACING__RATE="20") as world:
        with pytest.raises(ConfigError, match=r"pacing.shared: can't change .* restart cfproxy"):
            await world.reload(PACING__SHARED="true", ACCESS__KEYS="sesame")


def test_shared_pacing_can_be_turned_neither_on_nor_off() -> None:
    """Waiting requests can't move to the other kind of queue; without a rate there is none."""
    base = {"CFPROXY_CLIENT_ID": "app", "CFPROXY_REDIRECT_URI": "https://example.com/cb"}
    redis = base | {"CFPROXY_STORE": "redis://127.0.0.1:1/0"}
    alone, shared = (
        load_settings(None, redis),
        load_settings(None, redis | {"CFPROXY_PACING__SHARED": "true"}),
    )
    with pytest.raises(ConfigError, match=r"pacing.shared: can't change"):
        check_reload(alone, shared, (), lambda _: False)
    off = {"CFPROXY_PACING__RATE": "off"}
    check_reload(load_settings(None, redis | off), load_settings(None, redis | off), (), lambda _: False)


async def test_accounts_can_be_added_and_removed(world: World) -> None:
    """A new account gets a listener, a removed one loses it, and the others are not affected."""
    assert world.service is not None
    assert world.service.admin_url is not None
    await world.reload(ACCOUNTS__ACME__LISTEN="127.0.0.1:0", ACCOUNTS__BETA__LISTEN="127.0.0.1:0")
    assert [await world.call(name) for name in ("default", "acme", "beta")] == [200, 200, 200]
    gone = world.url("acme")
    before = world.url("beta")
    await world.reload(ACCOUNTS__ACME__LISTEN=None)
    assert world.url("beta") == before
    assert await world.call("beta") == 200
    with pytest.raises(aiohttp.ClientError):
        async with aiohttp.ClientSession() as other, other.get(gone):
            pass
    async with world.client.get(f"{world.service.admin_url}/status.json") as answer:  # type: ignore[union-attr]
        assert [each["account"] for each in (await answer.json())["accounts"]] == ["default", "beta"]


async def test_a_listener_can_move_while_its_open_connections_are_served(world: World) -> None:
    """The new address opens before the old one closes; open connections get one more answer."""
    old = world.url()
    assert await world.call() == 200
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert await world.reload(LISTEN=f"127.0.0.1:{port}") == ["listen"]
    assert world.url() == f"http://127.0.0.1:{port}"
    assert await world.call(url=old) == 200  # on the connection that is open
    assert await world.call() == 200
    with pytest.raises(aiohttp.ClientError):
        await world.call(url=old)


async def test_a_port_in_use_changes_nothing(world: World) -> None:
    """Neither its account nor any other one is changed."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(ListenError, match=f"cannot listen on {taken}"):
            await world.reload(ACCOUNTS__ACME__LISTEN="127.0.0.1:0", ACCOUNTS__BETA__LISTEN=taken)
    assert [await world.call()] == [200]
    assert world.service is not None
    assert [each.app.account for each in world.service.accounts] == ["default"]


async def test_a_request_in_flight_stays_with_its_upstream(world: World) -> None:
    """A reload neither redirects nor cuts it."""
    world.sandbox.inject("api", Fault("slow", delay_s=0.3))
    async with Sandbox(Behaviour(limiter="off")) as other:
        slow = asyncio.create_task(world.call())
        while not world.sandbox.api_requests:
            await asyncio.sleep(0)
        await world.reload(UPSTREAM=other.url, TOKEN_URL=f"{other.url}/connect/token")
        assert await world.call() == 200
        assert (other.api_requests, await slow, other.api_requests) == (1, 200, 1)


async def test_a_new_secret_is_used_at_once_after_a_refusal(tmp_path: Path) -> None:
    """The next request does not wait for the old secret's back-off."""
    async with opened(tmp_path, CLIENT_SECRET="old-secret") as world:
        assert await world.call() == 500
        assert await world.reload(CLIENT_SECRET="sandbox-secret") == ["client_secret"]
        assert await world.call() == 200


async def test_a_token_in_memory_survives_reloads(tmp_path: Path) -> None:
    """With `store: memory`, a reload would otherwise be a logout."""
    async with opened(tmp_path, STORE="memory") as world:
        assert await world.call() == 200
        await world.reload(RETRY__UNAUTHORIZED="off", TIMEOUTS__TOKEN="7s", SCOPE="cfgateway extra")
        assert await world.call() == 200
        assert len(world.sandbox.token_requests) == 1


async def test_an_account_with_an_unsaved_token_can_not_be_replaced(world: World, tmp_path: Path) -> None:
    """Its newest token is in memory only and would be lost."""
    assert world.service is not None
    await world.call()
    cached = world.service.accounts[0].token_source._cached
    cached.unsaved = True
    try:
        with pytest.raises(ConfigError, match="not saved yet"):
            await world.reload(CLIENT_ID="another")
    finally:
        cached.unsaved = False


async def test_the_admin_listener_can_move_and_be_turned_off(world: World) -> None:
    """It behaves like the accounts' listeners."""
    assert world.service is not None
    old = world.service.admin_url
    await world.reload(ADMIN="off")
    assert world.service.admin_url is None
    with pytest.raises(aiohttp.ClientError):
        async with aiohttp.ClientSession() as other, other.get(f"{old}/livez"):
            pass
    await world.reload(ADMIN="127.0.0.1:0")
    async with aiohttp.ClientSession() as other, other.get(f"{world.service.admin_url}/readyz") as answer:
        assert answer.status == 200


async def test_nothing_is_reloaded_during_the_shutdown(world: World) -> None:
    """A reload must not open anything that the shutdown would not close."""
    assert world.service is not None
    world.service.stop()
    with pytest.raises(ShuttingDown):
        await world.reload(ACCOUNTS__ACME__LISTEN="127.0.0.1:0")


async def test_reloads_under_load_fail_no_request(world: World) -> None:
    """Listeners, pacing and upstream clients are replaced while clients send requests."""
    statuses: list[int] = []
    done = asyncio.Event()

    async def caller() -> None:
        async with aiohttp.ClientSession() as client:
            while not done.is_set():
                async with client.get(f"{url}/v1/jobs?pageSize=1") as answer:
                    await answer.read()
                    statuses.append(answer.status)

    url = world.url()
    callers = [asyncio.create_task(caller()) for _ in range(8)]
    for turn in range(60):
        await world.reload(
            TIMEOUTS__CONNECT=f"{5 + turn % 3}s",
            LIMITS__UPSTREAM=str(900 + turn % 2),
            PACING__RATE="off" if turn % 2 else "100000",
            ACCOUNTS__ACME__LISTEN="127.0.0.1:0" if turn % 4 == 0 else None,
        )
    done.set()
    await asyncio.gather(*callers)
    assert set(statuses) == {200}
    assert len(world.events("config.reloaded")) == 60


def test_changed_keys_are_named_without_their_values() -> None:
    """Keys are named as in the file, also those of secrets, which are all rendered alike."""
    base = {"CFPROXY_CLIENT_ID": "app", "CFPROXY_REDIRECT_URI": "https://example.com/cb"}
    old = load_settings(None, base | {"CFPROXY_CLIENT_SECRET": "one"})
    new = load_settings(
        None,
        base
        | {
            "CFPROXY_CLIENT_SECRET": "two",
            "CFPROXY_TIMEOUTS__IDLE": "1s",
            "CFPROXY_LOG__LEVEL": "debug",
            "CFPROXY_ACCOUNTS__ACME__LISTEN": "127.0.0.1:0",
        },
    )
    assert list_changes(old, old) == []
    assert list_changes(old, new) == ["accounts.acme", "client_secret", "log.level", "timeouts.idle"]


@pytest.mark.usefixtures("_own_logging")
async def test_the_log_level_can_change_at_run_time(tmp_path: Path) -> None:
    """A POST changes it until the next reload, a reload for good; existing loggers follow."""
    path = tmp_path / "log"
    environ = {
        "CFPROXY_CLIENT_ID": "app",
        "CFPROXY_REDIRECT_URI": "https://example.com/cb",
        "CFPROXY_STORE": "memory",
        "CFPROXY_LISTEN": "127.0.0.1:0",
        "CFPROXY_ADMIN": "127.0.0.1:0",
    }

    def load() -> Settings:
        return load_settings(None, environ)

    with path.open("w", encoding="utf-8") as stream:
        logs = LogOutput("info", "json", stream=stream)
        async with (
            Service(load(), (), logs.log, load=load, logs=logs) as service,
            aiohttp.ClientSession() as client,
        ):
            url = f"{service.admin_url}/log-level"
            async with client.post(f"{url}?level=error", headers=ACTION) as answer:
                assert (answer.status, await answer.json()) == (200, {"status": "changed", "level": "error"})
            assert logs.level == "error"
            async with client.post(f"{url}?level=loud", headers=ACTION) as answer:
                assert answer.status == 400
            async with client.post(url, headers=ACTION) as answer:
                assert answer.status == 400
            with pytest.raises(BadTarget):
                service.set_log_level("silent")
            environ["CFPROXY_LOG__LEVEL"] = "debug"
            await service.reload()
            assert logs.level == "debug"
    assert "proxy.started" in path.read_text(encoding="utf-8")
    assert os.environ.get("CFPROXY_LOG__LEVEL") is None


def listening(host: str) -> socket.socket:
    sock = socket.socket()
    sock.bind((host, 0))
    sock.listen()
    return sock


@pytest.mark.parametrize("name", ["default", "admin"])
async def test_a_socket_that_was_handed_over_does_not_expose_the_proxy(name: str, tmp_path: Path) -> None:
    """The service manager's socket may listen elsewhere than the configured loopback address."""
    with listening("0.0.0.0") as sock, pytest.raises(ListenError, match="can be reached from other machines"):
        async with opened(tmp_path, inherited=[(name, sock)]):
            pass


async def test_an_unused_socket_is_logged(tmp_path: Path) -> None:
    """Its name is probably misspelt; connections to it would wait for ever."""
    with listening("127.0.0.1") as sock:
        async with opened(tmp_path, inherited=[("defualt", sock)]) as world:
            (event,) = world.events("socket.not_used")
            assert event["listen"] == f"127.0.0.1:{sock.getsockname()[1]}"
