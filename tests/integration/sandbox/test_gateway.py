"""The API: authorization, responses and errors."""

from __future__ import annotations

import io
import re
import uuid
from typing import Any

import pytest

from cfproxy.sandbox.studio import Studio
from tests.integration.sandbox.world import World


async def challenge_of(world: World, headers: Any) -> tuple[int, str | None]:
    async with world.call("GET", "/v1/jobs", headers=headers) as response:
        assert await response.read() == b""
        return response.status, response.headers.get("WWW-Authenticate")


async def test_a_call_needs_a_token(world: World) -> None:
    """Without a bearer token the response is 401 with a bare challenge."""
    assert await challenge_of(world, {}) == (401, "Bearer")
    assert await challenge_of(world, {"Authorization": "Basic eDp5"}) == (401, "Bearer")


async def test_an_unknown_token_is_refused(world: World) -> None:
    """An unknown token gets 401 with `invalid_token`."""
    answer = await challenge_of(world, {"Authorization": "Bearer nonsense"})
    assert answer == (401, 'Bearer error="invalid_token"')


async def test_two_authorization_headers_are_refused(world: World) -> None:
    """Two Authorization headers are refused, even if one of them is valid."""
    good = world.bearer()["Authorization"]
    headers = [("Authorization", good), ("Authorization", good)]
    assert await challenge_of(world, headers) == (401, 'Bearer error="invalid_token"')


async def test_a_token_expires(world: World) -> None:
    """After `access_lifetime_s` the response is 401 with the expiry time."""
    world.clock.now = 1_798_761_600.0
    headers = world.bearer()
    world.clock.now += 3599.5
    assert await world.status("GET", "/v1/jobs", headers=headers) == 200
    world.clock.now += 0.5
    assert await challenge_of(world, headers) == (
        401,
        'Bearer error="invalid_token", error_description="The token expired at \'01/01/2027 01:00:00\'"',
    )


async def test_a_401_can_omit_the_challenge(world: World) -> None:
    """Some gateways send no `WWW-Authenticate`."""
    world.behaviour.www_authenticate = False
    assert await challenge_of(world, {"Authorization": "Bearer nonsense"}) == (401, None)


async def test_all_access_tokens_can_be_revoked_at_once(world: World) -> None:
    """Tokens issued so far get 401; later ones are valid."""
    headers = world.bearer()
    assert world.sandbox.revoke_access_tokens() == 1
    assert world.sandbox.revoke_access_tokens() == 0
    assert await world.status("GET", "/v1/jobs", headers=headers) == 401
    assert await world.status("GET", "/v1/jobs") == 200


async def test_a_token_without_the_scope_is_forbidden(world: World) -> None:
    """A token without `cfgateway` gets 403: another token of the same kind would not help."""
    token = world.sandbox.issue_login("offline_access")["access_token"]
    async with world.call("GET", "/v1/jobs", headers={"Authorization": f"bearer {token}"}) as response:
        assert response.status == 403
        assert (await response.json())["title"] == "Forbidden"


async def test_lists_have_pages_of_ten(world: World) -> None:
    """A list has `pageInfo` and `pageData`, ten records a page by default, and no total."""
    first, third = await world.get("/v1/jobs"), await world.get("/v1/jobs?pageNumber=3&pageSize=25")
    assert first["pageInfo"] == {"pageNumber": 1, "pageSize": 10}
    assert set(first) == {"pageInfo", "pageData"}
    assert [job["code"] for job in first["pageData"]] == [f"JOB-{number:04}" for number in range(1, 11)]
    assert [job["code"] for job in third["pageData"]] == [f"JOB-{number:04}" for number in range(51, 61)]
    assert (await world.get("/v1/jobs?pageNumber=7"))["pageData"] == []


@pytest.mark.parametrize(
    ("target", "field"),
    [
        ("/v1/jobs?pageSize=0", "pageSize"),
        ("/v1/jobs?pageSize=1001", "pageSize"),
        ("/v1/jobs?pageSize=%D9%A3", "pageSize"),
        ("/v1/jobs?pageNumber=-1", "pageNumber"),
        ("/v1/jobs?pageNumber=99999999999999999999", "pageNumber"),
        ("/v1/jobs?clientId=acme", "clientId"),
        ("/v1/products?jobId=", "jobId"),
        ("/v1/outfits?productId=1", "productId"),
        ("/v1/jobs/1", "id"),
    ],
)
async def test_invalid_input_is_reported_with_its_field(world: World, target: str, field: str) -> None:
    """A 400 has the format of ASP.NET's ProblemDetails and names the field."""
    async with world.call("GET", target) as response:
        assert response.status == 400
        assert response.content_type == "application/problem+json"
        problem = await response.json()
    assert list(problem["errors"]) == [field]
    assert problem["status"] == 400
    assert problem["title"] == "One or more validation errors occurred."
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-00", problem["traceId"])


@pytest.mark.parametrize(
    "target",
    [
        f"/v1/jobs/{uuid.UUID(int=0)}",
        f"/v1/products/{uuid.UUID(int=0)}",
        f"/v1/workunits/{uuid.UUID(int=0)}",
        f"/v1/jobs/{uuid.UUID(int=0)}/get-job-status-overview",
        "/v1",
        "/v1/",
        "/v1/nothing",
        "/v1/jobs/",
        "/v1/%6aobs",
        "/v1/./jobs",
        "/v1/jobs%0A",
    ],
)
async def test_unknown_records_and_paths_are_404(world: World, target: str) -> None:
    """Paths are matched as they were sent."""
    async with world.call("GET", target) as response:
        assert (response.status, (await response.json())["title"]) == (404, "Not Found")


@pytest.mark.parametrize(
    ("method", "target", "allow"),
    [("DELETE", "/v1/jobs/x", "GET, PUT"), ("GET", "/v1/assets/get-presigned-url", "POST")],
)
async def test_another_method_is_405(world: World, method: str, target: str, allow: str) -> None:
    """The response lists the allowed methods."""
    async with world.call(method, target) as response:
        assert (response.status, response.headers["Allow"]) == (405, allow)


async def test_records_refer_to_each_other(world: World) -> None:
    """From a job to its products, their work units, production types and outfits."""
    world.behaviour.limiter = "off"
    job = (await world.get("/v1/jobs?pageSize=1"))["pageData"][0]
    assert await world.get(f"/v1/jobs/{job['id'].upper()}") == job
    products = (await world.get(f"/v1/products?jobId={job['id']}"))["pageData"]
    assert {product["jobId"] for product in products} == {job["id"]}
    assert await world.get(f"/v1/products/{products[0]['id']}") == products[0]
    unit = await world.get(f"/v1/workunits/{products[0]['workUnitIds'][0]}")
    assert unit["productId"] == products[0]["id"]
    kinds = await world.get("/v1/productiontypes")
    assert unit["productionTypeId"] in [kind["id"] for kind in kinds]
    outfits = (await world.get(f"/v1/outfits?productId={products[0]['id']}"))["pageData"]
    assert [products[0]["id"] in outfit["productIds"] for outfit in outfits] == [True]
    assert len((await world.get("/v1/outfits?pageSize=100"))["pageData"]) == 30


async def test_jobs_can_be_filtered_by_client(world: World) -> None:
    """`clientId` selects that client's jobs; an unknown client has none."""
    client_id = (await world.get("/v1/jobs?pageSize=1"))["pageData"][0]["clientId"]
    found = (await world.get(f"/v1/jobs?pageSize=100&clientId={client_id}"))["pageData"]
    assert 1 < len(found) < 60
    assert {job["clientId"] for job in found} == {client_id}
    assert (await world.get(f"/v1/jobs?clientId={uuid.UUID(int=0)}"))["pageData"] == []


async def test_a_job_counts_its_products_by_status(world: World) -> None:
    """The overview counts the job's products by status."""
    job = (await world.get("/v1/jobs?pageSize=1"))["pageData"][0]
    overview = await world.get(f"/v1/jobs/{job['id']}/get-job-status-overview")
    assert overview["jobId"] == job["id"]
    assert sum(overview["productsByStatus"].values()) == overview["totalProducts"] == 5


async def test_a_job_can_be_changed(world: World) -> None:
    """PUT changes the fields it names, for all later readers."""
    job = (await world.get("/v1/jobs?pageSize=1"))["pageData"][0]
    async with world.call("PUT", f"/v1/jobs/{job['id']}", json={"name": "Renamed", "code": "X"}) as response:
        changed = await response.json()
    assert changed == job | {"name": "Renamed"}
    assert await world.get(f"/v1/jobs/{job['id']}") == changed


@pytest.mark.parametrize(
    ("options", "status", "fields"),
    [
        ({"json": {"name": "", "status": 1}}, 400, ["name", "status"]),
        ({"json": ["name"]}, 400, ["$"]),
        ({"data": b"{", "type": "application/json"}, 400, ["$"]),
        ({"data": b"name=x", "type": "text/plain"}, 415, None),
        ({"data": io.BytesIO(b"x" * 1_100_000), "type": "application/json"}, 413, None),
    ],
)
async def test_an_invalid_body_changes_nothing(
    world: World, options: dict[str, Any], status: int, fields: list[str] | None
) -> None:
    """Invalid values, non-objects, other types and oversized bodies are refused."""
    before = await world.get("/v1/jobs?pageSize=1")
    target = f"/v1/jobs/{before['pageData'][0]['id']}"
    headers = world.bearer() | ({"Content-Type": options.pop("type")} if "type" in options else {})
    async with world.call("PUT", target, headers=headers, **options) as response:
        assert response.status == status
        errors = (await response.json()).get("errors")
    assert errors is None if fields is None else list(errors) == fields
    assert await world.get("/v1/jobs?pageSize=1") == before


def test_the_studio_is_reproducible() -> None:
    """One seed gives one studio, with unique ids; another seed gives another."""
    studio, again, other = Studio(), Studio(), Studio(seed=21)
    assert studio == again
    assert set(studio.jobs).isdisjoint(other.jobs)
    tables = (studio.jobs, studio.products, studio.work_units, studio.outfits)
    assert [len(table) for table in tables] == [60, 300, 600, 30]
    assert len(set().union(*tables)) == 990
