"""`cfproxy doctor` as a process, with one thing broken at a time."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from cfproxy.sandbox import Behaviour, Sandbox
from tests.e2e.kit import NOBODY, World


async def examined(world: World, *args: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Return the exit code, and the worst finding of each check."""
    ran = await world.run("doctor", "--json", *args)
    assert ran.err == ""
    found: dict[str, dict[str, Any]] = {}
    order = ("ok", "warn", "fail")
    for finding in json.loads(ran.out)["findings"]:
        known = found.get(finding["check"])
        if known is None or order.index(finding["level"]) > order.index(known["level"]):
            found[finding["check"]] = finding
    return ran.code, found


async def test_a_check_without_problems_changes_nothing(world: World) -> None:
    """All checks pass, no token is used, and the login is unchanged."""
    await world.log_in()
    before = world.document()
    code, found = await examined(world)
    assert code == 0
    checks = {"configuration", "environment", "admin", "listen", "dns", "tcp", "clock"}
    assert checks | {"store", "login", "token endpoint", "api"} <= found.keys()
    assert {name: each["text"] for name, each in found.items() if each["level"] == "fail"} == {}
    assert world.document() == before
    outcomes = [each.outcome for each in world.sandbox.token_requests]
    assert outcomes == ["issued", "unsupported_grant_type"]


async def test_the_text_has_the_next_step(world: World) -> None:
    """No colour without a terminal; a missing login comes with its command."""
    ran = await world.run("doctor")
    assert ran.code == 3
    assert "next: cfproxy login" in ran.out
    assert "\x1b" not in ran.out
    assert world.sandbox.behaviour.client_secret not in ran.out


async def test_a_wrong_configuration_is_the_only_finding(world: World) -> None:
    """Each of its problems, and the command that checks it."""
    world.write_config(timeouts={"idle": "soon"}, pacing={"rate": -1})
    code, found = await examined(world)
    assert (code, list(found)) == (2, ["configuration"])
    assert found["configuration"]["next"] == "correct it, then: cfproxy config check"
    ran = await world.run("doctor", "-c", "other.yaml")
    assert ran.code == 2
    assert "next: cfproxy config init -c other.yaml\n" in ran.out
    world.folder.joinpath("other.yaml").write_text("nonsense: 1", encoding="utf-8")
    assert "config check -c other.yaml\n" in (await world.run("doctor", "-c", "other.yaml")).out


async def test_a_wrong_secret_is_reported(world: World) -> None:
    """The token endpoint reports it without using anything up."""
    await world.log_in()
    world.write_config(client_secret="wrong-marker")
    code, found = await examined(world)
    assert (code, found["token endpoint"]["level"]) == (5, "fail")
    assert "invalid_client" in found["token endpoint"]["text"]
    assert "compare client_id and client_secret" in found["token endpoint"]["next"]
    assert "wrong-marker" not in json.dumps(found)


async def test_a_wrong_token_url_is_reported(world: World) -> None:
    """Another page at token_url."""
    await world.log_in()
    world.write_config(token_url=f"{world.sandbox.url}/v1/jobs")
    code, found = await examined(world)
    assert (code, found["token endpoint"]["level"]) == (3, "fail")  # the login is for another endpoint: first
    assert found["login"]["level"] == "fail"


async def test_an_unreachable_api_is_reported(world: World) -> None:
    """The network checks and the request itself agree."""
    world.write_config(grant="client_credentials", redirect_uri=None, upstream=NOBODY)
    ran = await world.run("token")
    assert ran.code == 0
    code, found = await examined(world)
    assert (code, found["tcp"]["level"], found["api"]["level"]) == (5, "fail", "fail")
    assert found["api"]["next"] == "check the network and the upstream setting"


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "rejects a token"),
        (403, "lacks a permission"),
        (429, "too many requests"),
        (500, "answered 500"),
    ],
)
async def test_error_statuses_of_the_api_are_warnings(world: World, status: int, words: str) -> None:
    """Any answer shows that the API is reachable."""
    from cfproxy.sandbox import Fault

    await world.log_in()
    world.sandbox.inject("api", Fault("status", status=status))
    code, found = await examined(world)
    assert (code, found["api"]["level"]) == (0, "warn")
    assert words in found["api"]["text"]
    assert found["api"]["next"]


@pytest.mark.skipif(os.name != "posix", reason="modes as POSIX has them")
async def test_a_store_that_others_can_read_is_reported(world: World) -> None:
    """With the store's exit code and the message that the proxy would send."""
    await world.log_in()
    world.document_path.chmod(0o644)
    code, found = await examined(world)
    assert (code, found["store"]["level"], found["login"]["level"]) == (4, "fail", "warn")
    assert "chmod" in found["store"]["next"]


async def test_a_running_proxy_may_use_its_ports(world: World) -> None:
    """A port that cfproxy serves is no conflict."""
    await world.log_in()
    async with world.serve() as proxy:
        world.write_config(
            listen=proxy.url.removeprefix("http://"), admin=proxy.admin_url.removeprefix("http://")
        )
        code, found = await examined(world)
        assert code == 0
        assert {found["listen"]["level"], found["admin"]["level"]} <= {"ok", "warn"}


async def test_one_account_or_all_are_checked(world: World) -> None:
    """Each finding names its account; `--account` selects one."""
    await world.log_in()
    async with Sandbox(Behaviour()) as other:
        urls = {"upstream": other.url, "token_url": f"{other.url}/connect/token"}
        world.write_config(accounts={"acme": {"listen": "127.0.0.1:0", **urls}})
        code, found = await examined(world)
        assert (code, found["login"]["account"]) == (3, "acme")
        assert (await examined(world, "--account", "default"))[0] == 0
