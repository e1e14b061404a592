"""Refreshing: rotation, replays, races, and how a login ends."""

from __future__ import annotations

import asyncio

import pytest

from tests.integration.sandbox.world import World


async def test_a_rotated_refresh_token_works_once(world: World) -> None:
    """With rotation each refresh issues a new refresh token; the old one gets `invalid_grant` afterwards."""
    first = world.sandbox.issue_login()["refresh_token"]
    status, answer = await world.refresh(first)
    assert status == 200
    assert answer["refresh_token"] != first
    assert await world.refresh(first) == (400, {"error": "invalid_grant"})
    assert world.sandbox.reuse_seen == 1
    assert (await world.refresh(answer["refresh_token"]))[0] == 200


async def test_a_detected_reuse_revokes_the_whole_login(world: World) -> None:
    """With `reuse_detection: revoke` a replay also revokes the current refresh token, but no other login."""
    world.behaviour.reuse_detection = "revoke"
    first = world.sandbox.issue_login()["refresh_token"]
    other = world.sandbox.issue_login()["refresh_token"]
    _, answer = await world.refresh(first)
    await world.refresh(first)
    assert await world.refresh(answer["refresh_token"]) == (400, {"error": "invalid_grant"})
    assert world.sandbox.token_requests[-1].reason == "login revoked"
    assert (await world.refresh(other))[0] == 200


async def test_one_of_parallel_refreshes_succeeds(world: World) -> None:
    """The refresh token is marked used before any response is sent."""
    first = world.sandbox.issue_login()["refresh_token"]
    answers = await asyncio.gather(*(world.refresh(first) for _ in range(10)))
    assert sorted(status for status, _ in answers) == [200] + [400] * 9


async def test_without_rotation_the_refresh_token_stays_valid(world: World) -> None:
    """A server that does not rotate repeats the refresh token in its response, or omits it."""
    world.behaviour.rotation = False
    first = world.sandbox.issue_login()["refresh_token"]
    assert (await world.refresh(first))[1]["refresh_token"] == first
    world.behaviour.refresh_token_in_reply = False
    status, answer = await world.refresh(first)
    assert (status, "refresh_token" in answer) == (200, False)
    world.behaviour.rotation = True
    assert "refresh_token" in (await world.refresh(first))[1]


@pytest.mark.parametrize("rotation", [True, False])
@pytest.mark.parametrize(("expiry", "status"), [("absolute", 400), ("sliding", 200)])
async def test_a_login_ends_as_configured(world: World, rotation: bool, expiry: str, status: int) -> None:
    """`absolute` counts the refresh token's lifetime from the login, `sliding` from the last refresh."""
    world.behaviour.update({"rotation": rotation, "refresh_expiry": expiry})
    token = world.sandbox.issue_login()["refresh_token"]
    world.clock.now += 20 * 86400
    token = (await world.refresh(token))[1]["refresh_token"]
    world.clock.now += 20 * 86400
    assert (await world.refresh(token))[0] == status
    world.clock.now += 30 * 86400
    assert (await world.refresh(token))[1] == {"error": "invalid_grant"}


async def test_a_refresh_may_narrow_but_not_widen_the_scope(world: World) -> None:
    """A refused scope does not spend the token."""
    token = world.sandbox.issue_login()["refresh_token"]
    assert await world.refresh(token, scope="cfgateway admin") == (400, {"error": "invalid_scope"})
    assert (await world.refresh(token, scope="cfgateway"))[1]["scope"] == "cfgateway"


async def test_a_refresh_token_belongs_to_its_app(world: World) -> None:
    """It can't be used with another app's credentials."""
    token = world.sandbox.issue_login()["refresh_token"]
    world.behaviour.client_id = "another"
    assert await world.refresh(token, client_id="another") == (400, {"error": "invalid_grant"})
