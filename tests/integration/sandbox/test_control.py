"""The control plane: inspect the sandbox and change it while it runs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cfproxy.sandbox import Behaviour, Fault
from tests.integration.sandbox.world import World, open_world


async def control(world: World, method: str, path: str, **options: Any) -> tuple[int, Any]:
    async with world.call(method, f"/_sandbox/{path}", **({"headers": {}} | options)) as response:
        return response.status, await response.json()


async def test_the_state_shows_settings_and_counters_but_no_token(world: World) -> None:
    """Everything except tokens and codes can be inspected."""
    login = world.sandbox.issue_login()
    code = world.sandbox.issue_code()
    await world.refresh(login["refresh_token"])
    await world.refresh(login["refresh_token"])
    await world.status("GET", "/v1/jobs")
    status, state = await control(world, "GET", "state")
    assert status == 200
    assert state["url"] == world.sandbox.url
    assert state["behaviour"] == Behaviour().model_dump(mode="json")
    counters = state["counters"]
    assert counters["apiRequests"] == 1
    assert counters["apiStatuses"] == {"200": 1}
    assert counters["lastApiArrivals"] == [world.clock.now]
    assert counters["tokenOutcomes"] == {"invalid_grant": 1, "issued": 1}
    assert counters["reuseSeen"] == 1
    assert counters["issued"] == {"codes": 1, "accessTokens": 3, "refreshTokens": 3}
    for secret in (login["access_token"], login["refresh_token"], code):
        assert secret not in json.dumps(state)


async def test_settings_can_change_while_it_runs(world: World) -> None:
    """A PATCH changes the settings it names, and returns all of them."""
    status, answer = await control(world, "PATCH", "behaviour", json={"rotation": False, "limit_rate": 3})
    assert (status, answer["rotation"], answer["limit_rate"]) == (200, False, 3)
    assert (world.behaviour.rotation, world.behaviour.limit_rate) == (False, 3)


async def test_invalid_settings_are_listed_and_change_nothing(world: World) -> None:
    """Unknown settings and invalid values are reported together."""
    body = {"rotation": False, "nonsense": 1, "limiter": "leaky"}
    assert await control(world, "PATCH", "behaviour", json=body) == (
        400,
        {
            "problems": [
                "limiter: must be 'fixed', 'sliding' or 'off'",
                "nonsense: there is no such setting",
            ]
        },
    )
    assert world.behaviour.rotation is True


@pytest.mark.parametrize(
    ("method", "path", "body", "problem"),
    [
        ("PATCH", "behaviour", b"{", "the body is not JSON"),
        ("PATCH", "behaviour", b"[]", "the body is not an object of settings"),
        ("POST", "faults", b"\xff", "the body is not JSON"),
        ("POST", "faults", b"[]", "on: expected token or api"),
        ("POST", "faults", b'{"on": ["token"]}', "on: expected token or api"),
        ("POST", "faults", b'{"on": "token"}', "kind: Field required"),
        (
            "POST",
            "faults",
            b'{"on": "api", "kind": "slow", "delay_s": "x"}',
            "delay_s: must be a valid number",
        ),
    ],
)
async def test_an_invalid_body_is_refused(
    world: World, method: str, path: str, body: bytes, problem: str
) -> None:
    """The response is 400 with the reason."""
    status, answer = await control(world, method, path, data=body)
    assert status == 400
    assert answer["problems"][0].startswith(problem)


async def test_a_fault_can_be_queued(world: World) -> None:
    """A posted fault waits for the next call of its server."""
    fault = {"on": "token", "kind": "status", "status": 500, "times": 2}
    assert await control(world, "POST", "faults", json=fault) == (201, {"queued": 1})
    assert await control(world, "POST", "faults", json={"on": "api", "kind": "stall"}) == (201, {"queued": 1})
    assert world.behaviour.token_faults == [Fault("status", status=500, times=2)]
    assert world.behaviour.api_faults == [Fault("stall")]


async def test_access_tokens_can_be_revoked(world: World) -> None:
    """All access tokens issued so far become invalid; refresh tokens stay valid."""
    login = world.sandbox.issue_login()
    assert await control(world, "POST", "revoke-access-tokens") == (200, {"revoked": 1})
    headers = {"Authorization": f"Bearer {login['access_token']}"}
    assert await world.status("GET", "/v1/jobs", headers=headers) == 401
    assert (await world.refresh(login["refresh_token"]))[0] == 200


async def test_a_reset_restores_the_initial_state() -> None:
    """Settings return to their initial values; tokens, counters and changes are forgotten."""
    started_with = Behaviour(limit_rate=1, api_faults=[Fault("status", status=503)])
    async with open_world(started_with) as world:
        _, before = await control(world, "GET", "state")
        job_id = (await world.status("GET", "/v1/jobs"), next(iter(world.sandbox.studio.jobs)))[1]
        assert await world.status("PUT", f"/v1/jobs/{job_id}", json={"name": "Renamed"}) == 200
        await world.exchange(world.sandbox.issue_code())
        world.behaviour.rotation = False
        headers = world.bearer()
        status, state = await control(world, "POST", "reset")
        assert (status, state) == (200, before)
        assert await world.status("GET", "/v1/jobs", headers=headers) == 503
        assert await world.status("GET", "/v1/jobs", headers=headers) == 401
        world.clock.now += 1.0
        assert (await world.get(f"/v1/jobs/{job_id}"))["name"] != "Renamed"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "state"),
        ("PATCH", "behaviour"),
        ("POST", "faults"),
        ("POST", "revoke-access-tokens"),
        ("POST", "reset"),
    ],
)
async def test_a_web_page_of_another_origin_is_refused(world: World, method: str, path: str) -> None:
    """A request with a foreign `Origin` gets 403 and changes nothing."""
    world.behaviour.rotation = False
    for origin in ("https://evil.example", "null"):
        headers = {"Origin": origin}
        body = b'{"limit_rate": 1}'
        assert await world.status(method, f"/_sandbox/{path}", headers=headers, data=body) == 403
    assert world.behaviour == Behaviour(rotation=False)
    own = {"Origin": world.sandbox.url}
    assert await world.status("GET", "/_sandbox/state", headers=own) == 200
