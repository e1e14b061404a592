"""A store with a key, used by commands and a running proxy."""

from __future__ import annotations

from tests.e2e.kit import World, until

CIPHER = "scrypt-aes256gcm"


async def test_a_key_encrypts_an_existing_login(world: World) -> None:
    """The next refresh encrypts it while requests go on; without the key nothing works."""
    await world.log_in()
    token = world.document()["access_token"]
    world.age(3600)
    world.environment["CFPROXY_STORE__KEY"] = "a passphrase"
    async with world.serve() as proxy:
        assert await proxy.status() == 200
        await until(lambda: world.document().get("cipher") == CIPHER, "the login is encrypted")
    assert token not in world.document_path.read_text(encoding="utf-8")
    assert "a passphrase" not in "".join(world.said)
    ran = await world.run("token")
    assert ran.code == 0

    content = world.document_path.read_bytes()
    world.environment["CFPROXY_STORE__KEY"] = "another one"
    for command in ("token", "status", "logout"):
        ran = await world.run(command)
        assert ran.code == 4
        assert "another `store.key`" in ran.out + ran.err
    del world.environment["CFPROXY_STORE__KEY"]
    ran = await world.run("token")
    assert (ran.code, ran.out) == (4, "")
    assert "set `store.key`" in ran.line
    assert world.document_path.read_bytes() == content


async def test_a_login_in_two_steps_is_encrypted_from_the_start(world: World) -> None:
    """A pending login, including its PKCE verifier, is never in clear text either."""
    world.environment["CFPROXY_STORE__KEY"] = "a passphrase"
    assert (await world.run("login", "--print-url")).code == 0
    (pending,) = world.store_dir.glob("*.login-*.json")
    assert CIPHER in pending.read_text(encoding="utf-8")
    await world.log_in()
    assert world.document()["cipher"] == CIPHER
