"""`cfproxy store copy` copies a login from file to Redis and back, and replaces no other one by accident."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis.asyncio

from tests.e2e.kit import World
from tests.support.redis_server import RedisServer, running_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Start a server that requires a password."""
    with running_server(tmp_path_factory.mktemp("redis"), "--requirepass", "pass-marker") as server:
        yield server


@pytest.fixture
async def redis_url(server: RedisServer) -> str:
    """Empty the server, and return its address."""
    await server.ready()
    raw = redis.asyncio.Redis(port=server.port, password="pass-marker")
    await raw.flushall()
    await raw.aclose()
    return server.url


async def status_code(world: World, store: object) -> int:
    """Return the exit code of `status` with that store."""
    before = world.settings["store"]
    world.write_config(store=store)
    code = (await world.run("status")).code
    world.write_config(store=before)
    return code


async def test_a_login_can_move_to_redis_and_back(world: World, redis_url: str) -> None:
    """Each way is one command; with --move the login works in its new place and is gone from the old one."""
    await world.log_in()
    world.environment["REDIS_PASSWORD"] = "pass-marker"
    shared = {"url": redis_url, "password": {"env": "REDIS_PASSWORD"}}
    file = world.settings["store"]
    words = f"{{url: '{redis_url}', password: {{env: REDIS_PASSWORD}}}}"
    there = await world.run("store", "copy", file, words, "--move")
    assert (there.code, there.err) == (0, "")
    assert there.out == (f"Moved the login of account 'default' from {world.store_dir} to {redis_url}.\n")
    assert await status_code(world, file) == 3
    world.write_config(store=shared)
    async with world.serve() as proxy:
        assert await proxy.status() == 200
    # The configured password is used, because it is the same server.
    back = await world.run("store", "copy", redis_url, file, "--move")
    assert (back.code, back.err) == (0, "")
    assert (await world.run("status")).code == 3
    assert await status_code(world, file) == 0
    assert "pass-marker" not in there.out + there.err + back.out + back.err


async def test_an_encrypted_login_stays_encrypted(world: World, redis_url: str, server: RedisServer) -> None:
    """A plain address uses the configured key, a mapping has its own."""
    key = {"env": "STORE_KEY"}
    world.environment |= {"STORE_KEY": "key-marker", "OTHER_KEY": "other-marker"}
    world.write_config(store={"url": world.settings["store"], "key": key})
    await world.log_in()
    target = redis_url.replace("//", "//:pass-marker@")
    file = world.settings["store"]["url"]
    assert (await world.run("store", "copy", file, target)).code == 0
    raw = redis.asyncio.Redis(port=server.port, password="pass-marker")
    assert b"scrypt-aes256gcm" in (await raw.hget("cfproxy:{default}:login", "document") or b"")
    await raw.aclose()
    wrong = await world.run("store", "copy", f"{{url: '{target}', key: {{env: OTHER_KEY}}}}", file)
    assert (wrong.code, wrong.out) == (4, "")
    assert "key" in wrong.line
    clear = f"file:{world.folder / 'clear'}"
    assert (await world.run("store", "copy", target, f"{{url: '{clear}'}}")).code == 0
    assert '"refresh_token"' in (world.folder / "clear" / "default.json").read_text(encoding="utf-8")


async def test_a_copy_stays_in_its_place_and_warns_of_the_second_one(world: World) -> None:
    """Two stores have one one-time refresh token; repeating the copy changes nothing."""
    old, new = world.settings["store"], f"file:{world.folder / 'new'}"
    await world.log_in()
    content = world.document_path.read_bytes()
    for options in ([], ["--keep"], []):
        ran = await world.run("store", "copy", old, new, *options)
        assert (ran.code, ran.out[:6]) == (0, "Copied")
        assert "both stores have the login now" in ran.line
    assert world.document_path.read_bytes() == content
    assert (world.folder / "new" / "default.json").read_bytes() == content


async def test_another_login_is_not_overwritten(world: World) -> None:
    """An older token of the same login is replaced; another login or a newer token needs --force."""
    old, new = world.settings["store"], f"file:{world.folder / 'new'}"
    await world.log_in()
    assert (await world.run("store", "copy", old, new)).code == 0
    world.age(3600)
    assert (await world.run("token")).code == 0
    refused = await world.run("store", "copy", new, old)
    assert (refused.code, refused.out) == (2, "")
    assert "has a newer token of account 'default'; --force" in refused.line
    assert (await world.run("store", "copy", old, new)).code == 0
    assert (world.folder / "new" / "default.json").read_bytes() != b""
    await world.log_in()
    for args, there in ((["store", "copy", old, new], "another"), (["store", "copy", new, old], "a newer")):
        refused = await world.run(*args)
        assert (refused.code, refused.out) == (2, "")
        assert f"has {there} login of account 'default'; --force" in refused.line
    assert (await world.run("store", "copy", old, new, "--move", "--force")).code == 0
    assert await status_code(world, old) == 3
    assert await status_code(world, new) == 0


async def test_force_replaces_another_login(world: World) -> None:
    """The serial still grows, as watchers of that store expect."""
    old, new = world.settings["store"], f"file:{world.folder / 'new'}"
    await world.log_in()
    assert (await world.run("store", "copy", old, new)).code == 0
    await world.log_in()
    await world.run("token")
    newer = world.document()
    assert (await world.run("store", "copy", new, old)).code == 2
    assert (await world.run("store", "copy", new, old, "--force")).code == 0
    assert world.document()["serial"] > newer["serial"]
    assert world.document()["login_at"] < newer["login_at"]


async def test_nothing_to_copy_is_login_required(world: World) -> None:
    """Without a login in FROM the code is 3, and no folder is made of a slip of the pen, on either side."""
    await world.log_in()
    slip, new = world.folder / "slip", world.folder / "new"
    ran = await world.run("store", "copy", f"file:{slip}", f"file:{new}")
    assert (ran.code, ran.out) == (3, "")
    assert f"{slip} has no login of account 'default'; check FROM" in ran.line
    assert not slip.exists()
    assert not new.exists()


async def test_an_unreachable_store_keeps_the_login(world: World) -> None:
    """The code is 4, and the login stays in its place."""
    await world.log_in()
    ran = await world.run("store", "copy", world.settings["store"], "redis://:pw-marker@127.0.0.1:1/0")
    assert (ran.code, ran.out) == (4, "")
    assert "pw-marker" not in ran.err
    assert (await world.run("status")).code == 0


@pytest.mark.parametrize(
    "words",
    [
        "nonsense",
        "memory",
        "redis://h/0/0/marker",
        "{url: [",
        "{urll: marker}",
        "{url: file, password: marker}",
    ],
)
async def test_an_invalid_store_is_a_usage_error(world: World, words: str) -> None:
    """One line says what is expected, and never repeats the value."""
    ran = await world.run("store", "copy", world.settings["store"], words)
    assert (ran.code, ran.out) == (2, "")
    assert ran.line.startswith("cfproxy: TO")
    assert "marker" not in ran.line


async def test_the_same_store_twice_is_a_usage_error(world: World) -> None:
    """The login would be deleted right after it was saved; another spelling is the same folder."""
    await world.log_in()
    folder = world.store_dir
    for other in (folder, folder.parent / "nowhere" / ".." / folder.name, folder.parent / "." / folder.name):
        ran = await world.run("store", "copy", world.settings["store"], f"file:{other}", "--move")
        assert ran.code == 2
        assert "FROM and TO are the same store" in ran.line
    assert (await world.run("status")).code == 0


async def test_accounts_without_a_login_are_reported_and_skipped(world: World) -> None:
    """The code is 3 only if no account has a login."""
    world.write_config(accounts={"acme": {"listen": "off"}})
    await world.log_in()
    new = f"file:{world.folder / 'new'}"
    ran = await world.run("store", "copy", world.settings["store"], new)
    assert ran.code == 0
    assert "Copied the login of account 'default'" in ran.out
    assert "no login of account 'acme'" in ran.out
    assert (world.folder / "new" / "default.json").exists()
