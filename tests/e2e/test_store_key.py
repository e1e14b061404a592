"""A store with a key, used by commands and a running proxy."""

from __future__ import annotations

import json

from tests.e2e.kit import World, until

CIPHER = "scrypt-aes256gcm"


async def test_a_key_encrypts_an_existing_login_in_an_explicit_step(world: World) -> None:
    """Until then nothing uses it, and each message names the command; without the key nothing works."""
    await world.log_in()
    token = world.document()["access_token"]
    command = "cfproxy store encrypt"
    ran = await world.run("store", "encrypt")
    assert (ran.code, ran.out) == (2, "")
    assert "has no store.key" in ran.line
    world.environment["CFPROXY_STORE__KEY"] = "a passphrase"
    for args in (["token"], ["status"], ["doctor"], ["logout"], ["login", "--print-url"]):
        ran = await world.run(*args)
        assert ran.code != 0
        assert f"run: {command}" in ran.out + ran.err
    async with world.serve() as proxy:
        assert await proxy.problem() == ("misconfigured", None)
        assert command in (await proxy.account())["store"]["detail"]
        done = await world.run("store", "encrypt")
        assert (done.code, done.err) == (0, "")
        assert done.out.startswith(
            f"Encrypted the login of account 'default' in {world.store_dir}; it was made"
        )

        async def served() -> bool:
            return await proxy.status() == 200

        await until(served, "requests are served")
    assert world.document()["cipher"] == CIPHER
    assert token not in world.document_path.read_text(encoding="utf-8")
    assert "a passphrase" not in "".join(world.said)
    assert "is encrypted already" in (await world.run("store", "encrypt")).out
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
    """A pending login, including its PKCE verifier, is never stored as plain text either."""
    world.environment["CFPROXY_STORE__KEY"] = "a passphrase"
    assert (await world.run("login", "--print-url")).code == 0
    (pending,) = world.store_dir.glob("*.login-*.json")
    assert CIPHER in pending.read_text(encoding="utf-8")
    await world.log_in()
    assert world.document()["cipher"] == CIPHER


async def test_a_clear_login_that_is_planted_while_the_proxy_runs_is_not_used(world: World) -> None:
    """The proxy goes on with the token that it has, and reports the store until the real one is back."""
    await world.log_in()
    planted = world.document() | {"access_token": "planted", "serial": 99}
    world.environment["CFPROXY_STORE__KEY"] = "a passphrase"
    assert (await world.run("store", "encrypt")).code == 0
    genuine = world.document_path.read_bytes()
    async with world.serve() as proxy:
        for content, state in ((json.dumps(planted).encode(), "store-unusable"), (genuine, "ok")):
            world.document_path.write_bytes(content)

            async def reported(state: str = state) -> bool:
                assert await proxy.status() == 200  # 401 with the planted token
                return bool((await proxy.account())["store"]["state"] == state)

            await until(reported, f"the store is {state}")
